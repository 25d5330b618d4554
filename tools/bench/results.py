"""Results of benchmarks: one record for each metric of a variant, all in one JSON file."""

import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec


class Answer(msgspec.Struct):
    """One measurement, as the process that made it reports it: metrics, or why there are none."""

    metrics: dict[str, float] = {}
    failed: str = ""
    machine: str = ""
    versions: dict[str, str] = {}


class Record(msgspec.Struct):
    """The values of a metric of one variant, one for each round; one without a metric says why there are none."""

    case: str
    variant: str
    metric: str
    unit: str
    values: list[float]
    machine: str
    versions: dict[str, str]
    date: str
    failed: str = ""


class Results(msgspec.Struct):
    """Everything that was measured, and the command that was interrupted, if one was: its cases, rounds and options."""

    unfinished: list[str] = []
    rounds: int = 0
    settings: dict[str, str] = {}
    records: list[Record] = []

    def begin(self, cases: Sequence[str], rounds: int, settings: Mapping[str, str], only: str = "") -> None:
        """Goes on with the same command where it was interrupted; otherwise forgets what it measured before.

        Args:
            only: text in the names of the variants that the command measures.
        """
        command = [*cases], rounds, dict(settings)
        if (self.unfinished, self.rounds, self.settings) != command:
            self.unfinished, self.rounds, self.settings = command
            self.records = [record for record in self.records if record.case not in cases or only not in record.variant]

    def add(self, case: str, variant: str, answer: Answer) -> None:
        """Appends a round's metrics to the records of the variant."""
        if answer.failed:
            self.records = [record for record in self.records if (record.case, record.variant) != (case, variant)]
        today = datetime.now(UTC).date().isoformat()
        for metric, value in ({"": 0.0} if answer.failed else answer.metrics).items():
            if self.values(case, variant, metric):
                self.values(case, variant, metric).append(value)
                continue
            values, about = [value] * bool(metric), (answer.machine, answer.versions, today, answer.failed)
            self.records.append(Record(case, variant, metric, unit_of(metric), values, *about))

    def values(self, case: str, variant: str, metric: str) -> list[float]:
        """Returns the metric in each round; empty where it was not measured."""
        key = (case, variant, metric)
        records = (record for record in self.records if (record.case, record.variant, record.metric) == key)
        return next((record.values for record in records), [])

    def costs(self, case: str, variant: str, metric: str) -> list[float]:
        """Returns the metric in each round; seconds for one unit of the case's work."""
        values = self.values(case, variant, metric)
        amounts = self.values(case, variant, "amount") if metric in ("wall_s", "cpu_s") else [1.0] * len(values)
        return [value / amount for value, amount in zip(values, amounts, strict=True)]

    def median(self, case: str, variant: str, metric: str) -> float | None:
        costs = self.costs(case, variant, metric)
        return statistics.median(costs) if costs else None

    def failure(self, case: str, variant: str) -> str:
        """Returns why the variant has no values; empty where it has some."""
        records = (record for record in self.records if (record.case, record.variant) == (case, variant))
        return next((record.failed for record in records if record.failed), "")

    def variants(self, case: str) -> list[str]:
        """Returns the variants of a case that were tried, in the order of their first answers."""
        return [*dict.fromkeys(record.variant for record in self.records if record.case == case)]

    def metrics(self, case: str) -> list[str]:
        return [*dict.fromkeys(record.metric for record in self.records if record.case == case and record.metric)]


def unit_of(metric: str) -> str:
    """Returns the unit that a metric's name ends with; a plain number has none."""
    return {"s": "s", "bytes": "bytes"}.get(metric.rpartition("_")[2], "")


def read_results(path: Path) -> Results:
    """Returns what earlier commands kept. Raises msgspec.ValidationError for a file of another form."""
    return msgspec.json.decode(path.read_bytes(), type=Results) if path.exists() else Results()


def write_results(path: Path, results: Results) -> None:
    """Writes all records, complete or not at all."""
    scratch = path.with_suffix(".new")
    scratch.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1))
    scratch.replace(path)
