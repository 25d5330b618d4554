"""Cards of published runs: README.md of a repository on the Hugging Face hub, written from the run's own records."""

import json
from collections.abc import Mapping, Sequence

import yaml

from pod_job import __version__
from pod_job.formats.records import read_file
from pod_job.run_folder.identity import RunRecord
from pod_job.run_folder.layout import EVALUATION, SAES
from pod_job.run_folder.metadata import Metadata
from pod_job.run_folder.start import shareable
from pod_job.storage.folder import Folder
from pod_job.terminal import one_line
from pod_job.training.evaluation import EvaluationRecord, SaeEvaluation
from pod_job.training.layouts.sae_lens import CONFIG, Config, read_config

PROJECT = "https://github.com/tpu-pod-activations/tpu-pod-activations"


def dataset_card(repo: str, run: RunRecord, metadata: Metadata, license_id: str | None) -> str:
    """Returns the card of a dataset of activations."""
    model = metadata.provenance.model
    facts = {
        "model": metadata.model_name,
        "rows of each tap": f"{metadata.rows:,}",
        "taps": ", ".join(f"{tap} ({metadata.widths[tap]})" for tap in metadata.taps),
        "dtype": metadata.dtype,
        "samples": f"{metadata.total_samples:,}",
        "positions": metadata.provenance.positions or "not recorded",
        "layers of the model": "not recorded" if model.layers is None else str(model.layers),
        "bytes": f"{sum(file.size for file in metadata.batches):,}",
        "written by": f"pod_job {metadata.pod_job_version}",
    }
    load = [
        "from huggingface_hub import snapshot_download",
        "from pod_job.dataset import ActivationDataset",
        "",
        f'folder = snapshot_download("{repo}", repo_type="dataset")',
        f"rows = ActivationDataset(folder, layer={json.dumps(metadata.taps[0])})[:1024]",
    ]
    front = {"license": license_id, "tags": ["activations", "interpretability"], "base_model": base_model(run)}
    title = f"Activations of {metadata.model_name}"
    return text_of(front, title, [table(facts), "## Load", code("python", load), *recipe(run)])


def sae_card(repo: str, folder: Folder, names: Sequence[str], run: RunRecord, license_id: str | None) -> str:
    """Returns the card of the SAEs of a training run."""
    configs = {name: read_config(folder, f"{SAES}{name}/{CONFIG}") for name in names}
    evaluation = find_evaluation(folder)
    measured = {sae.name: sae for sae in evaluation.saes} if evaluation else {}
    lines = [
        "| SAE | taps | architecture | latents | k | L0 | explained variance | loss recovered | dead |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
        *(row_of(name, config, measured.get(name)) for name, config in configs.items()),
    ]
    note = "Not evaluated: `pod-job evaluate` measures them on held-out documents."
    if evaluation:
        documents, length = cell(evaluation.documents), evaluation.seq_len
        note = f"Measured by `pod-job evaluate` on {documents}, in contexts of {length} tokens."
    load = ["from sae_lens import SAE", "", f'sae = SAE.from_pretrained("{repo}", {json.dumps(SAES + names[0])})']
    front = {
        "license": license_id,
        "library_name": "saelens",
        "tags": ["sparse-autoencoder", "interpretability"],
        "base_model": base_model(run),
    }
    title = f"Sparse autoencoders of {run.identity.model.name}"
    body = ["\n".join(lines), note, "## Load", code("python", load)]
    return text_of(front, title, [*body, *recipe(run)])


def row_of(name: str, config: Config, measured: SaeEvaluation | None) -> str:
    """Returns the line of an SAE in the card's table."""
    origin = config.described.pod_job
    shape = origin.shape if origin else None
    taps = ", ".join((*origin.taps, *([f"to {origin.target}"] if origin.target else []))) if origin else "-"
    kind = shape.architecture.value if shape else config.architecture or "standard"
    numbers = ["-"] * 4
    if measured:
        numbers = [f"{measured.l0:.1f}", f"{measured.explained_variance:.4f}"]
        numbers += [f"{measured.recovered:.2%}", f"{measured.dead:.2%}"]
    k = str(shape.k) if shape and shape.k else "-"
    return "| " + " | ".join(cell(value) for value in (name, taps, kind, f"{config.d_sae:,}", k, *numbers)) + " |"


def find_evaluation(folder: Folder) -> EvaluationRecord | None:
    """Returns the last evaluation of a run; None where there was none. JobError where it is damaged."""
    try:
        return read_file(folder, EVALUATION, EvaluationRecord)
    except FileNotFoundError:
        return None


def recipe(run: RunRecord) -> list[str]:
    """Returns the part of the card that says how the run was made."""
    made = f"[pod_job]({PROJECT}) {cell(run.pod_job_version)}, {cell(run.created)}. The configuration:"
    parts = ["## Made by", made]
    return [*parts, code("json", json.dumps(shareable(run.config), indent=1).splitlines())] if run.config else parts[:1]


def base_model(run: RunRecord) -> str | None:
    """Returns the model's name on the hub; None where it is a folder."""
    name = run.identity.model.name
    return name if name.count("/") == 1 and not name.startswith(("/", ".", "~")) else None


def text_of(front: Mapping[str, object], title: str, parts: Sequence[str]) -> str:
    """Returns the card: the fields that the hub reads, then the parts."""
    fields = {key: value for key, value in front.items() if value is not None}
    head = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    made = f"_This card was written by `pod-job publish` {__version__} from the run's metadata._"
    return f"---\n{head}---\n\n# {cell(title)}\n\n" + "\n\n".join([*parts, made]) + "\n"


def table(facts: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {cell(value)} |" for name, value in facts.items())])


def code(language: str, lines: Sequence[str]) -> str:
    """Returns lines as code; what looks like the end of the block in them is taken apart."""
    text = "\n".join(lines).replace("```", "` ` `")
    return f"```{language}\n{text}\n```"


def cell(value: str) -> str:
    """Returns a value as plain text of one line of Markdown."""
    return one_line(value).replace("|", "\\|").replace("<", "&lt;").replace("`", "'").replace("[", "\\[")
