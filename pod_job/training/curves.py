"""Metrics of training on their way to people: curves in the run folder, the live line, and SAEs whose loss is lost."""

import logging
import math
from collections.abc import Collection, Mapping, Sequence

from pod_job.errors import JobError
from pod_job.host.reporter import Reporter
from pod_job.run_folder.status import TrainingStatus
from pod_job.run_folder.training import LostSae, MetricsPoint, MetricsRecord, SaeMetrics, read_metrics, write_metrics
from pod_job.storage.folder import Folder

log = logging.getLogger("pod_job")


class Curves:
    """Points of all SAEs so far; host 0 writes them with `write`."""

    def __init__(self, folder: Folder, names: Sequence[str], step: int) -> None:
        """Goes on after `step`; later points of an earlier start are made again."""
        self.folder = folder
        earlier = read_metrics(folder) if step else None
        fresh = MetricsRecord(1, list(names), [])
        self.record = earlier.up_to(step) if earlier is not None and earlier.names == list(names) else fresh
        self.lost: dict[str, LostSae] = {}

    def add(self, point: MetricsPoint, frozen_at: Mapping[str, int], checkpoints: Collection[int] = ()) -> None:
        """Adds a point.

        Args:
            frozen_at: by SAE, the step whose loss or gradient was not finite, so that it stays as it was before.
            checkpoints: steps that were saved.
        Raises:
            JobError: that is so of every SAE.
        """
        self.record = self.record.with_point(point)
        for name, step in frozen_at.items():
            if name not in self.lost:
                self.lost[name] = LostSae(name, step)
                log.warning(
                    "%s: its loss is not finite at step %d; it stays as it was before, the others go on; %s",
                    *(name, step, last_good(step, checkpoints)),
                )
        if len(self.lost) == len(self.record.names):
            first = min(self.lost.values(), key=lambda lost: lost.step)
            alone, good = f"of {first.name} is not finite", last_good(first.step, checkpoints)
            whose = alone if len(self.lost) == 1 else f"of all {len(self.lost)} SAEs is not finite, of {first.name}"
            raise JobError(
                f"train.saes: the loss {whose} since step {first.step} ({good}); lower learning_rate, or raise "
                "train.warmup_steps, with another storage.run_dir"
            )

    def write(self) -> None:
        write_metrics(self.folder, self.record)

    @property
    def last(self) -> list[SaeMetrics]:
        """Metrics of each SAE at the last point; there must be one."""
        return self.record.points[-1].saes


def last_good(step: int, checkpoints: Collection[int]) -> str:
    """Returns in words which checkpoint is the last one before a step."""
    before = max((saved for saved in checkpoints if saved <= step), default=None)
    return "no checkpoint is from before" if before is None else f"the last good checkpoint is of step {before}"


def report(reporter: Reporter, step: int, steps: int, saes: Sequence[SaeMetrics]) -> None:
    """Shows the means of the metrics of all SAEs whose loss is finite."""
    finite = [sae for sae in saes if math.isfinite(sae.loss)]
    means = {
        name: sum(getattr(sae, name) for sae in finite) / len(finite) for name in SaeMetrics.__struct_fields__ if finite
    }
    stored = reporter.status.training is not None and reporter.status.training.stored
    reporter.set(training=TrainingStatus(step=step, steps=steps, stored=stored, **means))
