"""Flags that the document's commands share, as overrides of the job; the job's results in the document's layout."""

import json
from argparse import Namespace
from collections.abc import Callable, Sequence

from pod_job.commands.command_line import DONE, Parser, exit_status
from pod_job.config.load import load
from pod_job.errors import JobError
from pod_job.interop.pickle_export import export_pickles
from pod_job.run_folder.layout import METADATA, OUTPUTS
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
    parser.add_argument("--tasks_file", required=True, help="ARC tasks: a JSON file or a folder of them")
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
    parser.add_argument("--too_long", choices=("refuse", "cut"), default="refuse", help="cut: keep its last tokens")
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


def quoted(text: str) -> str:
    """Returns the text as a Hydra value, whatever characters it has."""
    return json.dumps(text, ensure_ascii=False)


def run_here(overrides: Sequence[str], run_dir: str, options: Namespace, also_in: str | None = None) -> None:
    """Runs the job in this process, then writes pickles and predictions where the flags say.

    Args:
        also_in: a second place for the pickles, `gs://bucket/prefix`.
    """
    config = load(overrides)
    from pod_job.job import run  # jax, only once the configuration is sound

    run(config)
    folder = open_folder(run_dir)
    if not folder.names(METADATA):
        return  # other workers still compute; the last one writes what follows
    for place in filter(None, (options.activations_dir, also_in)):
        export_pickles(run_dir, place)
    out = open_folder(options.output_dir)
    for name in ("predictions.jsonl", "submission.json", "summary.json") if options.max_tokens > 0 else ():
        out.replace(name, folder.read(OUTPUTS + name))


def exit_status_in_flags(command: Callable[[], None]) -> int:
    """Runs the command; returns 0, or 2 for bad input after a message of one line that also names the flags."""

    def run() -> int:
        try:
            command()
        except JobError as error:
            raise JobError(f"{error}{flags_in(str(error))}") from error
        return DONE

    return exit_status(run)


def flags_in(message: str) -> str:
    """Returns the flags for the fields that the message names, in parentheses; nothing where it names none."""
    flags = [f"{field} is {flag}" for field, flag in FLAG_OF.items() if field in message]
    return f" (here {', '.join(flags)})" if flags else ""
