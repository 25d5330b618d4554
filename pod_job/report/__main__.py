"""`python -m pod_job.report`, the same command as `pod-job report`."""

if __name__ == "__main__":
    from pod_job.entry import run_module

    run_module("pod_job.commands.report")
