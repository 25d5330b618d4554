"""Model with activation extraction hooks: `from qwen2_jax_with_hooks import create_model_with_hooks`."""

from pod_job.document.qwen2_jax_with_hooks import QwenModelWithActivations, create_model_with_hooks, load_model

__all__ = ["QwenModelWithActivations", "create_model_with_hooks", "load_model"]
