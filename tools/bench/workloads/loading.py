"""Loading a model: host memory, time and bytes read of each host, from a folder, a bucket and converted.

A random checkpoint is loaded by one process, and by four of which each holds its share. The memory that counts is what
a host's peak has beyond what it held after reading the headers.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np

from launch.local import coordinator_address
from pod_job.environment import STORAGE_EMULATOR, local_host
from pod_job.storage.folder import Readable
from pod_job.storage.open import open_folder
from tools.bench.cases import BUCKET
from tools.bench.work import Metrics, Work, measured, status_bytes
from tools.tiny_model import write_tiny_model

ROOT = Path(__file__).parent.parent.parent.parent


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The checkpoint: a random one of 2.04 GB where nothing is at this path yet."""

    model: str = "runs/models/random-2gb"
    layers: int = 14
    dtype: str = "float32"


class CountingFolder:
    """A folder that counts the bytes read from it."""

    def __init__(self, folder: Readable) -> None:
        self.folder, self.url, self.bytes = folder, folder.url, 0

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        data = self.folder.read(name, start, size)
        self.bytes += len(data)
        return data

    def local_path(self, name: str) -> Path | None:
        return self.folder.local_path(name)


def make_inputs(options: Options, inputs: Path) -> None:
    from pod_job.checkpoints.convert import convert

    model = Path(options.model)
    if not model.is_dir():
        write_tiny_model(model, "llama", layers=options.layers, hidden=1536, heads=12, kv_heads=4, mlp=6144, vocab=8192)
    converted = Path(convert(str(model), inputs / "converted").folder.url)
    if os.environ.get(STORAGE_EMULATOR):
        for name, folder in (("folder", model), ("converted", converted)):
            copy_to_bucket(folder, f"gs://{BUCKET}/{name}")


def copy_to_bucket(source: Path, url: str) -> None:
    for file in filter(Path.is_file, source.rglob("*")):
        content = np.memmap(file, np.uint8, "r").data if file.stat().st_size else b""
        open_folder(url).create(file.relative_to(source).as_posix(), [content])


def prepare(variant: str, options: Options, inputs: Path, scratch: Path) -> Work:
    source, hosts, sharding = variant.split(", ")
    paths = {
        "folder": options.model,
        "converted": str(inputs / "converted"),
        "bucket": f"gs://{BUCKET}/folder",
        "converted bucket": f"gs://{BUCKET}/converted",
    }
    return Work(lambda: worst(load(paths[source], int(hosts), sharding, options.dtype)))


def worst(hosts: list[Metrics]) -> Metrics:
    """Returns each metric of the host that has most of it."""
    return Metrics({metric: max(host[metric] for host in hosts) for metric in hosts[0]})


def load(path: str, hosts: int, sharding: str, dtype: str = "float32") -> list[Metrics]:
    """Returns what each of `hosts` processes with one device measures as they load the model together."""
    coordinator = coordinator_address(0)

    def load_host(host: int) -> Metrics:
        argv = [sys.executable, "-m", "tools.bench.workloads.loading", path, str(hosts), sharding, dtype]
        env = os.environ | local_host(host, 1, coordinator, "bench") | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(argv, env=env, stdout=subprocess.PIPE, check=True)
        return Metrics(msgspec.json.decode(done.stdout.splitlines()[-1], type=dict[str, float]))

    with ThreadPoolExecutor(hosts) as pool:
        return list(pool.map(load_host, range(hosts)))


def load_here(path: str, hosts: int, sharding: str, dtype: str) -> Metrics:
    """Loads this process's share of the model.

    `over_share` is the growth of memory beyond one tensor, divided by the bytes of the share.
    """
    import jax

    from pod_job.checkpoints.checkpoint import read_checkpoint
    from pod_job.checkpoints.load import load_params
    from pod_job.checkpoints.locate import find_model
    from pod_job.checkpoints.orbax import Converted
    from pod_job.config.schema import MeshConfig, PodConfig, Sharding
    from pod_job.host.rendezvous import start, this_host
    from pod_job.models.arch import read_arch_file
    from pod_job.models.mesh import make_mesh, weight_shardings
    from pod_job.models.weight_table import weight_table

    if hosts > 1:
        start(this_host(PodConfig(hosts=hosts)))
    files = find_model(path)
    counting = CountingFolder(files.weights)
    table = weight_table(read_arch_file(files.directory / "config.json"))
    checkpoint = read_checkpoint(counting)
    shardings = weight_shardings(make_mesh(MeshConfig(model=hosts)), Sharding(sharding), table)
    jax.device_put(np.zeros(1)).block_until_ready()
    counting.bytes = 0
    params, metrics = measured(lambda: load_params(checkpoint, table, np.dtype(dtype), shardings)["params"])
    after = status_bytes("VmRSS")
    share = sum(shard.data.nbytes for array in params.values() for shard in array.addressable_shards)
    tensor = max(int(np.prod(weight.checkpoint_shape)) for weight in table.values()) * np.dtype(dtype).itemsize
    read = tensorstore_bytes() if isinstance(checkpoint, Converted) else counting.bytes
    over_share = (metrics["grown_bytes"] - tensor) / share
    sizes = Metrics(after_bytes=after, share_bytes=share, tensor_bytes=tensor, read_bytes=read)
    return Metrics(metrics, **sizes, over_share=over_share)


def tensorstore_bytes() -> int:
    """Returns what tensorstore has read from files and buckets."""
    import tensorstore

    metrics = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/")
    names = ("/tensorstore/kvstore/file/bytes_read", "/tensorstore/kvstore/gcs/bytes_read")
    return sum(value["value"] for metric in metrics if metric["name"] in names for value in metric["values"])


if __name__ == "__main__":
    path, hosts, sharding, dtype = sys.argv[1:]
    print(msgspec.json.encode(load_here(path, int(hosts), sharding, dtype)).decode())
