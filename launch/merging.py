"""End of a run whose batches are all committed: what describes them is written from here, without a host."""

from launch.view.timed_log import Log
from pod_job.config.generate import Mode
from pod_job.errors import JobError
from pod_job.finishing.merge import merge
from pod_job.generation.predictions import write_predictions
from pod_job.planning.batches import total_batches
from pod_job.planning.inputs import Inputs
from pod_job.planning.training import JobInputs, is_complete
from pod_job.run_folder.identity import read_run
from pod_job.run_folder.layout import RUN, committed
from pod_job.storage.folder import exists


def completed(inputs: JobInputs, log: Log) -> bool:
    """Returns whether the run is complete; where all its batches are committed, it is merged for that.

    False also where the merge fails, which is logged: hosts that are started again fail at it too, and say why.

    Raises:
        JobError: what describes a finished run is damaged.
    """
    folder, mode = inputs.folder, inputs.config.mode
    if is_complete(folder, mode):
        return True
    if mode is Mode.train or not exists(folder, RUN):
        return False
    identity = read_run(folder).identity
    total = total_batches(identity.tasks.samples, identity.save_every_n_samples)
    if len(committed(folder)) < total:
        return False
    log(f"all {total:,} batches are committed: merging them from here")
    try:
        if mode is Mode.generate:
            assert isinstance(inputs, Inputs)
            write_predictions(folder, total, inputs.tasks_config)
        return merge(folder).complete
    except JobError as error:
        log(f"merging failed: {error}")
        return False
