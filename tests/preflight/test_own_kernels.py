"""This package's own kernels can be left out: by `model.kernels=false` XLA makes the programs alone."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable

import pytest

LOWER = """
import os
from pod_job import environment
os.environ.update(environment.COMPILE_ONLY)
import jax, jax.numpy as jnp
from pod_job.config.schema import MeshConfig, Sharding
from pod_job.models.arch import read_arch
from pod_job.models.decoder import Decoder
from pod_job.models.mesh import make_mesh, placement, weight_shardings
from pod_job.models.taps import resolve
from pod_job.models.weight_table import weight_table
from pod_job.preflight.pod_devices import pod_devices
from pod_job.preflight.tpu_facts import read_accelerator_type
from tools.tiny_model import TinyModel
sizes = dict(layers=1, hidden=2048, heads=2, kv_heads=2, head_dim=128, mlp=128)
arch = read_arch(TinyModel("qwen3_moe", **sizes).config())
devices, table = pod_devices(read_accelerator_type("v6e-8")), weight_table(arch)
ids = jax.ShapeDtypeStruct((8, 512), jnp.int32)
cases = [("replicated", True, ["layer_0"]), ("replicated", True, ["layer_0.mlp_out"]), ("tensor", True, ["layer_0"])]
for sharding, kernels, taps in [*cases, ("replicated", False, ["layer_0"])]:
    split = Sharding(sharding)
    mesh = make_mesh(MeshConfig(data=4, model=2), devices)
    shardings = weight_shardings(mesh, split, table)
    params = {n: jax.ShapeDtypeStruct(w.shape, jnp.bfloat16, sharding=shardings[n]) for n, w in table.items()}
    where = placement(mesh, split, shardings, kernels)
    model = Decoder(arch, resolve(None, taps, arch), jnp.bfloat16, where)
    apply = jax.jit(lambda params, ids: model.apply({"params": params}, ids, return_activations=True))
    text = apply.lower(params, ids).as_text()
    names = ("mixture_of_experts", "stream_with_experts", "projected_heads")
    print(sharding, kernels, *taps, *(name for name in names if name in text))
"""


@pytest.fixture(autouse=True)
def libtpu(require: Callable[[bool, str], None]) -> None:
    require(importlib.util.find_spec("libtpu") is not None, "libtpu (pip install .[preflight])")


def test_own_kernels_are_used_where_they_fit_unless_left_out() -> None:
    done = subprocess.run([sys.executable, "-c", LOWER], capture_output=True, text=True, timeout=200)
    assert done.stdout.splitlines()[-4:] == [
        "replicated True layer_0 stream_with_experts projected_heads",
        "replicated True layer_0.mlp_out mixture_of_experts projected_heads",
        "tensor True layer_0 mixture_of_experts projected_heads",
        "replicated False layer_0",
    ], done.stderr
