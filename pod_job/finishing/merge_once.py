"""The merge of a run that several slices compute: done once, by the slice that takes it."""

import time

from pod_job.host.stop_request import StopRequest
from pod_job.run_folder.layout import METADATA
from pod_job.run_folder.leases import MERGE, Holders, Leases
from pod_job.run_folder.metadata import read_any
from pod_job.storage.folder import exists

POLL_S = 1.0


def takes_merge(leases: Leases, holders: Holders, stop: StopRequest) -> bool:
    """Returns True once this host has taken the merge, from nobody or from one that has ended.

    False when the run is merged, or this host was asked to stop.
    """
    folder = leases.folder
    while not stop and not (exists(folder, METADATA) and read_any(folder).complete):
        leases.refresh()
        holder = leases.holder_of(MERGE)
        if (holder in (None, leases.holder) or holders.ended(holder)) and leases.take(
            MERGE, leases.takes.get(MERGE, 0) + 1
        ):
            return True
        time.sleep(POLL_S)
    return False
