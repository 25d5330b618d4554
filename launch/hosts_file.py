"""File of hosts that the user has started: one host per line, in groups, each of which is a TPU slice.

A blank line or a line `[slice NAME]` begins the next slice; where there are such lines, blank ones mean nothing. What
follows a `#` is a comment.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pod_job.config.schema import SLICE_NAME, JobConfig
from pod_job.errors import JobError

SECTION = re.compile(r"\[\s*slice\b\s*(.*?)\s*\]", re.IGNORECASE)
# Never begins with "-", which ssh would take for an option.
HOST = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][\w.-]*)@)?(?P<name>[A-Za-z0-9_][\w.-]*|\[[0-9A-Fa-f:.]+(%\w+)?\])(?::(?P<port>\d{1,5}))?"
)
MOST_BYTES = 1 << 20
UNREAD = "(not read)"
"""Stands for the path in the configuration of a run folder, which is not followed."""


@dataclass(frozen=True)
class SshHost:
    """A host as ssh reaches it: `name` may be an alias of ~/.ssh/config; `port` and `user`: None for ssh's own."""

    name: str
    user: str | None = None
    port: int | None = None

    @property
    def target(self) -> str:
        return self.name if self.user is None else f"{self.user}@{self.name}"

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name and self.port is not None else self.name
        user = "" if self.user is None else f"{self.user}@"
        return f"{user}{name}" + ("" if self.port is None else f":{self.port}")


@dataclass(frozen=True)
class HostGroup:
    """Hosts of a slice, in the order of their workers. `line`: where the group begins in the file."""

    name: str
    line: int
    hosts: tuple[SshHost, ...]


@cache
def read_hosts_file(path: str) -> tuple[HostGroup, ...]:
    """Returns the groups of a file, which is read once: who changes it meanwhile starts the verb again.

    Raises:
        JobError: the file cannot be read, or a line is wrong.
    """
    field = f"pod.hosts_file={path}"
    try:
        with Path(path).expanduser().open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise JobError(
            f"{field} cannot be read ({error.strerror}); give a file with one host per line, NAME or USER@NAME:PORT"
        ) from error
    if len(data) > MOST_BYTES:
        raise JobError(f"{field} is over {MOST_BYTES >> 20} MiB; give a file with one host per line")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise JobError(f"{field}, line {line}: not UTF-8 text; write host names in ASCII") from error
    return parse_hosts(text, field)


def parse_hosts(text: str, field: str) -> tuple[HostGroup, ...]:
    """Returns the groups in the text of a file. JobError names `field`, the line, what is wrong, and the fix."""
    groups: list[tuple[str, int, list[SshHost]]] = []
    first_lines: dict[tuple[str, int | None], int] = {}
    sections, names = False, set[str]()
    after_blank = True
    for number, content in lines_of(text):
        where = f"{field}, line {number}"
        if not content:
            after_blank = True
            continue
        if section := SECTION.fullmatch(content):
            if groups and not sections:
                raise JobError(f"{where}: hosts stand before the first section; begin the file with [slice NAME]")
            name = section[1]
            if not SLICE_NAME.fullmatch(name):
                raise JobError(
                    f"{where}: {name!r} is no name of a slice; use up to 40 of a-z, 0-9 and -, as in [slice a-1]"
                )
            if name in names:
                raise JobError(f"{where}: [slice {name}] stands twice; give each slice a name of its own")
            sections = True
            names.add(name)
            groups.append((name, number, []))
            continue
        host = parse_host(content, where)
        address = host.name.lower(), host.port
        if address in first_lines:
            raise JobError(f"{where}: {host.name} is listed in line {first_lines[address]} too; leave one out")
        first_lines[address] = number
        if after_blank and not sections:
            groups.append((str(len(groups)), number, []))
        after_blank = False
        groups[-1][2].append(host)
    empty = next((group for group in groups if not group[2]), None)
    if empty is not None:
        raise JobError(
            f"{field}, line {empty[1]}: [slice {empty[0]}] has no hosts; list them below it, or leave it out"
        )
    if not groups:
        raise JobError(f"{field} lists no host; write one per line, NAME or USER@NAME:PORT")
    return tuple(HostGroup(name, line, tuple(hosts)) for name, line, hosts in groups)


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """Yields each line's number, from 1, and its text without the comment; a comment alone is no blank line."""
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        content, comment, _ = line.partition("#")
        if content.strip() or not comment:
            yield number, content.strip()


def parse_host(text: str, where: str) -> SshHost:
    """Returns the host of a line. JobError for anything but one NAME, USER@NAME or USER@NAME:PORT."""
    match = HOST.fullmatch(text)
    port = int(match["port"]) if match and match["port"] else None
    if match is None or (port is not None and not 1 <= port <= 65535):
        if re.fullmatch(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*", text):
            raise JobError(f"{where}: {text} is an IPv6 address without brackets; write [{text}]")
        raise JobError(f"{where}: {text[:80]!r} is not a host; write one NAME, USER@NAME or USER@NAME:PORT per line")
    return SshHost(match["name"].strip("[]"), match["user"], port)


def groups_of(config: JobConfig) -> tuple[HostGroup, ...]:
    """Returns the slices of a job on hosts of a file, or the one that `pod.slice` names.

    Raises:
        JobError: the file is wrong, or does not fit pod.slices and pod.hosts.
    """
    pod, path = config.pod, config.pod.hosts_file
    assert path is not None
    if path == UNREAD:
        raise JobError(
            "pod.hosts_file: the run was started on hosts of a file, whose path is not taken from a run folder; give "
            "pod.hosts_file=FILE after it"
        )
    groups = read_hosts_file(path)
    field = f"pod.hosts_file={path}"
    if pod.slice is not None and (named := [group for group in groups if group.name == pod.slice]):
        groups = tuple(named)
    elif pod.slice is not None and len(groups) > 1:
        raise JobError(
            f"pod.slice={pod.slice} is not in {field}; use one of {', '.join(group.name for group in groups)}"
        )
    elif pod.slice is None and len(groups) != pod.slices:
        raise JobError(f"{field} has {slices_text(groups)}; set pod.slices={len(groups)}, one for each group of hosts")
    for group in groups:
        if len(group.hosts) != pod.hosts:
            raise JobError(
                f"{field}, line {group.line}: slice {group.name} has {len(group.hosts)} hosts, and "
                f"pod.hosts={pod.hosts}; list each slice's hosts as a group of its own, with a "
                "blank line between groups, or set pod.hosts and a mesh to match"
            )
    return groups


def slices_text(groups: Sequence[HostGroup]) -> str:
    return f"{len(groups)} groups of hosts" if len(groups) > 1 else "one group of hosts"
