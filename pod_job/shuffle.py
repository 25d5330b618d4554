"""`python -m pod_job.shuffle`, the same command as `pod-job shuffle`, and `shuffle` at its public address."""

if __name__ == "__main__":
    from pod_job.entry import run_module

    run_module("pod_job.commands.shuffle")

from pod_job.finishing.shuffle import shuffle

__all__ = ["shuffle"]
