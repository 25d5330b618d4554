"""Tab completion: the words that may stand in each place of a command line, for argcomplete when a shell asks."""

import argparse
import os
from collections.abc import Callable
from typing import Any


def completing() -> bool:
    """Returns True where a shell has started this process for its completions."""
    return "_ARGCOMPLETE" in os.environ


def complete(parser: argparse.ArgumentParser) -> None:
    """Answers the shell and ends the process."""
    import argcomplete  # pyright: ignore[reportMissingImports]  # comes with the extra `completion`

    argcomplete.autocomplete(parser)


def offer(argument: argparse.Action, words: Callable[[str], list[str]]) -> None:
    """Lets the shell offer `words(prefix)` for an argument of which `prefix` has been typed."""

    def completer(prefix: str, **_: Any) -> list[str]:
        return words(prefix)

    argument.completer = completer  # type: ignore[attr-defined]


def override_words(prefix: str) -> list[str]:
    """Returns fields and groups as `key=`; after `group=`, the choices of that group."""
    from pod_job.config.load import conf_dir, keys  # Hydra, which takes longer than a whole --help
    from pod_job.config.schema import JobConfig

    groups = {path.name: path for path in conf_dir().iterdir() if path.is_dir()}
    name, equals, _ = prefix.partition("=")
    if equals:
        choices = sorted(file.stem for file in groups[name].glob("*.yaml")) if name in groups else []
        return [word for word in (f"{name}={choice}" for choice in choices) if word.startswith(prefix)]
    return sorted(f"{word}=" for word in {*groups, *keys(JobConfig)} if word.startswith(prefix))
