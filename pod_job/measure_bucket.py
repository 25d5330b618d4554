"""`python -m pod_job.measure_bucket`, which `pod-job doctor --measure-bucket` runs on every host."""

if __name__ == "__main__":
    from pod_job.entry import run_module

    run_module("pod_job.commands.measure_bucket")
