"""Forecasts kept in the user's cache folder: what is compiled once for a job is not compiled for it again.

The key is everything that a forecast depends on: the model's sizes, the fields of the configuration that the programs
are made of, the code of this package, and the versions of the compilers.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pod_job.config.load import to_json
from pod_job.config.schema import JobConfig
from pod_job.models.arch import Arch
from pod_job.models.taps import Tap
from pod_job.preflight.forecast import Forecast, from_json

FIELDS = ("mode", "mesh", "sharding", "extract", "generate", "preflight")
COMPILERS = ("jax", "jaxlib", "libtpu", "flax")

log = logging.getLogger("pod_job")


def cached(
    config: JobConfig,
    arch: Arch,
    taps: tuple[Tap, ...],
    end_tokens: tuple[int, ...],
    compiled: Callable[[], list[Forecast]],
) -> tuple[list[Forecast], bool]:
    """The job's forecasts, from the cache or as `compiled` makes them; whether they were there already."""
    kept = cache_folder() / f"{key(config, arch, taps, end_tokens)}.json"
    try:
        return [from_json(each) for each in json.loads(kept.read_text())], True
    except FileNotFoundError:
        pass
    except (ValueError, TypeError) as error:
        log.warning("%s is damaged (%s) and made anew", kept, error)
    made = compiled()
    keep(kept, [asdict(forecast) for forecast in made])
    return made, False


def key(config: JobConfig, arch: Arch, taps: tuple[Tap, ...], end_tokens: tuple[int, ...]) -> str:
    values = to_json(config)
    depends = {name: values[name] for name in FIELDS}
    depends |= {"pod": config.pod.accelerator_type, "dtype": config.model.dtype.value, "ends": end_tokens}
    depends |= {"arch": asdict(arch), "taps": [tap.name for tap in taps], "code": code()}
    depends |= {"compilers": {name: installed(name) for name in COMPILERS}}
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:32]


def code() -> str:
    """Fingerprint of this package's code."""
    package = Path(__file__).parent.parent
    whole = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        whole.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return whole.hexdigest()


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tpu-pod-activations" / "preflight"


def keep(path: Path, forecasts: list[dict[str, Any]]) -> None:
    """Writes the file whole or not at all; a folder that cannot be written costs the next run a compilation only."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            new = Path(scratch) / path.name
            new.write_text(json.dumps(forecasts))
            new.replace(path)
    except OSError as error:
        log.warning("the forecast is not kept: %s", error)
