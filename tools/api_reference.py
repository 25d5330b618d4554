"""Writes docs/api.md, the Python interface, from the docstrings: `python -m tools.api_reference > docs/api.md`."""

import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

NAMES = {
    "pod_job.dataset": ("ActivationDataset", "endless", "scaling", "Scaling"),
    "pod_job.hooks": ("extract", "load_model", "LoadedModel", "create_model_with_hooks"),
    "pod_job.export": ("export_pickles",),
    "pod_job.training.layouts.export": ("export_saes",),
    "pod_job.training.layouts.read": ("read_saes",),
    "pod_job.training.saes": ("TrainedSae",),
}
"""Names that programs import, by the module at whose address they are."""
SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes|Source):$", re.M)
HEAD = """\
# The Python interface

Everything that programs import from this package: what it takes, returns and raises. Made by `make docs` from the
docstrings; do not edit. [README](../README.md) shows the interface at work, [sae-training.md](sae-training.md) trainers
on it.
"""


def page() -> str:
    """Returns docs/api.md."""
    return "\n".join([HEAD, *(part for name, names in NAMES.items() for part in of_module(name, names))])


def of_module(address: str, names: Sequence[str]) -> Iterator[str]:
    """Yields the section of a module: names of it with their signatures and docstrings."""
    yield f"## `{address}`\n"
    for name in names:
        value = getattr(importlib.import_module(address), name)
        yield f"### `{name}`\n"
        yield from described(name, value)
        if inspect.isclass(value):
            yield from of_class(value)


def of_class(kind: type) -> Iterator[str]:
    """Yields the public methods and properties of a class that have docstrings."""
    for name, value in vars(kind).items():
        member = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if name.startswith("_") or not inspect.getdoc(member) or not (callable(member) or isinstance(member, property)):
            continue
        yield f"#### `{kind.__name__}.{name}`\n"
        yield from text(member) if isinstance(member, property) else described(name, member)


def described(name: str, value: Any) -> Iterator[str]:
    yield f"```python\n{name}{signature(value)}\n```\n"
    yield from text(value)


def signature(value: Any) -> str:
    """Returns the parameters as Python writes them, one a line where they are many."""
    shown = inspect.signature(value)
    parameters = [part for name, part in shown.parameters.items() if name != "self"]
    shown = shown.replace(parameters=parameters)
    line = without_modules(str(shown))
    if len(line) <= 100:
        return line
    arrow = "" if shown.return_annotation is inspect.Signature.empty else line[line.rindex(" -> ") :]
    return "\n".join(["(", *(f"    {without_modules(str(part))}," for part in parameters), f"){arrow}"])


def without_modules(annotated: str) -> str:
    """Returns a signature with the last names of its types alone."""
    annotated = re.sub(r"<function .*? at 0x\w+>", "...", annotated)
    short = re.sub(r"\b(?:[A-Za-z_]\w*\.)+(\w+)", r"\1", annotated)
    return re.sub(r"\*<class '(\w+)'>|'([A-Z]\w*)'", lambda match: match[1] or match[2], short)


def text(value: Any) -> Iterator[str]:
    """Yields the docstring: its paragraphs as they are, each section of it as a list."""
    parts = SECTION.split(inspect.getdoc(value) or "")
    yield f"{parts[0].strip()}\n"
    for title, items in zip(parts[1::2], parts[2::2], strict=True):
        listed = [" ".join(item.split()) for item in re.split(r"\n    (?! )", items.rstrip()) if item.strip()]
        yield "\n".join([f"*{title}*\n", *(f"- {item}" for item in listed), ""])


if __name__ == "__main__":
    print(page(), end="")
