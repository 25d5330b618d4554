"""Weights of Hugging Face's torch models in another dtype, layer by layer and only while they are used. Needs torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from pod_job.checking.hf_modules import decoder_layers

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def stored_dtype(folder: Path) -> torch.dtype | None:
    """Returns the dtype of all tensors in the folder's safetensors files; None where there are several."""
    dtypes = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            dtypes |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  it is no mapping
    return DTYPES.get(dtypes.pop()) if len(dtypes) == 1 else None


@contextmanager
def cast_while_running(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """Lets the model compute in `dtype`: a layer's weights have it while the layer runs, and are then as before.

    Layers share the memory of cast weights, so that the model is never whole in a second dtype.
    """
    layers = decoder_layers(model)
    inside = {module for layer in layers for module in layer.modules()}
    others = [module for module in model.modules() if module not in inside and has_weights(module)]
    shared = WeightSpace(dtype)
    hooks: list[RemovableHandle] = []
    for module in (*layers, *others):
        if type(module) is torch.nn.Embedding:  # rows are cast, which are fewer than the whole table
            hooks.append(module.register_forward_hook(lambda _module, _args, rows: rows.to(dtype)))
            continue
        space = shared if module not in others else WeightSpace(dtype)
        hooks += [module.register_forward_pre_hook(space.cast), module.register_forward_hook(space.restore)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def has_weights(module: torch.nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


class WeightSpace:
    """Memory for cast weights, by their name in a module and their shape; one module at a time has it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.memory: dict[tuple[str, torch.Size], torch.Tensor] = {}
        self.before: list[tuple[torch.nn.Parameter, torch.Tensor]] = []

    def cast(self, module: torch.nn.Module, _args: Any) -> None:
        for name, parameter in module.named_parameters():
            if parameter.dtype == self.dtype:
                continue
            key = (name, parameter.shape)
            if key not in self.memory:
                self.memory[key] = torch.empty(parameter.shape, dtype=self.dtype)
            self.before.append((parameter, parameter.data))
            parameter.data = self.memory[key].copy_(parameter.data)

    def restore(self, _module: torch.nn.Module, _args: Any, _output: Any) -> None:
        for parameter, data in self.before:
            parameter.data = data
        self.before.clear()
