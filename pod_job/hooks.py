"""The hooked model and extraction from a notebook, at their public address."""

from pod_job.models import create_model_with_hooks
from pod_job.notebook.extract import extract
from pod_job.notebook.hooked_model import LoadedModel, load_model

__all__ = ["LoadedModel", "create_model_with_hooks", "extract", "load_model"]
