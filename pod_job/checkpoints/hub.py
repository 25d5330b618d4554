"""Models on the Hugging Face hub: small files go to the hub's own cache, weights are read in ranges where they lie.

Ranges rather than whole files, because a host of a pod needs a part of the weights and may have little disk. A snapshot
that is in the cache with its weights is used as it is, also without a network.
"""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

from pod_job.checkpoints.content import cached, git_sha1, sha256
from pod_job.checkpoints.huggingface import INDEX, WHOLE, weight_files
from pod_job.errors import JobError, first_line
from pod_job.storage.folder import Readable, check_name
from pod_job.storage.local import LocalFolder

ALGORITHMS = {64: "sha256", 40: "git-sha1"}
"""Algorithm of the hub's checksums by their number of digits: of large files, and of those in git itself."""
PARTIAL_CONTENT, RANGE_BEYOND_END = 206, 416
LOGIN = "export HF_TOKEN, and give it to a pod by cloud.secrets=[HF_TOKEN]"


def hub_reason(error: Exception) -> str:
    """Returns why the hub did not give what it was asked for, in one line; its own first line tells only a number."""
    if isinstance(error, GatedRepoError):
        return f"its owner grants access on its page at {constants.ENDPOINT}; then {LOGIN}"
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub has no repository of this name; if it is private, {LOGIN}"
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision"
    return first_line(error)


def fetch_model(repo: str, revision: str | None, small_files: Sequence[str]) -> tuple[Path, Readable]:
    """Returns the local folder of a model's small files, and the folder of its weights, at one commit of the hub.

    Raises:
        JobError: neither the hub nor its cache has the model.
    """
    try:
        snapshot = Path(snapshot_download(repo, revision=revision, allow_patterns=[*small_files, INDEX]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise JobError(
            f"model.path={repo} is no local folder and cannot be had from the hub ({hub_reason(error)}); without "
            "a network, give a folder that holds config.json and weights (for a plan, config.json alone)"
        ) from error
    local = CachedSnapshot(str(snapshot), "model.path", follow_links=True)
    # Other programs leave whole models in the cache.
    cached = (snapshot / WHOLE).is_file() or (snapshot / INDEX).is_file()
    cached = cached and all((snapshot / name).is_file() for name in weight_files(local))
    return snapshot, local if cached else HubFolder(repo, snapshot.name)


class CachedSnapshot(LocalFolder):
    """A model that is whole in the hub's cache; its files have the checksums that they have on the hub."""

    def checksum(self, name: str) -> str:
        # The cache names a file by its checksum on the hub, and what lies there may have been changed.
        path = self._path(name)
        return cached(path, git_sha1 if ALGORITHMS.get(len(path.resolve().name)) == "git-sha1" else sha256)


class HubFolder:
    """A repository of the hub at one commit, as a Readable. Safe to share between threads.

    Args:
        field: the setting that named it, for errors.
        repo_type: as huggingface_hub names it: None for a model, `dataset`.
    """

    def __init__(self, repo: str, commit: str, field: str = "model.path", repo_type: str | None = None) -> None:
        self.repo, self.commit, self.field, self.repo_type = repo, commit, field, repo_type
        self.url = f"{constants.ENDPOINT}/{repo}/tree/{commit}"

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        if size == 0:
            return b""
        end = "" if size is None else str(start + size - 1)
        headers = build_hf_headers(headers={"range": f"bytes={start}-{end}", "accept-encoding": "identity"})
        url = hf_hub_url(self.repo, check_name(name, self.url), revision=self.commit, repo_type=self.repo_type)
        try:
            answer = http_backoff("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
            if answer.status_code == RANGE_BEYOND_END:
                return b""
            hf_raise_for_status(answer)
            if answer.status_code != PARTIAL_CONTENT:
                raise OSError(f"{constants.ENDPOINT} sends whole files where a range was asked for")
        except EntryNotFoundError:
            raise FileNotFoundError(url) from None
        except Exception as error:  # the HTTP library beneath the hub's, and its errors, change with its version
            raise self._error(name, error) from error
        return answer.content

    def checksum(self, name: str) -> str:
        url = hf_hub_url(self.repo, name, revision=self.commit, repo_type=self.repo_type)
        try:
            etag = get_hf_file_metadata(url, retry_on_errors=True).etag or ""
        except EntryNotFoundError:
            raise FileNotFoundError(url) from None
        except Exception as error:  # as in `read`
            raise self._error(name, error) from error
        return f"{ALGORITHMS.get(len(etag), 'etag')}:{etag}"

    def local_path(self, name: str) -> Path | None:
        return None

    def _error(self, name: str, error: Exception) -> JobError:
        return JobError(f"{self.field}={self.repo}: {name} at {self.commit}: {hub_reason(error)}")
