"""`python -m pod_job.import_pickles`, also `pod-job import`; `import_pickles` at its public address."""

if __name__ == "__main__":
    from pod_job.entry import run_module

    run_module("pod_job.commands.import_pickles")

from pod_job.interop.pickle_import import import_pickles

__all__ = ["import_pickles"]
