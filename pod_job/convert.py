"""`python -m pod_job.convert`, the same command as `pod-job convert`, and `convert` at its public address."""

if __name__ == "__main__":
    from pod_job.entry import run_module

    run_module("pod_job.commands.convert")

from pod_job.checkpoints.convert import convert

__all__ = ["convert"]
