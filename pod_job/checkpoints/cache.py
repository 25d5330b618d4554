"""The folder on this machine for what is derived from models and quickly made again."""

from pathlib import Path


def cache_folder(content: str = "models") -> Path:
    """Returns a folder in the cache of the Hugging Face libraries, which HF_HOME moves."""
    from huggingface_hub import cached_assets_path

    return cached_assets_path("tpu-pod-activations", namespace=content)
