"""`python -m pod_job.merge`, the same command as `pod-job merge`, and `merge` at its public address."""

if __name__ == "__main__":
    from pod_job.entry import run_module

    run_module("pod_job.commands.merge")

from pod_job.finishing.merge import merge

__all__ = ["merge"]
