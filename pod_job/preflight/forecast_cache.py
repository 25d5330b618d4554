"""Forecasts kept in the user's cache folder, so that a job's programs are compiled once.

The key is everything that a forecast depends on: the model's sizes, the fields of the configuration that the programs
are made of, the code of this package, and the versions of the compilers.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import msgspec

from pod_job.errors import JobError
from pod_job.formats.records import decode, encode
from pod_job.preflight.forecast import Forecast
from pod_job.preflight.planned_job import PlannedJob, PlannedTrainer

COMPILERS = ("jax", "jaxlib", "libtpu", "flax")

Job = TypeVar("Job", PlannedJob, PlannedTrainer)

log = logging.getLogger("pod_job")


class CachedForecasts(msgspec.Struct, frozen=True):
    """A file of the cache: the forecasts of the programs of one job."""

    forecasts: list[Forecast]


def cached(job: Job, compile_programs: Callable[[Job], list[Forecast]]) -> tuple[list[Forecast], bool]:
    """Returns the job's forecasts, from the cache or from `compile_programs`, and whether the cache had them."""
    path = cache_folder() / f"{cache_key(job)}.json"
    try:
        return decode(path.read_bytes(), CachedForecasts, str(path)).forecasts, True
    except FileNotFoundError:
        pass
    except JobError as error:
        log.warning("%s; compiling again", error)
    forecasts = compile_programs(job)
    write_cache(path, encode(CachedForecasts(forecasts)))
    return forecasts, False


def cache_key(job: PlannedJob | PlannedTrainer) -> str:
    compilers = {name: installed_version(name) for name in COMPILERS}
    depends = {"job": job.facts(), "code": code_hash(), "compilers": compilers}
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:32]


def code_hash() -> str:
    """Returns the SHA-256 of this package's code."""
    package = Path(__file__).parent.parent
    sha256 = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        sha256.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return sha256.hexdigest()


def installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tpu-pod-activations" / "preflight"


def write_cache(path: Path, data: bytes) -> None:
    """Writes the file all or nothing; where the folder cannot be written, the next preflight compiles again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            new = Path(scratch) / path.name
            new.write_bytes(data)
            new.replace(path)
    except OSError as error:
        log.warning("the forecast is not cached: %s", error)
