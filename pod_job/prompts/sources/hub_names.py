"""Names on the Hugging Face hub as files: which files of a repository are a split of a subset.

As `datasets` decides it: the list `configs` at the top of README.md, else the names of files and folders; where a
repository has no files that can be read, the Parquet files that the hub makes of every dataset.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Any

import yaml

from pod_job.config.tasks import TasksConfig
from pod_job.errors import JobError, first_line
from pod_job.prompts.sources.file_lists import list_hub, matches
from pod_job.prompts.sources.places import HUB, Listed, hub_parts, open_file
from pod_job.prompts.sources.split import SplitPart, chosen_parts

NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./%-]+)?")
CONVERTED = "refs%2Fconvert%2Fparquet"
MOST_README = 8 << 20
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def list_dataset(config: TasksConfig, name: str, readable: Sequence[str]) -> list[tuple[SplitPart, list[Listed]]]:
    """Returns the files of each part of `tasks.split`, in its order.

    Args:
        readable: endings of the files that can be read.
    Raises:
        JobError: the hub has no such dataset, subset or split.
    """
    listed = list_hub(f"{HUB}{name}")
    files = {hub_parts(entry.url)[2]: entry for entry in listed}
    names = [file for file in files if file.endswith(tuple(readable))]
    splits = declared(config, readme(files), names) or by_name(config, names)
    if not any(splits.values()):
        repo = name.partition("@")[0]
        files, splits = converted(config, f"{HUB}{repo}@{CONVERTED}")
    parts = chosen_parts(name, config.split, list(splits))
    return [(part, [files[file] for file in splits[part.name]]) for part in parts]


def readme(files: dict[str, Listed]) -> Mapping[str, Any]:
    """Returns the metadata at the top of README.md; nothing where there is none that can be read."""
    if "README.md" not in files:
        return {}
    entry = files["README.md"]
    text = open_file(entry.url).read(0, min(entry.state.size, MOST_README)).decode(errors="replace")
    match = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    try:
        content = yaml.safe_load(match[1]) if match else None
    except Exception:  # its constructors raise what a value makes them raise
        return {}
    return content if isinstance(content, dict) else {}


def declared(config: TasksConfig, metadata: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[str]]:
    """Returns the files of each split that `configs` in the metadata gives the subset; {} where it gives none."""
    listed = metadata.get("configs")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    entries = [entry for entry in entries if entry.get("data_files")]
    if not entries:
        return {}
    by_subset = {as_text(entry.get("config_name", "default")): entry for entry in entries}
    default = next((name for name, entry in by_subset.items() if entry.get("default") is True), None)
    subset = config.subset or default or ("default" if "default" in by_subset else None)
    if subset is None and len(by_subset) == 1:
        subset = next(iter(by_subset))
    if subset not in by_subset:
        missing = " is not set" if subset is None else f"={subset} is not there"
        raise JobError(f"tasks.subset{missing}; {config.path} has {', '.join(list(by_subset)[:20])}")
    directory = as_text(by_subset[subset].get("data_dir") or "").strip("/")
    splits = {}
    for split, patterns in split_patterns(by_subset[subset]["data_files"]).items():
        inside = [f"{directory}/{pattern}".lstrip("/") for pattern in patterns]
        splits[split] = [name for name in names if any(matches(name, pattern) for pattern in inside)]
    return splits


def split_patterns(given: Any) -> dict[str, list[str]]:
    """Returns the patterns of each split in `data_files` of README.md; what is not as documented is left out."""
    entries = given if isinstance(given, list) else [given]
    if all(isinstance(entry, str) for entry in entries):
        return {"train": entries}
    patterns = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(path := entry.get("path"), str | list):
            continue
        if split := as_text(entry.get("split")):
            patterns[split] = [as_text(pattern) for pattern in (path if isinstance(path, list) else [path])]
    return patterns


def as_text(value: Any) -> str:
    """Returns a name, number or date of the metadata as text; "" for lists, which may hold each other without end."""
    if isinstance(value, int):
        return str(value) if value.bit_length() < 64 else ""
    return str(value) if isinstance(value, str | float | date) else ""


def by_name(config: TasksConfig, names: Iterable[str]) -> dict[str, list[str]]:
    """Returns the files of each split by the words in their names; all are `train` where no name has such a word."""
    inside = [name for name in names if config.subset is None or config.subset in name.split("/")[:-1]]
    if config.subset is not None and not inside:
        return {}
    splits: dict[str, list[str]] = {}
    for name in inside:
        words = re.split(r"[/_.\-\d\s]+", name.lower())
        split = next((split for split, known in SPLIT_WORDS.items() if set(known) & set(words)), None)
        splits.setdefault(split or "", []).append(name)
    unnamed = splits.pop("", [])
    return splits or {"train": unnamed}


def converted(config: TasksConfig, url: str) -> tuple[dict[str, Listed], dict[str, list[str]]]:
    """Returns the Parquet files that the hub made of a dataset, and those of each split of the subset."""
    try:
        files = {hub_parts(entry.url)[2]: entry for entry in list_hub(url)}
    except JobError as error:
        raise JobError(
            f"tasks.path={config.path} has no files that can be read (Parquet, Arrow, JSON lines, CSV), nor does the "
            f"hub have it as Parquet ({first_line(error)}); give its files as {HUB}..."
        ) from error
    subsets = sorted({name.split("/")[0] for name in files if name.endswith(".parquet")})
    subset = config.subset or ("default" if "default" in subsets or len(subsets) != 1 else subsets[0])
    splits: dict[str, list[str]] = {}
    for name in files:
        folder, _, rest = name.partition("/")
        if folder == subset and name.endswith(".parquet"):
            splits.setdefault(rest.split("/")[0].removeprefix("partial-"), []).append(name)
    if not splits:
        raise JobError(f"tasks.subset={config.subset} is not there; {config.path} has {', '.join(subsets[:20])}")
    return files, splits


def is_dataset_name(path: str) -> bool:
    """Returns whether a path is a name on the hub: OWNER/NAME, with a revision if wanted."""
    return NAME.fullmatch(path) is not None
