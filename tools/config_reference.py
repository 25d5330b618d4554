"""Writes docs/configuration.md from the schema: the type, default and comment of every field.

`python -m tools.config_reference > docs/configuration.md`, or `make docs`.
"""

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from enum import Enum
from typing import Any, get_type_hints

from omegaconf import MISSING

from pod_job.config.load import conf_dir
from pod_job.config.schema import JobConfig

HEAD = """\
# Configuration, field by field

Every field of the configuration, with its type, default and meaning. Made by `make docs` from the schema in
`pod_job/config`; do not edit.

Every field can be set on the command line as `key=value`. Groups of values are files in `conf/`, chosen by the name of
their folder: """


def page() -> str:
    """Returns docs/configuration.md."""
    groups = sorted(path.name for path in conf_dir().iterdir() if path.is_dir())
    files = "; ".join(f"`{group}=` {', '.join(choices(group))}" for group in groups)
    lines = [HEAD + files + ".", "", *table("", JobConfig), "", "## Choices", ""]
    for kind in dict.fromkeys(enums(JobConfig)):
        values = ", ".join(f"`{member.name}`" for member in kind)
        lines.append(f"- {' '.join(f'**{kind.__name__}**: {values}. {summary(kind)}'.split())}")
    return "\n".join(lines) + "\n"


def choices(group: str) -> list[str]:
    return [f"`{path.stem}`" for path in sorted((conf_dir() / group).glob("*.yaml"))]


def table(prefix: str, schema: Any) -> Iterator[str]:
    """Yields the lines of a section's table, then those of the sections in it, each under its own heading."""
    types, comments, sections = get_type_hints(schema), comments_of(schema), []
    yield from ("| field | type | default | meaning |", "|---|---|---|---|")
    for item in dataclasses.fields(schema):
        if dataclasses.is_dataclass(types[item.name]):
            sections.append((f"{prefix}{item.name}.", types[item.name]))
            continue
        kind = types[item.name]
        if entry := next(filter(dataclasses.is_dataclass, getattr(kind, "__args__", ())), None):
            sections.append((f"{prefix}{item.name}[].", entry))
        meaning = comments.get(item.name, "see below" if isinstance(kind, type) and issubclass(kind, Enum) else "")
        cells = (f"`{prefix}{item.name}`", type_name(kind), default(item), meaning)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    for name, section in sections:
        yield from ("", f"## {name.rstrip('.')}", "")
        if text := summary(section):
            yield from (text, "")
        yield from table(name, section)


def comments_of(schema: Any) -> dict[str, str]:
    """Returns the comment on the line of each field in the source."""
    return dict(re.findall(r"^    (\w+): [^#\n]*# (.*)$", inspect.getsource(schema), re.MULTILINE))


def enums(schema: Any) -> Iterator[type[Enum]]:
    """Yields the enums of all fields, in the order of the fields."""
    for kind in get_type_hints(schema).values():
        for part in (kind, *getattr(kind, "__args__", ())):
            if dataclasses.is_dataclass(part):
                yield from enums(part)
            elif isinstance(part, type) and issubclass(part, Enum):
                yield part


def summary(kind: Any) -> str:
    """Returns the class's docstring in one line; empty where it is the one that dataclasses generate."""
    text = kind.__doc__ or ""
    return "" if text.startswith(f"{kind.__name__}(") else " ".join(text.split())


def type_name(kind: Any) -> str:
    """Returns the type without the names of modules."""
    return (
        kind.__name__
        if isinstance(kind, type) and not hasattr(kind, "__args__")
        else re.sub(r"[\w.]+\.", "", str(kind))
    )


def default(item: dataclasses.Field) -> str:
    """Returns the field's default as it is written in an override."""
    factory = item.default_factory
    value = factory() if factory is not dataclasses.MISSING else item.default
    if value == MISSING:
        return "must be set"
    return f"`{value.name if isinstance(value, Enum) else 'null' if value is None else value}`"


if __name__ == "__main__":
    sys.stdout.write(page())
