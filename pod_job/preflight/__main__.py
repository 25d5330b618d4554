"""`python -m pod_job.preflight`, the same command as `pod-job preflight`."""

if __name__ == "__main__":
    from pod_job.entry import run_module

    run_module("pod_job.commands.preflight")
