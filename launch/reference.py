"""The reference of the parity gate, computed before a pod is paid for and sent along: hosts have no torch."""

import sys
from collections.abc import Callable, Sequence

from launch import shell
from pod_job.checking.gate_prompts import gate_prompts
from pod_job.checking.reference import why_no_torch
from pod_job.checking.shipped import why_too_large
from pod_job.config.generate import Mode
from pod_job.config.schema import PodKind
from pod_job.planning.inputs import Inputs, Outline
from pod_job.planning.training import JobInputs, TrainInputs

MODEL = "Hugging Face's model in torch"
BUILT_IN = "the built-in decoder in NumPy"


def send_reference(inputs: JobInputs, overrides: Sequence[str], log: Callable[[str], None]) -> None:
    """Has Hugging Face's model compute the gate's prompts here, in a process of its own for torch.

    What prevents it is logged and no error: host 0 then has the built-in reference.
    """
    reads_prompts = inputs.stream if isinstance(inputs, TrainInputs) else inputs
    if reads_prompts is None:  # vectors of a finished run, which were held against theirs
        return
    if reason := why_not_sent(reads_prompts):
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
    return why_no_torch(inputs) or why_too_large(inputs, [prompt.token_ids for prompt in gate_prompts(inputs)])


def expected_reference(run: Inputs | Outline) -> str:
    """Returns what vectors will be held against before a run stores any, in one line for people."""
    config = run.config
    if config.parity.samples == 0:
        return "none: parity.samples=0"
    if not isinstance(run, Inputs):
        return "not known without weights"
    if config.pod.kind is not PodKind.tpu:
        reason = why_no_torch(run)
        return f"{MODEL}, on host 0" if reason is None else f"{BUILT_IN}: {reason}"
    if reason := why_not_sent(run):
        return f"{BUILT_IN}, unless host 0 has torch; none is sent along: {reason}"
    return f"{MODEL}, computed where `pod-job run` is started and sent along"
