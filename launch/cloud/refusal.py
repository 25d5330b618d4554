"""Refusal of a request for a pod: whether the zone may have one later, or never will, or no zone would."""

import re
from dataclasses import dataclass
from enum import Enum


class Scope(Enum):
    """Reach of a refusal.

    `now`: the zone lacks capacity or quota, which another round may find. `zone`: the zone refuses such pods to this
    project. `request`: the request is wrong, and every zone would say so.
    """

    now = "now"
    zone = "zone"
    request = "request"


NOW = re.compile(
    r"no more capacity|RESOURCE_EXHAUSTED|\"code\": 8\b|quota|stockout|not enough resources|insufficient capacity"
    r"|not served within|currently unavailable|internal error",
    re.IGNORECASE,
)
WRONG = re.compile(r"INVALID_ARGUMENT")
ZONE = re.compile(
    r"permission to submit requests for accelerator type|not have (permission|access) (to|for) (the )?accelerator"
    r"|accelerator ?type \S+ .*\b(not (found|available|supported|offered)|unavailable)"
    r"|\b(is|are) not (available|supported|offered) in (the |this )?(zone|location|region)"
    r"|(location|zone) \S+ (is )?(not found|invalid|unsupported)|permission denied on 'locations/"
    r"|reservation\b.*\bnot (found|exist)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Refusal:
    """Reason of a refusal in one line, and how far it reaches."""

    scope: Scope
    reason: str


def read_refusal(reason: str, otherwise: Scope = Scope.request) -> Refusal:
    """Returns the refusal that gcloud or a failed queued resource gives as `reason`.

    Args:
        otherwise: the reach of one that is not known.
    """
    if WRONG.search(reason):
        return Refusal(Scope.request, reason)
    if ZONE.search(reason):
        return Refusal(Scope.zone, reason)
    return Refusal(Scope.now if NOW.search(reason) else otherwise, reason)
