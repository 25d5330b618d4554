"""Tab completion: what may stand in each place of a command line, told to argcomplete when the shell asks."""

import argparse
import os
from collections.abc import Callable
from typing import Any

from pod_job.config.load import conf_dir, keys
from pod_job.config.schema import JobConfig


def complete(parser: argparse.ArgumentParser) -> None:
    """Answers and ends the process where a shell asks; else nothing, and argcomplete need not be installed."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete  # pyright: ignore[reportMissingImports]  # comes with the extra `completion`

        argcomplete.autocomplete(parser)


def offer(argument: argparse.Action, words: Callable[[str], list[str]]) -> None:
    """What an argument may be, by what is typed of it."""

    def completer(prefix: str, **_: Any) -> list[str]:
        return words(prefix)

    argument.completer = completer  # type: ignore[attr-defined]


def override_words(prefix: str) -> list[str]:
    """Fields and groups as far as `key=`; after that, of a group, its choices."""
    groups = {path.name: path for path in conf_dir().iterdir() if path.is_dir()}
    name, chosen, _ = prefix.partition("=")
    if chosen:
        found = sorted(file.stem for file in groups[name].glob("*.yaml")) if name in groups else []
        return [word for word in (f"{name}={choice}" for choice in found) if word.startswith(prefix)]
    return sorted(f"{word}=" for word in {*groups, *keys(JobConfig)} if word.startswith(prefix))
