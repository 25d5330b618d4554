"""The reference of the parity gate, computed before a pod is paid for and sent along: hosts have no torch."""

import sys
from collections.abc import Callable, Sequence

from launch import shell
from pod_job.checking.reference import why_no_torch
from pod_job.config.generate import Mode
from pod_job.planning.inputs import Inputs


def send_reference(inputs: Inputs, overrides: Sequence[str], log: Callable[[str], None]) -> None:
    """Has Hugging Face's model compute the gate's prompts here, in a process of its own for torch.

    What prevents it is logged and no error: host 0 then has the built-in reference.
    """
    if reason := why_not_sent(inputs):
        log(f"parity: no vectors of Hugging Face's model are sent along: {reason}")
        return
    log("parity: Hugging Face's model computes here what the pod's vectors are held against")
    done = shell.call([sys.executable, "-m", "pod_job.checking", *overrides])
    lines = (done.out if done.code == 0 else done.err).strip().splitlines() or [f"exit status {done.code}"]
    log(f"parity: {lines[-1].removeprefix('error: ')}")


def why_not_sent(inputs: Inputs) -> str | None:
    """Returns why no reference is computed here; None where it is."""
    parity = inputs.config.parity
    if parity.samples == 0 or not parity.send_reference:
        return "parity.samples=0" if parity.samples == 0 else "parity.send_reference=false"
    if inputs.config.mode is Mode.generate:
        return "tokens that are generated are not known before"
    return why_no_torch(inputs)
