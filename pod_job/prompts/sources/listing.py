"""Files of a task source: where `tasks.path` leads, which kind they are, and which of them belong to the split."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pod_job.config.tasks import TaskFormat, TasksConfig
from pod_job.errors import JobError
from pod_job.formats.json_text import parse_json
from pod_job.prompts.sources.compressed import CODECS, codec_of, pieces_of
from pod_job.prompts.sources.file_lists import IRREGULAR, WILDCARDS, base_of, below, list_place, matches
from pod_job.prompts.sources.hub_names import by_name, is_dataset_name, list_dataset
from pod_job.prompts.sources.index import FileEntry
from pod_job.prompts.sources.places import FIELD, HUB, Listed, open_file
from pod_job.prompts.sources.saved import is_saved, saved_parts
from pod_job.prompts.sources.split import SplitPart, chosen_parts
from pod_job.storage.local_files import expanded

KINDS = {
    "parquet": (".parquet",),
    "arrow": (".arrow", ".feather"),
    "jsonl": (".jsonl", ".ndjson"),
    "csv": (".csv", ".tsv"),
    "tokens": (".npy", ".npz", ".safetensors", ".bin"),
    "json": (".json",),
    "text": (".txt",),
}
"""Endings of the files of each kind, before those of compression; of a folder the first kind there is read."""
OF_FORMAT = {
    TaskFormat.auto: ("parquet", "arrow", "jsonl", "csv", "tokens", "json", "text"),
    TaskFormat.arc: ("json", "jsonl"),
    TaskFormat.jsonl: ("jsonl", "json"),
    TaskFormat.text: ("text",),
    TaskFormat.lines: ("text",),
    TaskFormat.tokens: ("tokens",),
    TaskFormat.dataset: ("parquet", "arrow", "jsonl", "csv", "json", "text"),
}
"""Kinds of files that a format reads."""
TABLES = ("parquet", "arrow", "csv", "jsonl")
COMPRESSED = ("jsonl", "json", "text", "csv")
SHARD = re.compile(r"(?P<before>.*?)(?P<number>\d+)-of-(?P<total>\d+)(?P<after>[^/]*)")
MOST_SHARDS = 100_000
SMALL_BYTES = 32 << 20
"""A source of at most so many bytes (compressed, a quarter) is read whole at every start, and needs no index."""
PEEKED_BYTES = 1 << 20


@dataclass(frozen=True)
class Listing:
    """The files of a source, not counted yet, and the parts of their splits that are used: none, all of it."""

    kind: str
    files: list[FileEntry]
    parts: tuple[SplitPart, ...] = ()

    @property
    def format(self) -> TaskFormat:
        """The format that the kind is of, for which `tasks.format` need not be given."""
        same = ("arc", "jsonl", "text", "lines", "tokens")
        return TaskFormat(self.kind) if self.kind in same else TaskFormat.dataset

    @property
    def small(self) -> bool:
        factor = {True: 4, False: 1}
        return sum(entry.size * factor[is_compressed(entry.url)] for entry in self.files) <= SMALL_BYTES

    @property
    def content(self) -> str:
        """A name for these files: their names, sizes and, where a listing has them, checksums."""
        files = [[entry.name, entry.size, entry.checksum, entry.split] for entry in self.files]
        return hashlib.sha256(json.dumps([self.kind, files]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Group:
    """Files of one path, or of one part of its splits.

    Attributes:
        base: the folder that they are in, or the file.
        named: what their names begin with instead, where they were uploaded from.
    """

    part: SplitPart | None
    base: str
    named: str
    files: list[Listed]

    def path_of(self, entry: Listed) -> str:
        """Returns the URL of a file, or the path that it was uploaded from."""
        return self.named + entry.url.removeprefix(self.base) if self.named != self.base else entry.url


def source_key(config: TasksConfig) -> str:
    """Returns a name for the files that a configuration asks for, and how they are read."""
    asked = [config.paths, config.format.value, config.subset, config.split, config.field]
    return hashlib.sha256(json.dumps([*asked, config.dtype, config.row_tokens]).encode()).hexdigest()[:16]


def list_source(config: TasksConfig) -> Listing:
    """Lists the files of `tasks.path`.

    Raises:
        JobError: a place is empty or cannot be listed, files are of several kinds, or a shard is missing.
    """
    if "" in config.paths:
        raise JobError(f"{FIELD} is empty; give a file, a folder or a pattern of task files")
    groups: list[Group] = []
    kinds: dict[str, str] = {}
    for path, place in zip(config.paths, config.places, strict=True):
        for part, base, listed in expand(config, place):
            kind, chosen = of_one_kind(config, place, base, listed)
            if chosen:
                kinds.setdefault(kind, chosen[0].url)
            groups.append(Group(part, base, base if place == path else base_of(path), chosen))
    if len(kinds) > 1:
        raise JobError(f"{FIELD}: {' and '.join(kinds.values())} are of different kinds; use files of one kind")
    if not kinds:
        return Listing(config.format.value, [])
    parts = [group.part for group in groups if group.part is not None]
    if parts and len(parts) < len(groups):
        parts = []  # whole files beside parts
    entries = named(config, groups)
    return Listing(sniffed(config, next(iter(kinds)), entries), entries, tuple(dict.fromkeys(parts)))


def expand(config: TasksConfig, path: str) -> list[tuple[SplitPart | None, str, list[Listed]]]:
    """Returns the files of one path, of each part of `tasks.split` where it has splits; and the folder they are in."""
    local = expanded(path)
    by_split = config.format is TaskFormat.dataset
    on_hub = is_dataset_name(path) and not path.endswith(endings(config.format)) and not os.path.lexists(local)
    if config.format in (TaskFormat.auto, TaskFormat.dataset) and on_hub:
        return [
            (part, f"{HUB}{path}", listed) for part, listed in list_dataset(config, path, endings(TaskFormat.dataset))
        ]
    base, listed = list_place(path)
    if is_saved(base, listed):
        return [(part, base, files) for part, files in saved_parts(config, path, base, listed)]
    if not by_split:
        return [(None, base, listed)]
    files = {below(entry.url, base): entry for entry in visible(base, listed)}
    names = [name for name in files if name.endswith(endings(TaskFormat.dataset))] or list(files)
    single = is_file(path, base, listed)
    splits = {"train": names} if single else by_name(dataclasses.replace(config, subset=None), names)
    parts = chosen_parts(path, config.split, list(splits))
    return [(part, base, [files[name] for name in splits[part.name]]) for part in parts]


def endings(format: TaskFormat) -> tuple[str, ...]:
    """Returns the endings of the files that a format reads, those of compression included."""
    plain = [(kind, suffix) for kind in OF_FORMAT[format] for suffix in KINDS[kind]]
    return tuple(
        f"{suffix}{codec}" for kind, suffix in plain for codec in ("", *CODECS) if kind in COMPRESSED or not codec
    )


def visible(base: str, listed: Sequence[Listed]) -> list[Listed]:
    return [entry for entry in listed if not any(word.startswith(".") for word in below(entry.url, base).split("/"))]


def is_compressed(url: str) -> bool:
    return url.lower().endswith((*CODECS, ".parquet"))


def kind_of(url: str) -> str | None:
    """Returns the kind of a file by its ending; None for one that is none of ours."""
    url = url.lower()
    for codec in CODECS:
        url = url.removesuffix(codec)
    return next((kind for kind, suffixes in KINDS.items() if url.endswith(suffixes)), None)


def of_one_kind(config: TasksConfig, path: str, base: str, listed: list[Listed]) -> tuple[str, list[Listed]]:
    """Returns the files of the kind that is read, and the kind."""
    wanted = OF_FORMAT[config.format]
    one_file = is_file(path, base, listed)
    if one_file or (listed and WILDCARDS.search(path)):  # a person named these very files
        if not one_file:
            check_shards(path, base, listed)
        kinds = {kind_of(entry.url): entry.url for entry in listed}
        if config.format not in (TaskFormat.auto, TaskFormat.dataset, TaskFormat.tokens):
            return wanted[0], listed
        if unknown := next((url for kind, url in kinds.items() if kind not in wanted), None):
            known = ", ".join(sorted(suffix for kind in wanted for suffix in KINDS[kind]))
            raise JobError(f"{FIELD}={unknown}: its name does not tell what it is; set tasks.format, or use {known}")
        if len(kinds) > 1:
            raise JobError(f"{FIELD}: {' and '.join(kinds.values())} are of different kinds; use files of one kind")
        return str(next(iter(kinds))), listed
    if config.format is TaskFormat.arc:
        seen = visible(base, listed)
        direct = [entry for entry in seen if "/" not in below(entry.url, base)]
        of_kinds = (
            [entry for entry in files if kind_of(entry.url) == kind] for files in (direct, seen) for kind in wanted
        )
        return "json", next(filter(None, of_kinds), [])
    if config.format is not TaskFormat.text:
        listed = visible(base, listed)
    by_kind = {kind: [entry for entry in listed if kind_of(entry.url) == kind] for kind in wanted}
    present = [kind for kind in wanted if by_kind[kind]]
    if len(tables := [kind for kind in present if kind in TABLES]) > 1:
        names = " and ".join(by_kind[kind][0].url for kind in tables)
        raise JobError(f"{FIELD}={path} has files of several kinds, {names}; name those of one kind: {path}/*.jsonl")
    if not present:
        if listed and config.format not in (TaskFormat.text, TaskFormat.arc):
            raise JobError(f"{FIELD}={path} has no file that can be read; it has {listed[0].url}; set tasks.format")
        return wanted[0], []
    check_shards(path, base, by_kind[present[0]])
    return present[0], by_kind[present[0]]


def is_file(path: str, base: str, listed: Sequence[Listed]) -> bool:
    """Returns whether a path names one file, and not a folder or a glob."""
    return len(listed) == 1 and below(listed[0].url, base) == path.rstrip("/").rpartition("/")[2]


def check_shards(path: str, base: str, listed: Sequence[Listed]) -> None:
    """Raises JobError that names a shard that is missing of those that say how many there are: 00000-of-00010."""
    sets: dict[tuple[str, str, str], set[int]] = {}
    for entry in listed:
        if match := SHARD.fullmatch(entry.url):
            sets.setdefault((match["before"], match["total"], match["after"]), set()).add(int(match["number"]))
    for (before, total, after), numbers in sets.items():
        for number in range(min(int(total), MOST_SHARDS)):
            name = f"{before}{number:0{len(total)}d}-of-{total}{after}"
            if number not in numbers and not (min(numbers) == 1 and number == 0):
                wanted = WILDCARDS.search(path) is None or matches(below(name, base), path[len(base) + 1 :])
                if wanted:
                    raise JobError(f"{FIELD}={path}: the shard {name} is missing; copy it, or name the others")


def named(config: TasksConfig, groups: Sequence[Group]) -> list[FileEntry]:
    """Returns the files as entries of an index, each once, by names that tell them apart wherever they lie."""
    entries: dict[str, FileEntry] = {}
    many = len(config.paths) > 1
    base = common_folder([group.named for group in groups]) if many else ""
    for group in groups:
        for item in group.files:
            name = group.path_of(item).removeprefix(base) if many else below(item.url, group.base)
            split = group.part.name if group.part is not None else ""
            state = item.state
            if state == IRREGULAR:
                raise JobError(f"{FIELD}={item.url} is not a regular file; name the files that are to be read")
            entries[item.url] = FileEntry(
                url=item.url, name=name, size=state.size, version=state.version, checksum=item.checksum, split=split
            )
    return list(entries.values())


def common_folder(folders: Sequence[str]) -> str:
    """Returns what the folders begin with, up to a slash."""
    words = [f"{folder}/".split("/")[:-1] for folder in folders]
    shared = []
    for column in zip(*words, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(f"{column[0]}/")
    return "".join(shared)


def sniffed(config: TasksConfig, kind: str, entries: Sequence[FileEntry]) -> str:
    """Returns the kind of the samples, which for JSON the first file tells: ARC tasks, or objects with fields."""
    if config.format is TaskFormat.arc:
        return "arc"
    if config.format is TaskFormat.lines or (config.format is TaskFormat.dataset and kind == "text"):
        return "lines"
    if config.format is not TaskFormat.auto or kind not in ("json", "jsonl") or not entries:
        return "jsonl" if kind == "json" else kind
    first = entries[0]
    if codec_of(first.url):
        start = next(pieces_of(open_file(first.url), first.size), b"")
    else:
        start = open_file(first.url).read(0, min(first.size, PEEKED_BYTES))
    complete = [line for line in start.split(b"\n") if line.strip()]
    try:
        content = parse_json(complete[0]) if complete else {}
    except ValueError:
        return "arc" if kind == "json" else "jsonl"  # an object over many lines
    if isinstance(content, dict) and {"train", "test"} <= content.keys():
        return "arc"
    record = isinstance(content, dict) and content and not any(isinstance(value, dict) for value in content.values())
    return "arc" if kind == "json" and len(complete) == 1 and not record else "jsonl"
