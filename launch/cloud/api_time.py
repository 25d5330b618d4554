"""Time by the clock of the TPU API, by which pods are created and paid for: this machine's may be off by hours."""

import os
import urllib.error
import urllib.request
from email.message import Message
from email.utils import parsedate_to_datetime

from launch import clock

ADDRESS = "CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU"
"""Variable with which gcloud, too, is directed to another address than Google's."""
ASK_S = 10.0


def api_now() -> float:
    """Returns the Unix time by the API's clock; by this machine's where the API cannot be reached without gcloud."""
    headers = headers_of_answer()
    try:
        return parsedate_to_datetime(headers["Date"]).timestamp() if headers else clock.now()
    except (TypeError, ValueError):  # without a date, or one that is none
        return clock.now()


def headers_of_answer() -> Message | None:
    """Returns the headers of any answer of the API: one that refuses the request has a date, too."""
    address = os.environ.get(ADDRESS) or "https://tpu.googleapis.com/"
    try:
        proxies = [urllib.request.ProxyHandler({})] if address.startswith("http:") else []
        opener = urllib.request.build_opener(*proxies)
        with opener.open(urllib.request.Request(address, method="HEAD"), timeout=ASK_S) as answer:
            return answer.headers
    except urllib.error.HTTPError as error:
        return error.headers
    except (OSError, ValueError):
        return None
