"""A simulated cloud and a bucket for rehearsals, in which the real launcher starts jobs in processes of their own."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from systemd_unit import Unit, read_unit

from pod_job.run_folder import layout
from tools.bucket import bucket_server
from tools.fakepod import World, fakepod
from tools.fakepod.hosts import Hosts
from tools.fakepod.lean_python import lean_python
from tools.tiny_model import write_tiny_model

ROOT = Path(__file__).parent.parent
BUCKET = "rehearsal"
ZONE, OTHER_ZONE = "us-west4-a", "us-west4-b"
CORES_PER_VM = 8  # of a v4, the TPU that can have two VMs
PROMPTS = 44  # of the sample tasks
PER_BATCH = 4
HANGS_S = 400.0  # what takes longer hangs, however busy the machine is

# Records the arguments of gcloud, then runs it.
RECORDING_GCLOUD = """\
#!/bin/bash
printf '%q ' "$@" >>{log}
echo >>{log}
exec {gcloud} "$@"
"""


@dataclass(frozen=True)
class Rehearsal:
    """A cloud, a bucket and a model. A run named R is on the pod `pod-R`."""

    world: World
    root: Path
    model: Path
    python: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def job(self, run: str, hosts: int, *more: str) -> list[str]:
        """Returns overrides of a small job on a pod of `hosts` workers with one device each."""
        return [
            "parity.send_reference=false",  # which takes torch seconds to import
            *("experiment=v5e64", f"model.path={self.model}", "model.dtype=float32", "tasks=arc_sample"),
            *("extract.layers=[1,3]", "extract.dtype=float32", "extract.seq_len=128", "extract.too_long=tail"),
            *(f"extract.save_every_n_samples={PER_BATCH}", f"storage.run_dir=gs://{BUCKET}/{run}"),
            f"storage.compile_cache={self.root}/compiled",
            *(f"pod.accelerator_type=v4-{hosts * CORES_PER_VM}", f"pod.hosts={hosts}", "cloud.shared_folders=[/]"),
            "pod.runtime_version=tpu-ubuntu2204-base",
            *("pod.devices_per_host=1", f"mesh.data={hosts}", "mesh.model=1", f"cloud.name={self.pod(run)}"),
            *(f"cloud.zones=[{ZONE},{OTHER_ZONE}]", "cloud.internal_ip=true", f"cloud.python={self.python}"),
            *(f"cloud.ssh_flags=['-oPort={self.world.ssh_port}']", *more),
        ]

    def pod(self, run: str) -> str:
        return f"pod-{run}"

    def hosts(self, run: str) -> Hosts:
        """Returns the machines of a run's pod."""
        return self.world.hosts(self.pod(run))

    def wait_for_hosts(self, run: str, timeout_s: float = HANGS_S) -> Hosts:
        """Returns the machines of a run's pod once they exist."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for name, machines in list(self.world.cloud.machines.items()):
                if name.endswith(f"/{self.pod(run)}") and isinstance(machines, Hosts) and machines.homes[-1].is_dir():
                    return machines
            time.sleep(0.05)
        raise AssertionError(f"no pod of {run} after {timeout_s} s")

    def signal_job(self, run: str, worker: int, signum: signal.Signals) -> None:
        """Signals the job's own process on a worker, if there is one."""
        if any(name.endswith(f"/{self.pod(run)}") for name in list(self.world.cloud.machines)):
            self.hosts(run).signal(worker, signum, program=b"python")

    @property
    def env(self) -> dict[str, str]:
        path = f"{self.root}:{os.environ['PATH']}"
        return {**os.environ, **self.world.env, "PYTHONPATH": str(ROOT), "PATH": path}

    @property
    def variables_of_a_vm(self) -> dict[str, str]:
        """Variables of a service on a machine in this cloud, without those of a person's shell."""
        path = f"{self.root}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
        return {**self.world.env, "PYTHONPATH": str(ROOT), "PATH": path}

    def unit(self, checkout: Path, job: Sequence[str]) -> Unit:
        """Returns the unit that `manifest` writes for a job, with this program in `checkout`."""
        program = checkout / ".venv" / "bin" / "pod-job"
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m launch "$@"\n')
        program.chmod(0o755)
        (checkout / "tests").symlink_to(ROOT / "tests")  # where the sample tasks are
        return read_unit(self.launch("manifest", "--for", "systemd", "--checkout", str(checkout), *job)[0])

    def start(self, verb: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """Starts `python -m launch VERB ...` in a process of its own."""
        pipe = subprocess.PIPE
        # These pods have fewer devices than the slices they are named after.
        unchecked = ["--no-preflight"] if verb in ("up", "run", "watch") else []
        command = [sys.executable, "-m", "launch", verb, *arguments, *unchecked]
        process = subprocess.Popen(
            command, cwd=ROOT, env=self.env | env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
        )
        self.started.append(process)
        return process

    def end(self) -> None:
        """Ends launchers that a failed test has left, so that they take no time from the tests after it."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.communicate()

    def launch(self, verb: str, *arguments: str, status: int = 0, **env: str) -> tuple[str, str]:
        """Runs a verb to its end, which must have that exit status; returns (stdout, stderr)."""
        process = self.start(verb, *arguments, **env)
        out, err = process.communicate(timeout=HANGS_S)
        assert process.returncode == status, f"{verb}: {process.returncode}\n{out}\n{err}"
        return out, err

    def commands(self) -> list[list[str]]:
        """Returns the arguments of every gcloud so far."""
        return [shlex.split(line) for line in (self.root / "commands.log").read_text().splitlines()]

    def commands_of(self, pod: str, verb: str) -> list[list[str]]:
        """Returns the arguments of every gcloud so far with this verb and pod."""
        return [argv for argv in self.commands() if {verb, pod} <= set(argv)]

    def folder(self, run: str) -> Path:
        """Returns a run folder as the bucket's server stores it: plain files."""
        return self.root / "buckets" / BUCKET / run

    def records(self, run: str) -> int:
        """Returns the number of committed batches of a run."""
        return len(list((self.folder(run) / layout.COMMITS).glob("*.json")))

    def wait_for_records(
        self, run: str, count: int, launcher: subprocess.Popen[str] | None = None, timeout_s: float = HANGS_S
    ) -> float:
        """Waits until `count` batches are committed, as long as `launcher` lives; returns the Unix time."""
        deadline = time.monotonic() + timeout_s
        while self.records(run) < count:
            assert launcher is None or launcher.poll() is None, launcher.communicate()
            assert time.monotonic() < deadline, f"{self.records(run)} of {count} batches after {timeout_s} s"
            time.sleep(0.05)
        return time.time()


@contextmanager
def rehearsal(root: Path) -> Iterator[Rehearsal]:
    """Starts the bucket and the cloud, and ends them when the context is left."""
    model = write_tiny_model(root / "model", layers=4)
    gcloud = root / "gcloud"
    gcloud.write_text(RECORDING_GCLOUD.format(log=root / "commands.log", gcloud=shutil.which("gcloud")))
    gcloud.chmod(0o755)
    # Compiled quickly: how fast the program is does not matter here.
    hosts = {"JAX_NUM_CPU_DEVICES": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    with bucket_server(root / "buckets", BUCKET) as url, fakepod(root / "cloud", hosts, url) as world:
        stage = Rehearsal(world, root, model, lean_python(root / "python"))
        try:
            yield stage
        finally:
            stage.end()


def secret_seen(paths: Sequence[Path], secret: str) -> list[Path]:
    """Returns the files at or below `paths` that contain the secret."""
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    seen = []
    for file in files:
        with suppress(FileNotFoundError):  # temporary files of the bucket's server come and go
            seen += [file] if secret.encode() in file.read_bytes() else []
    return seen
