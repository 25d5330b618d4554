"""Loading a model: host memory, time and bytes read of each process, from a folder, a bucket and converted.

A random checkpoint is loaded by one process, and by four of which each holds its share. Baseline is a process that has
read the headers; share is what its devices hold; `over_share` is what the peak has beyond the baseline and one tensor
(the largest of the checkpoint), in shares. Prints one JSON object.
"""

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from launch.local import coordinator_address
from pod_job.environment import STORAGE_EMULATOR, local_host
from pod_job.storage.folder import Readable
from pod_job.storage.open import open_folder
from tools.bucket import bucket_server
from tools.tiny_model import write_tiny_model

ROOT = Path(__file__).parent.parent
BUCKET = "models"
SHAPE: dict[str, Any] = {
    "layers": 14,
    "hidden": 1536,
    "heads": 12,
    "kv_heads": 4,
    "mlp": 6144,
    "vocab": 8192,
}  # 2.04 GB of float32
SOURCES = ("folder", "bucket", "converted", "converted bucket")
WAYS = ((1, "replicated"), (4, "fsdp"), (4, "tensor"))


class Counted:
    """A folder that counts the bytes read from it."""

    def __init__(self, folder: Readable) -> None:
        self.folder, self.url, self.bytes = folder, folder.url, 0

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        data = self.folder.read(name, start, size)
        self.bytes += len(data)
        return data

    def local_path(self, name: str) -> Path | None:
        return self.folder.local_path(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/models/random-2gb"), help="made if missing")
    parser.add_argument("--source", choices=SOURCES, action="append", help="default: all")
    parser.add_argument("--host", nargs=4, metavar=("MODEL", "HOSTS", "SHARDING", "DTYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.host:
        path, hosts, sharding, dtype = options.host
        print(json.dumps(load_here(path, int(hosts), sharding, dtype)))
        return
    if not options.model.is_dir():
        write_tiny_model(options.model, "llama", **SHAPE)
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(compare(options.model, options.source or SOURCES, Path(scratch)), indent=1))


def compare(model: Path, sources: tuple[str, ...], scratch: Path) -> list[dict[str, Any]]:
    """One entry for each source and way to split the model: the worst process, and the bytes that all have read."""
    found = []
    with places(model, scratch, sources) as paths:
        for source, path in paths.items():
            for hosts, sharding in WAYS:
                each = load(path, hosts, sharding)
                worst = {key: max(one[key] for one in each) for key in each[0]}
                found.append({"source": source, "hosts": hosts, "sharding": sharding, **worst})
    return found


@contextlib.contextmanager
def places(model: Path, scratch: Path, sources: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Each source's model.path; a bucket's while this is open."""
    from pod_job.checkpoints.convert import convert

    paths = {"folder": str(model)}
    if any("converted" in source for source in sources):
        started = time.monotonic()
        paths["converted"] = convert(str(model), scratch / "converted").folder.url
        print(f"converted in {time.monotonic() - started:.1f} s", file=sys.stderr)
    if not any("bucket" in source for source in sources):
        yield {source: paths[source] for source in sources}
        return
    with bucket_server(scratch / "served", BUCKET) as endpoint:
        os.environ[STORAGE_EMULATOR] = endpoint
        for name, path in list(paths.items()):
            copied = f"{name} bucket".removeprefix("folder ")
            paths[copied] = f"gs://{BUCKET}/{name}"
            for file in (each for each in Path(path).rglob("*") if each.is_file()):
                content = np.memmap(file, np.uint8, "r").data if file.stat().st_size else b""
                open_folder(paths[copied]).create(file.relative_to(path).as_posix(), [content])
        yield {source: paths[source] for source in sources}


def load(path: str, hosts: int, sharding: str, dtype: str = "float32") -> list[dict[str, float]]:
    """What each of `hosts` processes with one device measures as they load the model together."""
    coordinator = coordinator_address(0)

    def one(host: int) -> dict[str, float]:
        argv = [sys.executable, "-m", "tools.bench_load", "--host", path, str(hosts), sharding, dtype]
        env = os.environ | local_host(host, 1, coordinator, "bench") | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(argv, env=env, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    with ThreadPoolExecutor(hosts) as pool:
        return list(pool.map(one, range(hosts)))


def load_here(path: str, hosts: int, sharding: str, dtype: str) -> dict[str, float]:
    """Loads this process's share."""
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
    counted = Counted(files.weights)
    table = weight_table(read_arch_file(files.directory / "config.json"))
    checkpoint = read_checkpoint(counted)
    shardings = weight_shardings(make_mesh(MeshConfig(model=hosts)), Sharding(sharding), table)
    jax.device_put(np.zeros(1)).block_until_ready()
    counted.bytes = 0
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    baseline, cpu, started = status("VmRSS"), cpu_s(), time.monotonic()
    params = load_params(checkpoint, table, np.dtype(dtype), shardings)["params"]
    seconds, cpu, peak, after = time.monotonic() - started, cpu_s() - cpu, status("VmHWM"), status("VmRSS")
    share = sum(shard.data.nbytes for array in params.values() for shard in array.addressable_shards)
    tensor = max(int(np.prod(weight.checkpoint_shape)) for weight in table.values()) * np.dtype(dtype).itemsize
    read = tensorstore_bytes() if isinstance(checkpoint, Converted) else counted.bytes
    return {
        "baseline_mb": baseline / 1e6,
        "share_mb": share / 1e6,
        "tensor_mb": tensor / 1e6,
        "peak_mb": peak / 1e6,
        "after_mb": after / 1e6,
        "over_share": (peak - baseline - tensor) / share,
        "read_mb": read / 1e6,
        "seconds": seconds,
        "cpu_s": cpu,
    }


def status(key: str) -> int:
    """Bytes, of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def tensorstore_bytes() -> int:
    """What tensorstore has read from files and buckets."""
    import tensorstore

    found = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/")
    ours = ("/tensorstore/kvstore/file/bytes_read", "/tensorstore/kvstore/gcs/bytes_read")
    return sum(value["value"] for metric in found if metric["name"] in ours for value in metric["values"])


if __name__ == "__main__":
    main()
