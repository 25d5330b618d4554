"""`python -m pod_job.verify`, the same command as `pod-job verify`, and `verify` at its public address."""

if __name__ == "__main__":
    from pod_job.entry import run_module

    run_module("pod_job.commands.verify")

from pod_job.checking.verify import verify

__all__ = ["verify"]
