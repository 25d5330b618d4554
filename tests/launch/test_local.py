"""A local pod leaves no process behind, whatever its hosts do, and says which host failed first."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

from launch.host_commands import HostCommand

ROOT = Path(__file__).parent.parent.parent
ATTEMPT = "20250101T000000Z-abcdef"


def python(program: str, *args: str) -> HostCommand:
    return HostCommand([sys.executable, "-c", textwrap.dedent(program), *args], {"PYTHONPATH": str(ROOT)})


def hang() -> HostCommand:
    return python("import time; time.sleep(600)")


def hang_deaf() -> HostCommand:
    return python(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )


def speak(host: int, phase: str, error: str | None = None, code: int = 0) -> HostCommand:
    """A host that writes one status and exits."""
    program = """
        import sys
        from pathlib import Path
        from launch import __main__ as command
        from launch.host_commands import HostCommand
        from launch.local import LocalPod, follow, stopped_by_signals
        from launch.verbs import run
        def hold(config, options, failures):
            host = HostCommand(["sh", "-c", "echo $$; exec sleep 600"])
            with stopped_by_signals(), LocalPod([host], Path(sys.argv[1])) as pod:
                return len(follow(pod, lambda: None))
        run.run_here = hold
        sys.exit(command.main(["run", "experiment=demo"]))
        """
    launcher = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "host_00.log"
    wait_until(lambda: log.exists() and log.read_text().strip() != "")
    launcher.terminate()
    _, said = launcher.communicate(timeout=20)
    assert launcher.returncode == 128 + signal.SIGTERM
    assert said.startswith("stopped by SIGTERM")
    assert not is_running(int(log.read_text()))
