"""The identity of a run: everything its vectors depend on, in run.json."""

import json
from datetime import UTC, datetime
from typing import Any

from pod_job import __version__
from pod_job.errors import JobError
from pod_job.run_folder.layout import FORMAT, RUN
from pod_job.storage.folder import Folder, NameTaken


def claim(folder: Folder, identity: dict[str, Any], config: dict[str, Any] | None = None) -> None:
    """Make the folder this run's, or confirm that it is; JobError as `confirm` raises it.

    The identity holds everything the activations depend on, as JSON values; `config` tells how the run was started,
    and so where its prompts and its model are.
    """
    ours = json.loads(json.dumps(identity))
    record = {
        "format": FORMAT,
        "identity": ours,
        "config": config,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "pod_job_version": __version__,
    }
    try:
        folder.create(RUN, [json.dumps(record, indent=1).encode()])
    except NameTaken:
        confirm(folder, identity)


def confirm(folder: Folder, identity: dict[str, Any]) -> None:
    """JobError where the folder holds a run with another identity, naming every difference. It may hold none."""
    if folder.stat(RUN) is None:
        return
    found = differences(read_run(folder)["identity"], json.loads(json.dumps(identity)))
    if found:
        told = "; ".join(f"{path} is {shown(there)} there, {shown(here)} here" for path, there, here in found)
        raise JobError(f"storage.run_dir={folder.url} belongs to another run: {told}; use another storage.run_dir")


def read_run(folder: Folder) -> dict[str, Any]:
    """The content of run.json. JobError where it is missing, damaged or of a newer format."""
    try:
        record = json.loads(folder.read(RUN))
    except FileNotFoundError:
        raise JobError(f"{folder.url} holds no run: {RUN} is missing") from None
    except ValueError as error:
        raise JobError(f"{folder.url}/{RUN}: not JSON ({error})") from error
    if not isinstance(record, dict) or not isinstance(record.get("identity"), dict):
        raise JobError(f"{folder.url}/{RUN}: not a run record: `identity` is missing")
    if record.get("format") != FORMAT:
        raise JobError(f"{folder.url}/{RUN}: format {record.get('format')!r}, this version reads {FORMAT}")
    return record


def differences(there: Any, here: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Every key path whose values differ, with both; None for what is absent."""
    if isinstance(there, dict) and isinstance(here, dict):
        return [
            found
            for key in sorted(there.keys() | here.keys())
            for found in differences(there.get(key), here.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if there == here else [(path, there, here)]


def shown(value: Any) -> str:
    """A value of an identity in a line for people."""
    return value if isinstance(value, str) else "absent" if value is None else json.dumps(value)
