"""`python -m tools.fakepod ROOT MODEL COMMAND...`: runs a command in a simulated cloud with a bucket.

The command's environment has gcloud set up, the bucket gs://rehearsal, and the variables that
conf/experiment/rehearsal.yaml refers to: FAKEPOD_SSH_PORT (the port of every host's sshd), FAKEPOD_MODEL and
FAKEPOD_PYTHON. The cloud and the bucket server end with the command.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from pod_job.errors import JobError
from tools.bucket import bucket_server
from tools.fakepod import fakepod, fakepod_available
from tools.fakepod.lean_python import lean_python

BUCKET = "rehearsal"


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status of COMMAND."""
    parser = argparse.ArgumentParser(prog="python -m tools.fakepod", description=__doc__)
    parser.add_argument("root", type=Path, help="folder for buckets, homes and logs; it is emptied first")
    parser.add_argument("model", type=Path, help="a model's folder, for this machine and the hosts")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run; a shell if left out")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # contexts are left, so that hosts end
    command = options.command or [os.environ.get("SHELL", "sh")]
    try:
        return rehearse(options.root.absolute(), options.model.absolute(), command)
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def rehearse(root: Path, model: Path, command: list[str]) -> int:
    """Runs `command` beside the cloud and the bucket, whose files are under `root`; returns its exit status."""
    if reason := fakepod_available():
        raise JobError(f"fakepod: the simulated cloud needs {reason}")
    if root.exists() and not (root / "cloud").exists() and any(root.iterdir()):
        raise JobError(f"root={root} holds other files; use an empty folder or one of an earlier rehearsal")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    with bucket_server(root / "buckets", BUCKET) as endpoint:
        variables = {"FAKEPOD_MODEL": str(model), "FAKEPOD_PYTHON": str(lean_python(root / "python"))}
        with fakepod(root / "cloud", variables | {"JAX_NUM_CPU_DEVICES": "1"}, endpoint) as world:
            env = {**os.environ, **world.env, **variables, "FAKEPOD_SSH_PORT": str(world.ssh_port)}
            return subprocess.run(command, env=env).returncode


if __name__ == "__main__":
    sys.exit(main())
