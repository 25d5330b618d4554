"""`python -m pod_job.export`, the same command as `pod-job export`, and `export_pickles` at its public address."""

if __name__ == "__main__":
    from pod_job.entry import run_module

    run_module("pod_job.commands.export")

from pod_job.interop.pickle_export import export_pickles

__all__ = ["export_pickles"]
