"""Forecast of a job's memory, time and cost on a TPU pod, by the TPU's own compiler, before anyone pays."""
