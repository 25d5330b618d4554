"""`python -m pod_job.inspect`, the same command as `pod-job inspect`."""

if __name__ == "__main__":
    from pod_job.entry import run_module

    run_module("pod_job.commands.inspect")
