"""`pod-job merge RUN_DIR`: writes metadata.json for what is committed so far."""

import json
import os
from argparse import Namespace
from typing import Any

from pod_job.commands.command_line import RUN_DIR_HELP, exit_status, make_parser
from pod_job.errors import JobError
from pod_job.finishing.merge import merge
from pod_job.progress import progress_bar
from pod_job.storage.open import open_folder


def main(argv: list[str] | None = None) -> int:
    """`python -m pod_job.merge RUN_DIR`: writes metadata.json for what is committed so far."""
    parser = make_parser("merge", __doc__ or "", ["gs://my-bucket/run", "gs://my-bucket/run --compact"])
    parser.add_argument("run_dir", metavar="RUN_DIR", help=RUN_DIR_HELP)
    parser.add_argument("--compact", action="store_true", help="join the small files of a finished run into large ones")
    parser.add_argument("--max-bytes", type=int, metavar="N", help="of a file that --compact makes; by default 1 GiB")
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    options = parser.parse_args(argv)
    return exit_status(lambda: merge_and_tell(options))


def merge_and_tell(options: Namespace) -> int:
    from pod_job.finishing.compact import (
        MAX_BYTES,
        compact,  # which imports this module
    )

    if options.max_bytes is not None and not options.compact:
        raise JobError(f"--max-bytes {options.max_bytes}: is of --compact; give both, or none")
    folder, processes = open_folder(options.run_dir), os.cpu_count() or 1
    if options.compact:
        max_bytes = MAX_BYTES if options.max_bytes is None else options.max_bytes
        return show_merged(compact(folder, max_bytes, progress_bar, processes), options.json)
    return show_merged(merge(folder, progress_bar, processes), options.json)


def show_merged(metadata: dict[str, Any], as_json: bool) -> int:
    done = metadata["total_batches"] - len(metadata["missing"])
    files = {entry["file"] for key in ("batches", "rows_files") for entry in metadata[key]}
    if as_json:
        kept = ("complete", "missing", "total_batches", "total_samples", "rows", "taps", "dtype")
        print(json.dumps({key: metadata[key] for key in kept} | {"files": len(files)}))
    else:
        print(f"{done} of {metadata['total_batches']} batches, {metadata['rows']:,} rows, {len(files):,} files")
    return 0
