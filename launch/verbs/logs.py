"""Prints what the hosts have logged, in the order of time, each line after its host's index, or SLICE/INDEX.

The logs are in the run folder, so they can be read after the pod is gone.
"""

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from launch import clock
from launch.cloud.observe import POLL_S, latest_statuses
from launch.job_config import config_of_run
from launch.verbs.arguments import add_follow, add_run
from launch.verbs.status import complete
from pod_job.commands.command_line import DONE, Command
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.formats.records import read_bounded
from pod_job.run_folder.layout import log_file
from pod_job.run_folder.slices import report_folder
from pod_job.run_folder.status import HostStatus, Phase, latest_start
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

EXAMPLES = ("runs/first", "gs://my-bucket/run --host 3 --follow", "gs://my-bucket/run --slice 1")
MOST_BYTES = 256 << 20
"""Size of a host's log, which is held in memory; a day's has some megabytes."""
QUIET_S = 60.0  # from the last line of a run that is complete: hosts may have died at their exit
STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}")


class Log(NamedTuple):
    """Log of a host; `slice`: None where the run has one pod."""

    slice: str | None
    host: int

    def __str__(self) -> str:
        return f"{self.host:02d}" if self.slice is None else f"{self.slice}/{self.host:02d}"


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--host", type=int, metavar="I", help="the log of this host only, from 0")
    parser.add_argument("--slice", metavar="NAME", help="the logs of this slice only, of a run of several")
    add_follow(parser)


def logs(options: Namespace) -> int:
    config = config_of_run(options.overrides)
    folder = open_folder(config.storage.run_dir)
    shown: dict[Log, int] = {}
    printed = clock.monotonic()
    while True:
        statuses = latest_statuses(folder, config)
        if options.slice is not None:
            statuses = {options.slice: statuses_of(options.slice, statuses, options.follow)}
        for log in chosen_logs(folder, config, statuses, options.host):
            shown.setdefault(log, 0)
        for log, lines in sorted_entries(folder, shown):
            for line in lines:
                print(f"{log} {line}", flush=options.follow)
                printed = clock.monotonic()
        quiet = clock.monotonic() - printed > QUIET_S
        if not options.follow or ended(statuses) or (quiet and complete(config, folder)):
            if not any(shown.values()):
                raise JobError(f"storage.run_dir={config.storage.run_dir}: no host has logged anything there yet")
            return DONE
        clock.sleep(POLL_S)


def statuses_of(
    name: str, statuses: Mapping[str | None, Sequence[HostStatus | None]], may_come: bool
) -> Sequence[HostStatus | None]:
    """Returns the statuses of a slice; none of one that `may_come`. JobError for a name that no slice has."""
    if name in statuses or (may_come and None not in statuses):
        return statuses.get(name, [])
    names = [known for known in statuses if known is not None]
    fix = f"use one of {', '.join(names)}" if names else "leave it out: the run has one pod"
    raise JobError(f"--slice {name} has reported nothing; {fix}")


def ended(statuses: Mapping[str | None, Sequence[HostStatus | None]]) -> bool:
    """Returns whether no host will log more: all have ended, or a slice has seen the end of the run.

    A host of a slice that has not reported may never come.
    """
    done = (bool(hosts) and all(host and host.phase is Phase.done for host in hosts) for hosts in statuses.values())
    awaited = [host for name, hosts in statuses.items() for host in hosts if host is not None or name is None]
    return any(done) or (bool(awaited) and all(host is not None and host.phase.ended for host in awaited))


def chosen_logs(
    folder: Folder, config: JobConfig, statuses: Mapping[str | None, Sequence[HostStatus | None]], host: int | None
) -> list[Log]:
    """Returns the logs to show. JobError for a host that no start of a slice had."""
    chosen = []
    for name in statuses:
        latest = latest_start(report_folder(folder, name), config.pod.hosts)
        most = max(config.pod.hosts, latest.hosts if latest else 0)  # starts of a run may have unequal numbers
        if host is not None and not 0 <= host < most:
            raise JobError(f"--host {host} is not a host of this pod; use 0..{most - 1}")
        chosen += [Log(name, number) for number in (range(most) if host is None else [host])]
    return chosen


def sorted_entries(folder: Folder, shown: dict[Log, int]) -> list[tuple[Log, list[str]]]:
    """Returns the log and the lines of every entry that is new, by time.

    Args:
        shown: log -> number of its characters that have been shown; updated here.
    """
    entries = []
    for order, (log, seen) in enumerate(shown.items()):
        text = host_log(report_folder(folder, log.slice), log.host)
        seen = seen if seen <= len(text) else 0  # another attempt's log has taken its place
        shown[log] = len(text)
        entries += [(lines[0][:23], order, log, lines) for lines in split_entries(text[seen:])]
    return [(log, lines) for _, _, log, lines in sorted(entries, key=lambda entry: entry[:2])]


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
        return read_bounded(folder, log_file(host), MOST_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return ""


COMMAND = Command("logs", __doc__, EXAMPLES, add_arguments, logs)
