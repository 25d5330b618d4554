"""The command line."""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tools.bench_storage.memory import memory, merging, share_of_metadata
from tools.bench_storage.reading import reading, reading_bucket, reading_compacted
from tools.bench_storage.writing import writing
from tools.bucket import bucket_available, bucket_server

BUCKET = "bench"
SECTIONS = ("write", "read", "bucket", "compact", "metadata", "merge", "memory")


@contextlib.contextmanager
def emulator(scratch: Path) -> Iterator[str | None]:
    """gs://... of a bucket in an emulator; None where there is no emulator for this machine."""
    if bucket_available() is not None:
        yield None
        return
    with bucket_server(scratch / "server", BUCKET) as url:
        os.environ["STORAGE_EMULATOR_HOST"] = url
        yield f"gs://{BUCKET}"


def show(name: str, found: Any) -> None:
    """The numbers as lines for people."""
    if isinstance(found, dict):
        for key, value in found.items():
            show(f"{name}  {key}", value)
    else:
        print(f"{name:60} {found}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.bench_storage")
    parser.add_argument("sections", nargs="*", default=SECTIONS, help=", ".join(SECTIONS))
    parser.add_argument("--rows", type=int, default=1_000_000, help="to read")
    parser.add_argument("--batches", type=int, default=100_000, help="to merge")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=None, help="a folder on the disk to measure")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"unknown section {sorted(unknown)[0]}; there are {', '.join(SECTIONS)}")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as name, emulator(Path(name)) as bucket:
        scratch = Path(name)
        measure: dict[str, Callable[[], Any]] = {
            "write": lambda: writing(scratch, bucket, options.rounds),
            "read": lambda: reading(scratch, options.rows, options.rounds),
            "compact": lambda: {
                "bucket" if "://" in place else "folder": reading_compacted(place, options.rounds)
                for place in (str(scratch / "small"), f"{bucket}/small" if bucket else None)
                if place
            },
            "metadata": lambda: share_of_metadata(scratch),
            "merge": lambda: merging(scratch, options.batches),
            "memory": lambda: memory(scratch),
        }
        if bucket:
            measure["bucket"] = lambda: reading_bucket(scratch, bucket, options.rows // 2, options.rounds)
        for section in SECTIONS:
            if section in options.sections and section in measure:
                found[section] = measure[section]()
                show(section, found[section])
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    sys.exit(main())
