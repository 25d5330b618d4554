"""Errors of Cloud Storage: which are transient and retried, and the one line that a user gets for the others."""

import os

import requests.exceptions
import urllib3.exceptions
from google.api_core import exceptions as api
from google.api_core.retry import Retry
from google.auth import exceptions as auth

from pod_job import environment
from pod_job.errors import first_line

FIRST_WAIT_S = 0.25
"""Seconds before the second attempt; doubled before each further one."""
_TRANSIENT = (
    api.ServerError,
    api.TooManyRequests,
    auth.TransportError,
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    ConnectionError,
)


def retry(deadline_s: float) -> Retry:
    """Returns a wrapper that calls a function again while its error is transient; RetryError after `deadline_s`."""
    return Retry(_is_transient, initial=FIRST_WAIT_S, maximum=30.0, timeout=deadline_s)


def reason_of(error: BaseException, bucket: str, deadline_s: float) -> str | None:
    """Returns the reason and the fix for the user; None where the error is a bug."""
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
    endpoint = os.environ.get(environment.STORAGE_EMULATOR, "storage.googleapis.com")
    if isinstance(error, (api.RetryError, *_TRANSIENT)) or _is_transient(error):
        return f"no answer from {endpoint} within {deadline_s:.0f} s ({first_line(error)})"
    if isinstance(error, api.GoogleAPICallError):
        return (
            f"{endpoint} refuses a request ({first_line(error)}); see whether all of {bucket} can be written and read, "
            "and start the job again"
        )
    return None


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, auth.RefreshError):  # the library renews expired credentials, and that can fail for a while
        return error.retryable
    if isinstance(error, requests.exceptions.JSONDecodeError):  # an answer that was cut, or comes from a proxy
        return True
    if isinstance(error, ValueError):  # an endpoint that is not a URL
        return False
    status = getattr(error, "code", None) or getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(error, _TRANSIENT) or status in (401, 408, 429, 500, 502, 503, 504)
