"""Opens a folder by its path or gs:// URL."""

import os
import re
from pathlib import Path

from pod_job.errors import JobError
from pod_job.storage.folder import Folder
from pod_job.storage.local import LocalFolder

# A slash or two left out of a URL would make a folder of that name here.
SCHEME = re.compile(r"(gs|gcs|s3|file|https?)(:|//)", re.IGNORECASE)


def open_folder(url: str | Path, field: str = "storage.run_dir", follow_links: bool = False) -> Folder:
    """Returns the Folder at a local path or `gs://bucket/prefix`; nothing is contacted yet.

    Args:
        field: the setting that named this place, for errors.
        follow_links: follow links out of a local folder, as its owner may have put them there.
    Raises:
        JobError: neither a path nor such a URL.
    """
    url = str(url).strip()
    if url.startswith("gs://"):
        # Imported here, as google.cloud takes a second to import and local runs never need it.
        from pod_job.storage.gcs import BucketFolder

        return BucketFolder(url, field)
    if not url or "://" in url or SCHEME.match(url):
        raise JobError(f"{field}={url}: must be a local folder or gs://bucket/prefix")
    if os.path.isfile(path := os.path.expanduser(url)):
        raise JobError(f"{field}={url}: is a file; name a folder")
    if path.startswith("~"):
        raise JobError(f"{field}={url}: this machine has no such user; name a folder, ./{url} if it is called so")
    try:
        return LocalFolder(url, field, follow_links)
    except OSError as error:
        raise JobError(f"{field}={url}: the folder of this shell is gone ({error.strerror}); cd to another") from error
