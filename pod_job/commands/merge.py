"""Writes metadata.json for the batches that are committed so far; --compact joins the small files of a finished run."""

import json
import os
from argparse import ArgumentParser, Namespace

from pod_job.commands.command_line import DONE, Command, add_json, add_run_dir
from pod_job.errors import JobError
from pod_job.finishing.compact import MAX_BYTES, compact
from pod_job.finishing.merge import merge
from pod_job.progress import progress_bar
from pod_job.run_folder.metadata import Metadata
from pod_job.storage.open import open_folder

EXAMPLES = ("gs://my-bucket/run", "gs://my-bucket/run --compact")
SUMMARY = ("complete", "missing", "total_batches", "total_samples", "rows", "taps", "dtype")


def add_arguments(parser: ArgumentParser) -> None:
    add_run_dir(parser)
    parser.add_argument("--compact", action="store_true", help="join the small files of a finished run into large ones")
    parser.add_argument("--max-bytes", type=int, metavar="N", help="of a file that --compact makes; by default 1 GiB")
    add_json(parser)


def run_merge(options: Namespace) -> int:
    if options.max_bytes is not None and not options.compact:
        raise JobError(f"--max-bytes={options.max_bytes} limits the files that --compact makes; give both, or none")
    folder, processes = open_folder(options.run_dir), os.cpu_count() or 1
    if options.compact:
        max_bytes = MAX_BYTES if options.max_bytes is None else options.max_bytes
        print_merged(compact(folder, max_bytes, progress_bar, processes), options.json)
    else:
        print_merged(merge(folder, progress_bar, processes), options.json)
    return DONE


def print_merged(metadata: Metadata, as_json: bool) -> None:
    done = metadata.total_batches - len(metadata.missing)
    files = {entry.file for entry in (*metadata.batches, *metadata.rows_files)}
    if as_json:
        print(json.dumps({key: getattr(metadata, key) for key in SUMMARY} | {"files": len(files)}))
    else:
        print(f"{done} of {metadata.total_batches} batches, {metadata.rows:,} rows, {len(files):,} files")


COMMAND = Command("merge", __doc__, EXAMPLES, add_arguments, run_merge)
main = COMMAND.main
