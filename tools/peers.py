"""Makes environments of programs that pod_job is used with or compared with: `python -m tools.peers NAME...`.

An environment is made once, in runs/peers/NAME, with pinned versions and, but for circuit-tracer's, this package.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pod_job.commands.command_line import exit_status
from pod_job.errors import JobError

FOLDER = Path("runs/peers")
TORCH = "torch==2.13.0"
PEERS = {
    "trainers": ("sae-lens==6.54.12", "dictionary-learning==0.1.0", "eai-sparsify==1.3.3"),
    "transformer-lens": ("transformer-lens==4.3.0",),
    "nnsight": ("nnsight==0.8.1", "accelerate==1.15.0"),
    "hugging-face": (),
    "circuit-tracer": ("circuit-tracer==0.5.0",),
}
WITHOUT_US = ("circuit-tracer",)
"""Environments without this package, whose transformers they do not go with."""
# A dependency of dictionary-learning's nnsight 0.3; a build that does not match torch's breaks transformers' import.
UNWANTED = "torchvision"


def python_of(name: str) -> Path:
    """Returns the interpreter of the environment, which may not exist yet."""
    return (FOLDER / name / "bin" / "python").absolute()


def is_made(name: str) -> bool:
    return (FOLDER / name / ".installed").exists()


def make(name: str) -> Path:
    """Makes the environment if it does not exist, and returns its interpreter. JobError where an installation fails."""
    if name not in PEERS:
        raise JobError(f"NAME={name}: not one of {', '.join(PEERS)}")
    if not is_made(name):
        _call([sys.executable, "-m", "venv", "--clear", str(FOLDER / name)])
        pip = [str(python_of(name)), "-m", "pip", "--disable-pip-version-check"]
        own = () if name in WITHOUT_US else ("-c", "constraints.txt", "-e", ".[datasets]")
        _call([*pip, "install", "--quiet", TORCH, *PEERS[name], *own])
        _call([*pip, "uninstall", "--quiet", "--yes", UNWANTED])
        (FOLDER / name / ".installed").touch()
    return python_of(name)


def quiet_environment() -> dict[str, str]:
    """Returns the variables of a peer's process: no account, no hub, no progress bars, one CPU device for jax."""
    quiet = {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **quiet, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}


def _call(argv: Sequence[str]) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise JobError(f"{' '.join(argv[1:4])} ... failed: {last_line}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; prints the path of each interpreter."""
    parser = argparse.ArgumentParser(prog="python -m tools.peers", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help=", ".join(PEERS))
    for name in parser.parse_args(argv).names:
        print(make(name))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
