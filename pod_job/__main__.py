"""`python -m pod_job experiment=NAME key=value ...`: the entrypoint on every host.

Exit status: 0 done or stopped as asked, 2 an end that one line explains (bad input, or another host that failed),
1 anything else (traceback); an engine that starts jobs again may name another for ends after which a restart may do,
POD_JOB_RESTART_STATUS. People start it by `pod-job run`.
"""

import atexit
import faulthandler
import logging
import os
import sys
import traceback

from pod_job.entry import check_python


def main(overrides: list[str]) -> int:
    """Runs this host's part of the job; returns the exit status."""
    check_python()
    if {"-h", "--help"} & set(overrides):
        print(__doc__)
        return 0
    from pod_job.terminal import escaped_output

    with escaped_output():
        return run_logged(overrides)


def run_logged(overrides: list[str]) -> int:
    """Runs the job with its log on stdout; returns the exit status."""
    from pod_job.config.load import load
    from pod_job.errors import JobError
    from pod_job.host.host_end import host_end_of, restart_status
    from pod_job.run_folder.status import EndKind
    from pod_job.terminal import LineFormatter, error_line

    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.raiseExceptions = False  # a job goes on without its log, where that has no place left
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        config = load(overrides)
        from pod_job.job import run  # jax, only once the configuration is sound

        complete = run(config)
    except JobError as error:
        print(f"error: {error_line(error)}", file=sys.stderr)
        return restart_status(host_end_of(error).kind) or 2
    except Exception as error:
        traceback.print_exc()
        return restart_status(host_end_of(error).kind) or 1
    return 0 if complete else restart_status(EndKind.stopped) or 0


def run_to_exit(overrides: list[str]) -> None:
    """Runs this host's part of the job as the last thing that this process does."""
    faulthandler.enable()  # a crash in compiled code leaves the stacks of all threads in the log
    ended: list[int] = []
    # Registered before jax is imported, whose own function, which waits for peers, then comes first.
    atexit.register(lambda: [end_process(status) for status in ended])
    status = main(overrides)
    if status:
        # jax waits at exit for peers that will never finish; the reason is already in status/ and the log.
        end_process(status)
    ended.append(status)


def end_process(status: int) -> None:
    """Ends the process without taking the interpreter down: threads may still be in compiled code, and would crash."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    run_to_exit(sys.argv[1:])
