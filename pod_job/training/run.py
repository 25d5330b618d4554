"""A training run on this host: from a source of vectors to SAEs in the run folder."""

import jax
from jax.sharding import Mesh

from pod_job.config.train import taps_of
from pod_job.extraction.feeding import StepRows, feeding
from pod_job.host.reporter import Reporter
from pod_job.host.stop_request import StopRequest
from pod_job.models.mesh import row_sharding
from pod_job.planning.training import TrainInputs
from pod_job.run_folder.status import Phase
from pod_job.training.checkpoint_writer import CheckpointWriter
from pod_job.training.output import write_saes
from pod_job.training.plans import make_trainer
from pod_job.training.run_rows import RunRows
from pod_job.training.sources import RunSource, Source
from pod_job.training.train import Training


def run_source(inputs: TrainInputs, mesh: Mesh) -> RunSource:
    """Returns the rows of the finished run."""
    assert inputs.run is not None
    rows = StepRows(inputs.train.batch_rows, row_sharding(mesh, inputs.config.sharding))
    part = feeding(rows, jax.process_index())
    return RunSource(RunRows(inputs.run, taps_of(inputs.specs), inputs.train.seed), part)


def train(inputs: TrainInputs, source: Source, mesh: Mesh, reporter: Reporter, stop: StopRequest) -> bool:
    """Trains the SAEs and writes them; returns False where a host was asked to stop before their end.

    Raises:
        JobError: a checkpoint is damaged or of other SAEs, or the loss of every SAE is not finite.
    """
    reporter.phase(Phase.statistics)
    trainer = make_trainer(inputs.train, inputs.widths, mesh, inputs.config.sharding)
    index, count = jax.process_index(), jax.process_count()
    with CheckpointWriter(inputs.folder, inputs.train, index, count) as writer:
        training = Training(inputs, source, trainer, writer, reporter)
        begun = training.begin()
        reporter.phase(Phase.training)
        state = training.run(begun, stop)
    if state is None:
        return False
    reporter.phase(Phase.merging)
    write_saes(inputs, trainer, state.trainer, training.seconds)
    return True
