"""The training loop as every host runs it: rows to the trainers, checkpoints and metrics on the way."""

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pod_job.extraction.feeder import from_host_0, on_any_host
from pod_job.host.compile_cache import compile_cache
from pod_job.host.reporter import Reporter
from pod_job.host.stop_request import StopRequest
from pod_job.planning.training import TrainInputs
from pod_job.run_folder.layout import is_residual
from pod_job.run_folder.training import MetricsPoint, SaeMetrics
from pod_job.training.checkpoint_restore import check_same_training, restore
from pod_job.training.checkpoint_writer import CheckpointWriter
from pod_job.training.checkpoints import Checkpoint, complete_checkpoints, latest_checkpoint, remove_after
from pod_job.training.curves import Curves, report
from pod_job.training.group import StepMetrics
from pod_job.training.input_statistics import measure
from pod_job.training.sources import RowBatch, Source, everywhere
from pod_job.training.trainer import Trainer, TrainerState

STEPS_IN_FLIGHT = 2
"""Steps that the devices may be behind the host; each holds its input."""
STEPS_TIMED = 64
"""The last ones, of which the time of one is reported."""
CURVES_S = 10.0
"""Seconds between two writes of the curves."""

log = logging.getLogger("pod_job")


class TrainingState(NamedTuple):
    """Everything that training goes on from: the pytree in a checkpoint.

    Attributes:
        trainer: weights, optimizer and shuffle buffer.
        largest_norms: by tap of the residual stream, norm above which a row is an attention sink.
        position: of the source, after the rows that were taken.
    """

    trainer: TrainerState
    largest_norms: dict[str, Float[Array, ""]]
    position: Any


class Begun(NamedTuple):
    """Beginning of a start: the state, the rows after it, the step, and the seconds that earlier starts took."""

    state: TrainingState
    rows: Iterator[RowBatch]
    step: int
    earlier_s: float


class Training:
    """Training on this host; every host takes the same steps at the same time."""

    def __init__(
        self, inputs: TrainInputs, source: Source, trainer: Trainer, writer: CheckpointWriter, reporter: Reporter
    ) -> None:
        self.inputs, self.source, self.trainer, self.writer, self.reporter = inputs, source, trainer, writer, reporter
        self.train, self.settings = inputs.train, inputs.config.train
        self.began = self.saved_at = self.written_at = time.monotonic()
        self.earlier_s, self.waited_s = 0.0, 0.0
        self.noted: deque[float] = deque(maxlen=STEPS_TIMED)
        self.saved_steps: list[int] = []
        self.compiled: set[str] = set()

    def begin(self) -> Begun:
        """Returns the state of the newest checkpoint, or a new one whose scale and biases are from the first rows.

        Raises:
            JobError: the checkpoint is damaged, or of other SAEs.
        """
        folder, checkpoint = self.inputs.folder, agreed_checkpoint(self.inputs)
        if checkpoint is None:
            return self._begin_new()
        check_same_training(folder, checkpoint, self.train)
        mesh = self.trainer.mesh
        largest = {tap: everywhere(mesh, np.float32(0)) for tap in self.inputs.widths if is_residual(tap)}
        blank = TrainingState(self.trainer.abstract_state, largest, self.source.start)
        state = restore(folder, checkpoint, as_shapes(blank))
        log.info("going on from the checkpoint of step %d", checkpoint.step)
        self.saved_steps = [checkpoint.step]
        return Begun(state, self.source.batches(state.position), checkpoint.step, checkpoint.seconds)

    def _begin_new(self) -> Begun:
        """Returns the first state, with the shuffle buffer filled."""
        first = self.source.batches(self.source.start)
        measured, taken = measure(first, min(self.train.statistics_rows, self.train.rows))
        for tap, of_tap in measured.items():
            log.info("%s: mean norm %.4g of the first %d rows", tap, of_tap.mean_norm, of_tap.rows)
        largest = {tap: of_tap.largest_norm for tap, of_tap in measured.items() if is_residual(tap)}
        state = self.trainer.initial_state({tap: of_tap.statistics for tap, of_tap in measured.items()})
        rows, position = chain(taken, first), self.source.start
        for slot in range(self.trainer.recipe.buffer_steps):
            batch = next(rows)
            valid = without_sinks(batch.vectors, batch.valid, largest)
            with self._compiling("fill"):
                state = self.trainer.fill(state, batch.vectors, valid, np.int32(slot))
            position = batch.position
        return Begun(TrainingState(state, largest, position), rows, 0, 0.0)

    def run(self, begun: Begun, stop: StopRequest) -> TrainingState | None:
        """Takes steps until all are taken; returns the state after the last one, None where a host is asked to stop.

        Raises:
            JobError: the loss of every SAE is lost.
        """
        state, step = begun.state, begun.step
        self.earlier_s, self.began = begun.earlier_s, time.monotonic()
        curves = Curves(self.inputs.folder, [sae.name for sae in self.train.saes], step)
        in_flight: deque[tuple[int, Any]] = deque()
        while step < self.train.steps:
            state, metrics = self._advance(state, step, begun.rows)
            step += 1
            in_flight.append((step, metrics))
            if len(in_flight) > STEPS_IN_FLIGHT:
                self._note(*in_flight.popleft(), curves)
            if self._save_or_stop(step, state, stop):
                break
        while in_flight:
            self._note(*in_flight.popleft(), curves)
        if self.saved_steps[-1:] != [step]:
            self._save(step, state)
        self.writer.finish()
        self._write(curves)
        return state if step == self.train.steps else None

    @property
    def seconds(self) -> float:
        """Seconds of training, those of earlier starts included."""
        return self.earlier_s + time.monotonic() - self.began

    def _advance(
        self, state: TrainingState, step: int, rows: Iterator[RowBatch]
    ) -> tuple[TrainingState, tuple[StepMetrics, ...]]:
        """Returns the state after one more step, and its metrics on the devices; the last steps empty the buffer."""
        slot = step - (self.train.steps - self.trainer.recipe.buffer_steps)
        if slot >= 0:
            with self._compiling("drain"):
                trainer, metrics = self.trainer.drain(state.trainer, np.int32(slot))
            return state._replace(trainer=trainer), metrics
        batch = next(rows)
        valid = without_sinks(batch.vectors, batch.valid, state.largest_norms)
        with self._compiling("step"):
            trainer, metrics = self.trainer.step(state.trainer, batch.vectors, valid)
        return TrainingState(trainer, state.largest_norms, batch.position), metrics

    def _compiling(self, program: str) -> AbstractContextManager[None]:
        """Returns the cache of compiled programs for the first call of one, so that a restart compiles nothing."""
        if program in self.compiled:
            return nullcontext()
        self.compiled.add(program)
        return compile_cache(self.inputs.config.storage.compile_cache)

    def _note(self, step: int, metrics: tuple[StepMetrics, ...], curves: Curves) -> None:
        """Waits for a step, counts it and, if it is one of those, adds its metrics to the curves."""
        jax.block_until_ready(metrics)
        waited_s, self.waited_s = self.source.waited_s - self.waited_s, self.source.waited_s
        self.reporter.waited(waited_s > 0, waited_s)
        self.reporter.add(steps=1, tokens=self.train.batch_rows // jax.process_count())
        now = time.monotonic()
        self.noted.append(now)
        # From the end of a first step on, which is compiled; several steps may take their rows from one forward pass.
        step_s = (now - self.noted[0]) / max(1, len(self.noted) - 1)
        self.reporter.set(seconds=now - self.began, step_s=step_s)
        if step % self.settings.log_steps and step != self.train.steps:
            return
        saes, frozen_at = self._measured(metrics)
        report(self.reporter, step, self.train.steps, saes)
        point = MetricsPoint(step, step * self.train.batch_rows, round(self.seconds, 3), saes)
        curves.add(point, frozen_at, self.saved_steps)
        if time.monotonic() - self.written_at > CURVES_S:
            self._write(curves)

    def _measured(self, metrics: tuple[StepMetrics, ...]) -> tuple[list[SaeMetrics], dict[str, int]]:
        """Returns the metrics of each SAE in the order of the configuration, and the steps at which some were lost."""
        by_name, lost = {}, {}
        for group, measured in zip(self.trainer.groups, jax.device_get(metrics), strict=True):
            for i, plan in enumerate(group.plans):
                by_name[plan.name] = SaeMetrics(
                    loss=float(measured.loss[i]),
                    l0=float(measured.l0[i]),
                    explained_variance=float(measured.explained_variance[i]),
                    dead=float(measured.dead_share[i]),
                )
                if measured.frozen_at[i] >= 0:
                    lost[plan.name] = int(measured.frozen_at[i])
        return [by_name[sae.name] for sae in self.train.saes], lost

    def _write(self, curves: Curves) -> None:
        if jax.process_index() == 0:
            self.written_at = time.monotonic()
            curves.write()

    def _save_or_stop(self, step: int, state: TrainingState, stop: StopRequest) -> bool:
        """Saves a checkpoint where one is due; returns whether any host is asked to stop.

        Hosts agree every few steps only, as it takes them a message.
        """
        settings = self.settings
        if settings.checkpoint_steps is not None and step % settings.checkpoint_steps == 0:
            self._save(step, state)
        if jax.process_count() > 1 and step % settings.log_steps:
            return False
        due = settings.checkpoint_steps is None and time.monotonic() - self.saved_at > settings.checkpoint_s
        stopping, saving = on_any_host([bool(stop), due and jax.process_index() == 0 and not self.writer.busy])
        if saving and not stopping:
            self._save(step, state)
        return stopping

    def _save(self, step: int, state: TrainingState) -> None:
        self.writer.save(step, self.seconds, state)
        self.saved_at = time.monotonic()
        self.saved_steps.append(step)


@jax.jit
def without_sinks(
    vectors: dict[str, Array], valid: Bool[Array, "N"], largest_norms: dict[str, Float[Array, ""]]
) -> Bool[Array, "N"]:
    """Returns the valid rows that are attention sinks in no tap."""
    for tap, largest in largest_norms.items():
        valid &= jnp.linalg.norm(vectors[tap].astype(jnp.float32), axis=1) <= largest
    return valid


def agreed_checkpoint(inputs: TrainInputs) -> Checkpoint | None:
    """Returns the newest complete checkpoint, as host 0 sees it, which removes what is left of later ones."""
    step = -1
    if jax.process_index() == 0:
        newest = latest_checkpoint(inputs.folder)
        step = newest.step if newest else -1
        remove_after(inputs.folder, step)
    step = int(from_host_0(np.array(step, np.int32)))
    return {checkpoint.step: checkpoint for checkpoint in complete_checkpoints(inputs.folder)}.get(step)


def as_shapes(state: Any) -> Any:
    """Returns the shapes and shardings of a pytree of arrays."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
