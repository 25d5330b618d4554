"""Facts of a training run for a table or JSON: the run as a whole and each of its SAEs, finished or not."""

from pod_job.report.run_facts import Facts, start_line
from pod_job.run_folder.identity import RunRecord
from pod_job.run_folder.layout import SAES_METADATA
from pod_job.run_folder.timeline import read_timelines
from pod_job.run_folder.train_identity import SaeRecord, TrainIdentity
from pod_job.run_folder.training import MetricsPoint, TrainingMetadata, read_metrics, read_training
from pod_job.storage.folder import Folder, exists


def training_facts(folder: Folder, run: RunRecord, train: TrainIdentity) -> Facts:
    """Returns the training run as a whole, with a line for each SAE."""
    trained = read_training(folder) if exists(folder, SAES_METADATA) else None
    metrics = read_metrics(folder)
    last = metrics.points[-1] if metrics is not None and metrics.points else None
    done = trained.steps if trained else last.step if last else 0
    state = "complete" if trained and trained.complete else f"UNFINISHED, {done:,} of {train.steps:,} steps"
    return {
        "run": folder.url,
        "state": state,
        "model": run.identity.model.name,
        "trained on": "the forward pass" if train.source != "run" else f"the rows of a finished run{source_name(run)}",
        "steps": train.steps,
        "rows": done * train.batch_rows,
        "batch rows": train.batch_rows,
        "created": run.created,
        "version": run.pod_job_version,
        "SAEs": [sae_line(i, sae, last, trained) for i, sae in enumerate(train.saes)],
        "starts": [
            start_line(timeline)
            for timeline in read_timelines(folder)
            if timeline.host == 0 and timeline.points and timeline.phases
        ],
    }


def source_name(run: RunRecord) -> str:
    """Returns the name of the run that was trained on, to put behind a word; "" where none is recorded."""
    recorded = (run.config or {}).get("train")
    name = recorded.get("run") if isinstance(recorded, dict) else None
    return f", {name}" if isinstance(name, str) and name else ""


def sae_line(number: int, sae: SaeRecord, last: MetricsPoint | None, trained: TrainingMetadata | None) -> Facts:
    """Returns an SAE with its last metrics, where there are some."""
    lost = {entry.name: entry.step for entry in trained.lost} if trained else {}
    line: Facts = {"name": sae.name, "taps": " ".join([*sae.taps, *filter(None, [sae.target])])}
    line |= {"latents": sae.latents, "loss": "", "L0": "", "explained variance": "", "dead": ""}
    if last is not None and number < len(last.saes):
        at = last.saes[number]
        line |= {"loss": at.loss, "L0": at.l0, "explained variance": at.explained_variance, "dead": at.dead}
    return line | {"lost at step": lost.get(sae.name, "")}
