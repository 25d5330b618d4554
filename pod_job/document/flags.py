"""Flags that the document's commands share, as overrides of the job; the job's results in the document's layout."""

import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence

from pod_job.commands.command_line import DONE, Parser, exit_status
from pod_job.config.load import load, quoted
from pod_job.errors import JobError
from pod_job.formats.records import decode
from pod_job.generation.predictions import PREDICTIONS, SUBMISSION, SUMMARY, ArcSummary
from pod_job.host.tpu_slice import use_cpu_without_accelerator
from pod_job.interop.pickle_export import export_pickles
from pod_job.interop.pickle_metadata import PickleMetadata
from pod_job.interop.pickle_writer import AnotherExport, remove_export
from pod_job.notebook.job_progress import progress_of
from pod_job.run_folder.layout import METADATA, OUTPUTS
from pod_job.run_folder.metadata import read_any
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

RUN = "run"
"""Folder of the run itself, under `--activations_dir` or the bucket's prefix; a restart continues from it."""
FLAG_OF = {
    "model.path": "--model_path",
    "model.dtype": "--dtype",
    "tasks.path": "--tasks_file",
    "tasks.limit": "--limit",
    "tasks.on_broken": "--on_broken",
    "extract.layers": "--layers_to_extract",
    "extract.positions": "--positions",
    "extract.dtype": "--dtype",
    "extract.save_every_n_samples": "--save_every_n_samples",
    "extract.rows_per_device": "--batch_size",
    "extract.seq_len": "--seq_len",
    "extract.too_long": "--too_long",
    "generate.max_new_tokens": "--max_tokens",
    "storage.run_dir": "--activations_dir",
    "mesh.data": "--mesh_shape",
    "pod.hosts": "--hosts",
}
"""Field of the configuration -> flag: the job's messages name fields, and users of these commands know flags."""


def make_parser(name: str, purpose: str) -> Parser:
    """Returns a parser with the flags that the simple and the distributed command share."""
    parser = Parser(prog=name, description=purpose, allow_abbrev=False)
    parser.add_argument("--model_path", required=True, help="a Hugging Face folder, or a name on the hub")
    parser.add_argument(
        "--tasks_file", required=True, help="ARC tasks: a JSON file, JSON lines, or a folder of JSON files"
    )
    parser.add_argument("--output_dir", default="./outputs", help="predictions.jsonl, submission.json, summary.json")
    parser.add_argument("--activations_dir", default="./activations", help="layer_6_batch_000001.pkl, metadata.json")
    parser.add_argument("--layers_to_extract", type=int, nargs="+", default=[6, 12, 18, 23], metavar="LAYER")
    parser.add_argument("--save_every_n_samples", type=int, default=512)
    parser.add_argument("--max_tokens", type=int, default=256, help="new tokens per prompt; 0: only read the prompts")
    parser.add_argument("--positions", choices=("last", "all", "generated"), default="last")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of weights and vectors")
    parser.add_argument("--batch_size", type=int, default=8, help="prompts per device at a time")
    parser.add_argument("--limit", type=int, default=None, help="first prompts only")
    parser.add_argument("--seq_len", type=int, default=2048, help="tokens of the longest prompt")
    parser.add_argument("--too_long", choices=("refuse", "head", "tail"), default="refuse", help="the part to keep")
    parser.add_argument("--on_broken", choices=("refuse", "skip"), default="refuse", help="a task that cannot be used")
    return parser


def shared_overrides(options: Namespace, run_dir: str) -> list[str]:
    """Returns the overrides of the job for the flags of `make_parser`."""
    generating = options.max_tokens > 0
    values = {
        "mode": "generate" if generating else "prefill",
        "model.path": quoted(options.model_path),
        "model.dtype": options.dtype,
        "tasks.path": quoted(options.tasks_file),
        "tasks.limit": "null" if options.limit is None else options.limit,
        "tasks.on_broken": options.on_broken,
        "extract.layers": options.layers_to_extract,
        "extract.positions": options.positions,
        "extract.dtype": options.dtype,
        "extract.save_every_n_samples": options.save_every_n_samples,
        "extract.rows_per_device": options.batch_size,
        "extract.seq_len": options.seq_len,
        "extract.too_long": options.too_long,
        "generate.max_new_tokens": max(1, options.max_tokens),
        "generate.stop": r'["\n\n"]',
        "storage.run_dir": quoted(run_dir),
    }
    return [f"{key}={value}" for key, value in values.items()]


def run_here(overrides: Sequence[str], run_dir: str, options: Namespace, also_in: str | None = None) -> None:
    """Runs the job in this process, then writes pickles and predictions where the flags say, and prints a summary.

    Args:
        also_in: a second place for the pickles, `gs://bucket/prefix`.
    """
    began = time.monotonic()
    config = load(overrides)
    use_cpu_without_accelerator()
    from pod_job.job import run  # jax, only once the configuration is sound

    folder = open_folder(run_dir)
    with progress_of(config):
        run(config)
        if not folder.names(METADATA) or not read_any(folder).complete:
            print("this worker is done; the last one to finish writes the pickle files")
            return
        places = [place for place in (options.activations_dir, also_in) if place is not None]
        written = [export_over(run_dir, place, options.model_path) for place in places]
        if options.max_tokens > 0:
            copy_predictions(folder, options.output_dir)
    show_summary(written[0], places, folder, options)
    print(f"run          {run_dir}, {time.monotonic() - began:,.1f} s")


def export_over(run_dir: str, place: str, model_name: str) -> PickleMetadata:
    """Exports the run in the place of whatever export is there, as the document's commands write their files again."""
    try:
        return export_pickles(run_dir, place, model_name=model_name)
    except AnotherExport:
        remove_export(open_folder(place))
        return export_pickles(run_dir, place, model_name=model_name)


def copy_predictions(run: Folder, output_dir: str) -> None:
    """Copies what was predicted out of the run."""
    out = open_folder(output_dir, "--output_dir")
    for name in (PREDICTIONS, SUBMISSION, SUMMARY):
        out.replace(name.removeprefix(OUTPUTS), run.read(name))


def show_summary(pickles: PickleMetadata, places: Sequence[str], run: Folder, options: Namespace) -> None:
    """Prints what was written, and where."""
    layers = ", ".join(f"layer_{layer}" for layer in pickles.layers_extracted)
    print(f"activations  {pickles.total_samples:,} for each of {layers}, {pickles.hidden_dim} wide")
    print(f"pickles      {len(pickles.batches):,} files and metadata.json in {' and '.join(places)}")
    if options.max_tokens > 0:
        scores = decode(run.read(SUMMARY), ArcSummary, SUMMARY)
        solved = f"{scores.test_inputs_solved:,} of {scores.test_inputs_with_solution:,} known answers are right"
        print(f"predictions  {scores.predictions:,} in {options.output_dir}; {solved}")


def exit_status_in_flags(command: Callable[[], None], flags: Mapping[str, str] | None = None) -> int:
    """Runs the command; returns 0, or 2 for bad input after a message of one line that also names the flags.

    Args:
        flags: of fields that come from other flags than in FLAG_OF.
    """

    def run() -> int:
        try:
            command()
        except JobError as error:
            raise JobError(f"{error}{flags_in(str(error), FLAG_OF | dict(flags or {}))}") from error
        return DONE

    return exit_status(run)


def flags_in(message: str, flag_of: Mapping[str, str] = FLAG_OF) -> str:
    """Returns the flags for the fields that the message names, in parentheses; nothing where it names none."""
    flags = [f"{field} is {flag}" for field, flag in flag_of.items() if field in message]
    return f" (here {', '.join(flags)})" if flags else ""
