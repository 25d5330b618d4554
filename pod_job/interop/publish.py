"""Publishes a finished run on the Hugging Face hub: a dataset of activations, or the SAEs of a training run.

What is sent is named in a list, so that nothing else leaves: the launcher's state, logs, code and pods stay. Files go
in commits of some each, the card last; after an interruption the same call sends only what the hub does not have.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from pod_job.errors import JobError, first_line
from pod_job.interop.card import dataset_card, sae_card
from pod_job.progress import Progress, no_progress
from pod_job.run_folder import layout
from pod_job.run_folder import metadata as metadata_file
from pod_job.run_folder.identity import read_run
from pod_job.run_folder.training import has_saes, read_training
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder
from pod_job.training.layouts.read import sae_names

CARD = "README.md"
SHARED = (layout.RUN, layout.TOKENIZER, layout.REPORT)
DATASET = (
    layout.ACTIVATIONS,
    layout.COMMITS,
    layout.OUTPUTS,
    layout.PARITY,
    layout.VERIFIED,
    layout.ACCEPTED,
    layout.COMPACTION,
)
TRAINED = (layout.SAES, layout.EVALUATION, layout.METRICS)
"""Files and, with a slash at the end, folders that are published, of any run, of activations, and of SAEs."""
COMMIT_FILES, COMMIT_BYTES = 100, 4 << 30


@dataclass(frozen=True)
class Publication:
    """Files of a run that are published, and the card; `kind`: model or dataset, as the hub calls them."""

    folder: Folder
    repo: str
    kind: str
    names: list[str]
    card: str

    @property
    def url(self) -> str:
        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.repo}"


def plan_publication(run_dir: str, repo: str, license_id: str | None = None) -> Publication:
    """Returns what a run would publish. Sends nothing.

    Raises:
        JobError: the run is not finished, has a link out of it or a file that is none, or `repo` is no name on the hub.
    """
    try:
        validate_repo_id(repo)
        if "/" not in repo:
            raise HFValidationError("it has no owner")
    except HFValidationError as error:
        raise JobError(f"{repo!r:.100} is no OWNER/NAME on the hub ({first_line(error)}); give one") from None
    folder = open_folder(run_dir)
    run = read_run(folder)
    saes = sae_names(folder)
    if (saes or run.identity.train is not None) and not has_saes(folder):
        read_training(folder)  # says that training has not ended
    names = [name for place in (*SHARED, *(TRAINED if saes else DATASET)) for name in names_at(folder, place)]
    for name in names:
        folder.local_path(name)  # refuses links out of the folder, and what is no file
    if saes:
        return Publication(folder, repo, "model", names, sae_card(repo, folder, saes, run, license_id))
    metadata = metadata_file.read_any(folder)
    if not metadata.complete:
        missing = f"{len(metadata.missing)} of {metadata.total_batches} batches are missing"
        raise JobError(f"{folder.url}: {missing}; finish the run before it is published")
    return Publication(folder, repo, "dataset", names, dataset_card(repo, run, metadata, license_id))


def names_at(folder: Folder, place: str) -> list[str]:
    """Returns the files at a place: one of that name, or all below a folder; no copy beside it, as editors leave."""
    return [name for name in folder.names(place) if place.endswith("/") or name == place]


def publish(publication: Publication, private: bool = False, progress: Progress = no_progress) -> str:
    """Sends what the hub does not have yet, and returns the address of the repository.

    Raises:
        JobError: the hub refuses, or cannot be reached.
    """
    api, kind = HfApi(), publication.kind
    try:
        api.create_repo(publication.repo, repo_type=kind, private=private, exist_ok=True)
        groups = list(commit_groups(publication))
        for number, group in enumerate(progress(groups, len(groups), "commits"), 1):
            operations = [operation(publication.folder, name) for name in group]
            if number == len(groups):
                operations.append(CommitOperationAdd(CARD, publication.card.encode()))
            message = f"Files of the run, part {number} of {len(groups)}"
            api.create_commit(publication.repo, operations, commit_message=message, repo_type=kind)
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = first_line(error)
        raise JobError(
            f"{publication.repo} cannot be written on {constants.ENDPOINT} ({reason}); the same command again goes on "
            f"from there; export HF_TOKEN=... if it needs an account"
        ) from error
    return publication.url


def commit_groups(publication: Publication) -> Iterator[list[str]]:
    """Yields the names of the files of each commit."""
    group: list[str] = []
    total = 0
    for name in publication.names:
        size = size_of(publication.folder, name)
        if group and (len(group) >= COMMIT_FILES or total + size > COMMIT_BYTES):
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    yield group


def size_of(folder: Folder, name: str) -> int:
    path = folder.local_path(name)
    if path is not None:
        return path.stat().st_size
    stored = folder.stat(name)
    return 0 if stored is None else stored.size


def operation(folder: Folder, name: str) -> CommitOperationAdd:
    """Returns what adds a file to a commit: from this disk, or out of a bucket."""
    path = folder.local_path(name)
    return CommitOperationAdd(name, folder.read(name) if path is None else path)


def listing(names: Sequence[str]) -> list[str]:
    """Returns the number of files in each part of the folder, for people."""
    counts: dict[str, int] = {}
    for name in names:
        part = name.partition("/")[0] + ("/" if "/" in name else "")
        counts[part] = counts.get(part, 0) + 1
    return [f"{part} {count} file{'s' if count > 1 else ''}" for part, count in counts.items()]
