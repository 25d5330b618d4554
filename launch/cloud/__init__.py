"""Pods on Cloud TPU: gcloud commands, capacity, remote execution, observation."""
