"""The command line."""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.bench_storage.reading import reading, reading_bucket
from tools.bench_storage.writing import writing
from tools.bucket import bucket_available, bucket_server

BUCKET = "bench"
SECTIONS = ("write", "read", "bucket")


@contextlib.contextmanager
def emulator(scratch: Path) -> Iterator[str | None]:
    """gs://... of a bucket in an emulator; None where there is no emulator for this machine."""
    if bucket_available() is not None:
        yield None
        return
    with bucket_server(scratch / "server", BUCKET) as url:
        os.environ["STORAGE_EMULATOR_HOST"] = url
        yield f"gs://{BUCKET}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.bench_storage")
    parser.add_argument("sections", nargs="*", default=SECTIONS)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=None, help="a folder on the disk to measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch, emulator(Path(scratch)) as bucket:
        found: dict[str, Any] = {}
        if "write" in options.sections:
            found["write"] = writing(Path(scratch), bucket, options.rounds)
        if "read" in options.sections:
            found["read"] = reading(Path(scratch), options.rows, options.rounds)
        if "bucket" in options.sections and bucket:
            found["bucket"] = reading_bucket(Path(scratch), bucket, options.rows // 8, options.rounds)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    sys.exit(main())
