"""The launcher: plans a job and runs it on a pod, from a workstation; it never imports jax."""
