"""`python -m pod_job.diff`, the same command as `pod-job diff`."""

if __name__ == "__main__":
    from pod_job.entry import run_module

    run_module("pod_job.commands.diff")
