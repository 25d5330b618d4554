"""`create_model_with_hooks` and `load_model` at their public address."""

from pod_job.document.hooked_model import load_model
from pod_job.models import create_model_with_hooks

__all__ = ["create_model_with_hooks", "load_model"]
