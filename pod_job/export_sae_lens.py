"""`python -m pod_job.export_sae_lens`, also `pod-job export-sae-lens`; the exports' public address."""

if __name__ == "__main__":
    from pod_job.entry import run_module

    run_module("pod_job.commands.export_sae_lens")

from pod_job.interop.sae_lens import export_sae_lens, hook_of

__all__ = ["export_sae_lens", "hook_of"]
