"""Loads SAEs with the library whose layout they are in, and compares what they compute; for the peers' environment.

FOLDER holds folders named `LAYOUT CASE`, each with an SAE and expected.safetensors: rows, latents, output.
"""

# pyright: reportMissingImports=false
import json
import sys
from pathlib import Path

import torch
from dictionary_learning.dictionary import AutoEncoder
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.utils import load_dictionary
from sae_lens import SAE
from safetensors.torch import load_file
from torch import load


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def compared(place: Path) -> float:
    """Returns the largest relative difference of latents and outputs."""
    expected = load_file(place / "expected.safetensors")
    if place.name.startswith("sae-lens"):
        sae = SAE.load_from_disk(place)
    elif "matryoshka" in place.name:  # load_dictionary of this version forgets the groups that this class needs
        state = load(place / "ae.pt")
        sae = MatryoshkaBatchTopKSAE(*state["W_enc"].shape, int(state["k"]), state["group_sizes"].tolist())
        sae.load_state_dict(state)
    else:
        sae, _ = load_dictionary(str(place), "cpu")
    latents, output = sae.encode(expected["rows"]), sae(expected["rows"])
    if type(sae) is AutoEncoder:  # its decoder's rows are normed when it is loaded, and its latents grow by as much
        latents = latents / load(place / "ae.pt")["decoder.weight"].norm(dim=0)
    return max(difference(latents, expected["latents"]), difference(output, expected["output"]))


print(json.dumps({place.name: compared(place) for place in sorted(Path(sys.argv[1]).iterdir())}))
