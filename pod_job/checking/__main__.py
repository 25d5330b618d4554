"""`python -m pod_job.checking OVERRIDES`: computes and stores the reference that comes with a run."""

if __name__ == "__main__":
    from pod_job.entry import run_module

    run_module("pod_job.commands.send_reference")
