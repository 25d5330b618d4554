"""Opens a folder by its path or gs:// address."""

from pathlib import Path

from pod_job.errors import JobError
from pod_job.storage.folder import Folder
from pod_job.storage.local import LocalFolder


def open_folder(url: str | Path, field: str = "storage.run_dir") -> Folder:
    """A local path or `gs://bucket/prefix` as a Folder; JobError for anything else. Nothing is contacted yet.

    `field`: what the user set to this place, named in errors.
    """
    url = str(url).strip()
    if url.startswith("gs://"):
        from pod_job.storage.gcs import (
            BucketFolder,  # google.cloud takes a second to import and local runs never need it
        )

        return BucketFolder(url, field)
    if not url or "://" in url:
        raise JobError(f"{field}={url}: must be a local folder or gs://bucket/prefix")
    return LocalFolder(url, field)
