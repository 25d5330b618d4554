"""Loads transcoders with circuit-tracer and compares what they compute, as load_layouts.py does for others."""

# pyright: reportMissingImports=false
import json
import sys
from pathlib import Path

import torch
import yaml
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
from safetensors.torch import load_file


@torch.no_grad()
def compared(place: Path) -> float:
    """Returns the largest relative difference of latents and outputs."""
    expected, config = load_file(place / "expected.safetensors"), yaml.safe_load((place / "config.yaml").read_text())
    hooks = config["feature_input_hook"], config["feature_output_hook"]
    layers = {0: str(place / "layer_0.safetensors")}
    transcoder = load_transcoder_set(layers, "test", *hooks, device=torch.device("cpu"), dtype=torch.float32)[0]
    latents = transcoder.encode(expected["rows"])
    outputs = transcoder.decode(latents, expected["rows"])
    pairs = ((latents, expected["latents"]), (outputs, expected["output"]))
    return max(float((found - wanted).abs().max() / wanted.abs().max()) for found, wanted in pairs)


print(json.dumps({place.name: compared(place) for place in sorted(Path(sys.argv[1]).iterdir())}))
