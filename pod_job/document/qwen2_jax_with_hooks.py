"""The model with activation extraction hooks, by the names that the extraction document gives it.

`load_model` loads real weights. Llama, Mistral, Qwen3 and Gemma models are loaded as Qwen2's are.
"""

from pod_job.models import create_model_with_hooks
from pod_job.models.decoder import Decoder as QwenModelWithActivations
from pod_job.notebook.hooked_model import LoadedModel, load_model

__all__ = ["LoadedModel", "QwenModelWithActivations", "create_model_with_hooks", "load_model"]
