"""Writes one self-contained HTML page about a run, of activations or of SAEs, and its figures as PNG files beside it.

The page is report/index.html in the run folder; with --out it is that file, here. A run need not be finished.
"""

import importlib.util
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path

from pod_job.commands.command_line import DONE, Command, add_inputs, add_json, add_run_dir, consent_of
from pod_job.errors import JobError, at_least
from pod_job.formats.records import encode
from pod_job.progress import progress_bar
from pod_job.report.overview import read_overview
from pod_job.run_folder import layout
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

EXAMPLES = ("runs/first", "gs://my-bucket/run --out page.html", "runs/first --rows 100000 --follow-recorded")


def add_arguments(parser: ArgumentParser) -> None:
    add_run_dir(parser)
    parser.add_argument("--out", type=Path, metavar="PAGE.html", help="write the page here, not into the run folder")
    parser.add_argument("--rows", type=int, default=8192, metavar="N", help="rows that are read and measured (8192)")
    parser.add_argument("--latents", type=int, default=400, metavar="N", help="of SAEs: latents with their texts (400)")
    add_json(parser, "the numbers of the page")
    add_inputs(parser)


def run_report(options: Namespace) -> int:
    at_least("--rows", options.rows, 64)
    at_least("--latents", options.latents, 0)
    consent = consent_of(options)
    if importlib.util.find_spec("matplotlib") is None:
        raise JobError("matplotlib is not installed; python -m pip install 'tpu-pod-activations[report]'")
    from pod_job.report.page import make_report
    from pod_job.report.training_page import make_training_report
    from pod_job.training.layouts.read import sae_names

    run = open_folder(options.run_dir)
    if sae_names(run):
        report = make_training_report(run, options.latents, consent)
    else:
        report = make_report(read_overview(options.run_dir), options.rows, consent, progress_bar)
    folder, name = page_place(run, options.out)
    write_page(folder, name, report.html, report.pictures)
    if options.json:
        print(encode(report.facts, indent=1).decode())
    else:
        print(f"{folder.url}/{name}")
        print(f"{folder.url}/{picture_file(name, '*')}: {len(report.pictures)} figures")
    return DONE


def write_page(folder: Folder, name: str, html: str, pictures: Mapping[str, bytes]) -> None:
    """Writes the figures and then the page, each whole: a reader never sees half of one."""
    for picture, data in pictures.items():
        folder.replace(picture_file(name, picture), data)
    folder.replace(name, html.encode())


def picture_file(page: str, picture: str) -> str:
    """Returns the name of a figure beside the page."""
    prefix = page.removesuffix("index.html") if page.endswith("index.html") else f"{page.removesuffix('.html')}_"
    return f"{prefix}{picture}.png"


def page_place(run: Folder, out: Path | None) -> tuple[Folder, str]:
    """Returns the folder of the page and the page's name in it."""
    if out is None:
        return run, f"{layout.REPORT}index.html"
    if out.suffix != ".html":
        raise JobError(f"--out {out}: must end in .html; the figures get names beside it")
    return open_folder(out.parent), out.name


COMMAND = Command("report", __doc__, EXAMPLES, add_arguments, run_report)
main = COMMAND.main
