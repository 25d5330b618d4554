"""One self-contained HTML page about a run, and its figures as PNG files beside it.

The page is report/index.html in the run folder; with --out it is that file, here. A run need not be finished.
"""

import importlib.util
import json
from argparse import Namespace
from pathlib import Path

from pod_job.commands.command_line import RUN_DIR_HELP, exit_status, make_parser
from pod_job.errors import JobError, at_least
from pod_job.progress import progress_bar
from pod_job.report.overview import read_overview
from pod_job.run_folder import layout
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

EXAMPLES = ["runs/first", "gs://my-bucket/run --out page.html", "runs/first --rows 100000 model.path=moved/model"]


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = make_parser("report", __doc__ or "", EXAMPLES)
    parser.add_argument("run_dir", metavar="RUN_DIR", help=RUN_DIR_HELP)
    parser.add_argument("--out", type=Path, metavar="PAGE.html", help="write the page here, not into the run folder")
    parser.add_argument("--rows", type=int, default=8192, metavar="N", help="rows that are read and measured (8192)")
    parser.add_argument("--json", action="store_true", help="what the page says in numbers, as JSON on stdout")
    parser.add_argument("overrides", nargs="*", help="where inputs were moved: model.path=... tasks.path=...")
    options = parser.parse_intermixed_args(argv)
    return exit_status(lambda: report(options))


def report(options: Namespace) -> int:
    at_least("--rows", options.rows, 64)
    if importlib.util.find_spec("matplotlib") is None:
        raise JobError("matplotlib is not installed; python -m pip install 'tpu-pod-activations[report]'")
    from pod_job.report.page import make_report

    overview = read_overview(options.run_dir)
    made = make_report(overview, options.rows, options.overrides, progress_bar)
    folder, name = place(overview.folder, options.out)
    prefix = name.removesuffix("index.html") if name.endswith("index.html") else f"{name.removesuffix('.html')}_"
    for picture, data in made.pictures.items():
        folder.replace(f"{prefix}{picture}.png", data)
    folder.replace(name, made.html.encode())
    print(json.dumps(made.facts, indent=1) if options.json else f"{folder.url}/{name}")
    return 0


def place(run: Folder, out: Path | None) -> tuple[Folder, str]:
    """The folder that the page goes to, and its name there."""
    if out is None:
        return run, f"{layout.REPORT}index.html"
    if out.suffix != ".html":
        raise JobError(f"--out {out}: must end in .html; the figures get names beside it")
    return open_folder(out.parent), out.name
