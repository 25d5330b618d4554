"""Compiled programs kept beside the run, so that a restart, or the next run of the same shape, compiles nothing.

jax keeps its persistent cache in a folder of this machine; for a bucket, the entries are fetched before and stored
after. Entries are create-only under jax's own keys, which change with the program, the devices and jax itself.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from pod_job.storage.folder import Folder, NameTaken
from pod_job.storage.local import LocalFolder
from pod_job.storage.open import open_folder

log = logging.getLogger("pod_job")


@contextmanager
def compile_cache(url: str | None) -> Iterator[None]:
    """Lets programs that are compiled in the block come from, and go to, the folder or `gs://` prefix `url`, if any."""
    if url is None:
        yield
        return
    folder = open_folder(url, "storage.compile_cache")
    if local := folder.local_path("."):
        with jax_cache(local):
            yield
        return
    with tempfile.TemporaryDirectory() as scratch:
        local_folder = Path(scratch)
        fetch(folder, local_folder)
        with jax_cache(local_folder):
            yield
        store(folder, local_folder)


@contextmanager
def jax_cache(local_folder: Path) -> Iterator[None]:
    """Sets jax's cache to this folder for the block, whatever the size of a program or the time it took."""
    settings = {
        "jax_compilation_cache_dir": str(local_folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
        # Their paths would become part of the key, and a scratch folder has another path each time.
        "jax_persistent_cache_enable_xla_caches": "none",
    }
    before = {name: getattr(jax.config, name) for name in settings}
    # A compilation before this one, without a cache, has made jax decide that there is none.
    reset_cache()
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        reset_cache()


def fetch(folder: Folder, local_folder: Path) -> None:
    """Copies the entries to this machine; jax gives none a name with a slash."""
    scratch = LocalFolder(str(local_folder))
    for name in folder.names(""):
        if "/" not in name:
            scratch.replace(name, folder.read(name))


def store(folder: Folder, local_folder: Path) -> None:
    """Stores the new entries. jax writes on the first host only, so the other hosts have none."""
    known = set(folder.names(""))
    for path in sorted(local_folder.iterdir()):
        if path.name in known or not path.name.endswith("-cache"):
            continue
        try:
            folder.create(path.name, [path.read_bytes()])
        except NameTaken:
            log.info("another run stored %s first", path.name)
