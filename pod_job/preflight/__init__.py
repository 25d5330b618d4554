"""What a job will take on a TPU pod, from the TPU's own compiler, before anyone pays."""
