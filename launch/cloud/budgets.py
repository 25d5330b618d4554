"""Budgets of `watch`: what a failed start costs, what follows it, and when it has failed too often. Pure decisions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from launch.cloud.outcome import End, Outcome
from pod_job.config.cloud import CloudConfig


class Step(Enum):
    """Next step after a start: `end` of the run, or another start on the `same_pod` or a `new_pod`.

    `again`: on the same pod, where nothing was started or can be ended.
    """

    end = "end"
    again = "again"
    same_pod = "same_pod"
    new_pod = "new_pod"


def payer(outcome: Outcome) -> str | None:
    """Returns the field of `cloud` whose budget pays for another start; None where no other start would help."""
    if outcome.end is End.preempted:
        return "preemptions"
    if outcome.end is End.lost:
        return "bad_machines" if outcome.needs_new_pod else "failures"
    return None


@dataclass(frozen=True)
class Budgets:
    """Limits, and how much of each is spent, by field of `cloud`."""

    limits: Mapping[str, int]
    spent: Mapping[str, int] = field(default_factory=dict)

    def after(self, outcome: Outcome) -> tuple["Budgets", Step]:
        """Returns the budgets after this outcome, and the next step."""
        name = payer(outcome)
        if name is None:
            return self, Step.end
        budgets = Budgets(self.limits, {**self.spent, name: self.spent.get(name, 0) + 1})
        if budgets.spent[name] > self.limits[name]:
            return budgets, Step.end
        if outcome.unreached:
            return budgets, Step.again
        return budgets, Step.same_pod if name == "failures" else Step.new_pod

    def line(self, outcome: Outcome) -> str:
        """Returns how much of the budget that pays for this outcome is spent, in one line."""
        name = payer(outcome)
        if name is None:
            return ""
        line = f"{self.spent[name]} of {self.limits[name]} cloud.{name} used"
        return line if self.spent[name] <= self.limits[name] else f"{line}; giving up"


def budgets_of(cloud: CloudConfig) -> Budgets:
    return Budgets({name: getattr(cloud, name) for name in ("preemptions", "bad_machines", "failures")})
