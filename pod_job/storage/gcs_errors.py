"""What goes wrong on the way to Cloud Storage: what is tried again, and what a person is told in the end."""

import os

import requests.exceptions
import urllib3.exceptions
from google.api_core import exceptions as api
from google.api_core.retry import Retry
from google.auth import exceptions as auth

from pod_job import environment
from pod_job.errors import first_line

FIRST_WAIT_S = 0.25
"""Before the second try, doubled before each further one."""
_PASSING = (
    api.ServerError,
    api.TooManyRequests,
    auth.TransportError,
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    ConnectionError,
)


def retry(deadline_s: float) -> Retry:
    """Calls a function again, with growing waits, while what it raises may pass; RetryError after `deadline_s`."""
    return Retry(_passes, initial=FIRST_WAIT_S, maximum=30.0, timeout=deadline_s)


def reason_of(error: BaseException, bucket: str, deadline_s: float) -> str | None:
    """What a person has to know and to do about the error; None for a bug."""
    if isinstance(error, api.NotFound):
        return f"bucket {bucket} does not exist; create it first"
    if isinstance(error, (api.Forbidden, api.Unauthorized)):
        return (
            f"access refused ({error.code}); give the job's service account "
            f"roles/storage.objectAdmin on bucket {bucket}"
        )
    if isinstance(error, (auth.DefaultCredentialsError, auth.RefreshError)):
        return (
            f"no usable Google credentials ({first_line(error)}); "
            "run `gcloud auth application-default login`, or give the VM a service account"
        )
    if isinstance(error, (api.RetryError, *_PASSING)):
        endpoint = os.environ.get(environment.STORAGE_EMULATOR, "storage.googleapis.com")
        return f"no answer from {endpoint} within {deadline_s:.0f} s ({first_line(error)})"
    return None


def _passes(error: BaseException) -> bool:
    """Whether trying again may help. Expired credentials are renewed by the library, and that may take a while, too."""
    if isinstance(error, auth.RefreshError):
        return error.retryable
    if isinstance(error, ValueError):  # an endpoint that is no address
        return False
    status = getattr(error, "code", None) or getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(error, _PASSING) or status in (401, 408, 429, 500, 502, 503, 504)
