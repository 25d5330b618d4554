"""Body of a forked process that a fault may kill: a host of a pod, or a compaction."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import transformers

# Imported before the fork, once for all hosts: imports take most of the time of a start.
import pod_job.job  # noqa: F401
from pod_job import __main__ as entry
from pod_job.commands.command_line import BAD_INPUT
from pod_job.commands.merge import main as merge_main
from tools.chaos.fault import Fault, plant

# transformers imports a class when it is first named.
_ = transformers.PreTrainedTokenizerFast, transformers.AutoTokenizer, transformers.AutoConfig

RETRY_S = 0.1


def host_main(overrides: Sequence[str], env: Mapping[str, str], fault: Fault | None, log: Path) -> None:
    """Runs `python -m pod_job` with these overrides and variables, and exits."""
    set_up(env, log)
    # jax read its variables when it was imported, before the fork.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", int(env["JAX_NUM_CPU_DEVICES"]))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if fault is not None:
        plant(fault)
    status = entry.main(list(overrides))
    sys.stdout.flush()
    if status:
        os._exit(status)
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()  # which os._exit would leave out
    os._exit(0)


def compaction_main(
    arguments: Sequence[str], patient: bool, env: Mapping[str, str], fault: Fault | None, log: Path
) -> None:
    """Runs `pod-job merge` with these arguments and exits; while it is refused, a `patient` one runs it again."""
    set_up(env, log)
    if fault is not None:
        plant(fault)
    while (status := merge_main(list(arguments))) == BAD_INPUT and patient:
        time.sleep(RETRY_S)
    sys.stdout.flush()
    os._exit(status)


def set_up(env: Mapping[str, str], log: Path) -> None:
    """Sets the variables, and appends stdout and stderr to the log."""
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(env)
