"""Rows of each device that a run takes where extract.rows_per_device=0 leaves them to be chosen. No jax."""

import os
from typing import TypeVar

from pod_job.config.schema import PodKind
from pod_job.errors import JobError
from pod_job.planning.inputs import Sizes
from pod_job.planning.memory import MOST_LOCAL_ROWS, with_fitting_rows
from pod_job.preflight.tpu_facts import read_accelerator_type

Run = TypeVar("Run", bound=Sizes)


def with_chosen_rows(run: Run) -> Run:
    """Returns the run with as many rows as fit on each device, where its configuration leaves them to be chosen.

    A TPU chip counts with its whole memory, and so does this machine, which its devices share: what is free changes.

    Raises:
        JobError: the memory of a chip is not known.
    """
    pod = run.config.pod
    if run.config.extract.rows_per_device:
        return run
    if pod.kind is PodKind.local:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return with_fitting_rows(run, machine // pod.devices, MOST_LOCAL_ROWS)
    if pod.accelerator_type is None:
        raise JobError(
            "extract.rows_per_device=0 is as many as fit, and without pod.accelerator_type the memory of a chip is not "
            "known; give the number of rows, or the type"
        )
    return with_fitting_rows(run, read_accelerator_type(pod.accelerator_type).chip.hbm_bytes)
