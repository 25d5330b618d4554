"""The end of a host's process: what it leaves in the log, and that the interpreter is not taken down around threads."""

import subprocess
import sys
import textwrap


def end_of(job: str) -> subprocess.CompletedProcess[str]:
    """Runs `run_to_exit` in a process of its own with `job` as the body of the job."""
    program = f"""
        import atexit, faulthandler, sys
        from pod_job import __main__ as entry
        class Last:
            def __del__(self):
                print("torn down", flush=True)
        last = Last()
        def job(overrides):
            {job}
        entry.main = job
        entry.run_to_exit([])
        """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_crash_in_compiled_code_leaves_the_stacks_of_all_threads() -> None:
    ended = end_of("faulthandler._sigsegv()")
    assert ended.returncode < 0
    assert "Segmentation fault" in ended.stderr
    assert "in job" in ended.stderr


def test_what_libraries_registered_runs_and_the_interpreter_is_not_torn_down() -> None:
    ended = end_of("atexit.register(print, 'peers are done'); print('done', end=''); return 0")
    assert (ended.returncode, ended.stdout) == (0, "donepeers are done\n")


def test_a_failure_waits_for_nobody() -> None:
    ended = end_of("atexit.register(print, 'peers are done'); return 2")
    assert (ended.returncode, ended.stdout) == (2, "")


def test_what_ends_the_job_itself_keeps_its_status() -> None:
    ended = end_of("sys.exit(2)")
    assert (ended.returncode, ended.stdout) == (2, "torn down\n")
