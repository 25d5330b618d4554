"""Hosts of a simulated node: each has a home folder, an address in 127.0.0.0/8, an sshd and a metadata server."""

import contextlib
import math
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools import supervisor
from tools.fakepod.metadata import MetadataServer

MARK = "FAKEPOD_HOST"  # variable of every process on a host: the host's home folder
SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/libexec/sftp-server")
START_TIMEOUT_S = 20.0

# Runs at every login. With a file `drop` in the home, one command runs and then its connection breaks.
LOGIN = """\
#!/bin/bash
cd "$HOME" || exit 1
printf '%s\\n' "$SSH_ORIGINAL_COMMAND" >>"$HOME.commands"
if rm drop 2>/dev/null; then
  bash -c "$SSH_ORIGINAL_COMMAND"
  kill -9 $PPID
  sleep 60
fi
exec bash -c "$SSH_ORIGINAL_COMMAND"
"""


class Hosts:
    """Hosts of one node, stopped until `start`; every process on them has the variables `env`."""

    def __init__(
        self, root: Path, addresses: Sequence[str], port: int, authorized_keys: Path, env: Mapping[str, str]
    ) -> None:
        self.addresses = list(addresses)
        self.homes = [root / f"host_{worker:02d}" for worker in range(len(addresses))]
        self.port, self.authorized_keys, self.env = port, authorized_keys, env
        self.sshds: dict[int, subprocess.Popen[bytes]] = {}
        self.metadata: dict[int, MetadataServer] = {}
        self.ssh_delay_s: dict[int, float] = {}
        self.late: list[threading.Timer] = []
        self.lock = threading.Lock()

    def start(self) -> None:
        """Starts all hosts; returns when those accept connections that have no `ssh_delay_s`. One of inf never does."""
        for worker, home in enumerate(self.homes):
            home.mkdir(parents=True)
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{home}.key"], check=True)
            self.metadata[worker] = MetadataServer(self.addresses, worker)
            delay_s = self.ssh_delay_s.get(worker, 0.0)
            if not delay_s:
                self.sshds[worker] = self._start_sshd(worker)
            elif delay_s < math.inf:
                self.late.append(threading.Timer(delay_s, self._start_late, [worker]))
                self.late[-1].start()
        for worker in list(self.sshds):
            self._await_sshd(worker)

    def restart(self, worker: int) -> None:
        """Starts a host again that was killed, with the files that it had; returns when it accepts connections."""
        self._log(worker).unlink()
        self.sshds[worker] = self._start_sshd(worker)
        self._await_sshd(worker)

    def _await_sshd(self, worker: int) -> None:
        deadline, log = time.monotonic() + START_TIMEOUT_S, self._log(worker)
        while not log.exists() or "Server listening" not in log.read_text():
            if self.sshds[worker].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"sshd of host {worker} did not start; see {log}")
            time.sleep(0.02)

    def _log(self, worker: int) -> Path:
        return Path(f"{self.homes[worker]}.sshd.log")

    def stop(self) -> None:
        """Kills every host, as a power cut does; their folders stay."""
        with self.lock:
            for timer in self.late:
                timer.cancel()
            self.late.clear()
        for worker in list(self.sshds):
            self.kill(worker)
        for server in self.metadata.values():
            server.close()
        self.metadata.clear()

    def kill(self, worker: int) -> None:
        """Kills a host: its sshd and all other processes on it."""
        sshd = self.sshds.pop(worker)
        sshd.kill()
        sshd.wait()
        supervisor.release(sshd.pid)
        self.signal(worker, signal.SIGKILL)

    def signal(self, worker: int, signum: signal.Signals, program: bytes = b"") -> None:
        """Signals the processes on the host whose program's path contains `program`, except its sshd."""
        for pid in self.processes(worker, program):
            try:
                os.kill(pid, signum)
            except ProcessLookupError:
                continue

    def processes(self, worker: int, program: bytes = b"") -> list[int]:
        """Returns the processes on the host whose program's path contains `program`."""
        pids = []
        for pid in supervisor.processes_marked(self._mark(worker)):
            with contextlib.suppress(OSError):  # ended meanwhile
                if program in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]:
                    pids.append(pid)
        return pids

    def _mark(self, worker: int) -> str:
        return f"{MARK}={self.homes[worker]}"

    def announce_preemption(self) -> None:
        for server in self.metadata.values():
            server.preempted.set()

    def host_keys(self) -> list[str]:
        return [Path(f"{home}.key.pub").read_text().split()[1] for home in self.homes]

    def drop_next_login(self, worker: int) -> None:
        """Breaks the connection of the next command on this host after the command has run."""
        (self.homes[worker] / "drop").touch()

    def _start_late(self, worker: int) -> None:
        with self.lock:
            if self.late:  # not stopped meanwhile
                self.sshds[worker] = self._start_sshd(worker)

    def _start_sshd(self, worker: int) -> subprocess.Popen[bytes]:
        home, address = self.homes[worker], self.addresses[worker]
        login = Path(f"{home}.login")
        login.write_text(LOGIN)
        login.chmod(0o755)
        env = {**self.env, MARK: str(home), "HOME": str(home), "GCE_METADATA_IP": self.metadata[worker].address}
        settings = " ".join(f'"{name}={value}"' for name, value in env.items())
        config = Path(f"{home}.sshd_config")
        config.write_text(
            f"ListenAddress {address}:{self.port}\nHostKey {home}.key\nPidFile none\nUsePAM no\nStrictModes no\n"
            f"AuthorizedKeysFile {self.authorized_keys}\nPermitRootLogin yes\nPasswordAuthentication no\n"
            f"SetEnv {settings}\nForceCommand {login}\nSubsystem sftp {sftp_server()}\n"
        )
        sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        assert sshd is not None
        # An sshd that runs as root needs this folder, which its service would have made.
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        process = subprocess.Popen(
            [sshd, "-D", "-f", str(config), "-E", str(self._log(worker))],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        supervisor.supervise(process.pid)
        supervisor.supervise_marked(self._mark(worker))
        return process


def sftp_server() -> str:
    return next((path for path in SFTP_SERVERS if Path(path).exists()), "internal-sftp")
