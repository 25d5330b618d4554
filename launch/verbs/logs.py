"""Prints what the hosts have logged, in the order of time, each line after its host's index.

The logs are in the run folder, so they can be read after the pod is gone.
"""

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator

from launch import clock
from launch.cloud.observe import POLL_S, read_all
from launch.job_config import config_of_run
from launch.verbs.arguments import add_follow, add_run
from pod_job.commands.command_line import DONE, Command
from pod_job.errors import JobError
from pod_job.run_folder.layout import log_file
from pod_job.run_folder.status import latest_start
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

EXAMPLES = ("runs/first", "gs://my-bucket/qwen --host 3 --follow")
STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}")


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--host", type=int, metavar="I", help="the log of this host only, from 0")
    add_follow(parser)


def logs(options: Namespace) -> int:
    config = config_of_run(options.overrides)
    folder = open_folder(config.storage.run_dir)
    latest = latest_start(folder, config.pod.hosts)
    most = max(config.pod.hosts, latest.hosts if latest else 0)  # starts of a run may have unequal numbers
    if options.host is not None and not 0 <= options.host < most:
        raise JobError(f"--host {options.host} is not a host of this pod; use 0..{most - 1}")
    chosen = range(most) if options.host is None else [options.host]
    shown = dict.fromkeys(chosen, 0)
    while True:
        latest = latest_start(folder, most)
        hosts = read_all(folder, latest.hosts, latest.attempt) if latest else []
        for host, lines in sorted_entries(folder, shown):
            for line in lines:
                print(f"{host:02d} {line}", flush=options.follow)
        ended = hosts and all(host is not None and host.phase.ended for host in hosts)
        if not options.follow or ended:
            if not any(shown.values()):
                raise JobError(f"storage.run_dir={config.storage.run_dir}: no host has logged anything there yet")
            return DONE
        clock.sleep(POLL_S)


def sorted_entries(folder: Folder, shown: dict[int, int]) -> list[tuple[int, list[str]]]:
    """Returns (host, lines) of every log entry that is new, by time.

    Args:
        shown: host -> number of characters of its log that have been shown; updated here.
    """
    entries = []
    for host, seen in shown.items():
        text = host_log(folder, host)
        seen = seen if seen <= len(text) else 0  # another attempt's log has taken its place
        shown[host] = len(text)
        entries += [(lines[0][:23], host, lines) for lines in split_entries(text[seen:])]
    return [(host, lines) for _, host, lines in sorted(entries, key=lambda entry: entry[:2])]


def split_entries(text: str) -> Iterator[list[str]]:
    """Yields the entries of a log: a line with a time and the lines that belong to it, such as a traceback."""
    entry: list[str] = []
    for line in text.splitlines():
        if STAMP.match(line) and entry:
            yield entry
            entry = []
        entry.append(line)
    if entry:
        yield entry


def host_log(folder: Folder, host: int) -> str:
    try:
        return folder.read(log_file(host)).decode(errors="replace")
    except FileNotFoundError:
        return ""


COMMAND = Command("logs", __doc__, EXAMPLES, add_arguments, logs)
