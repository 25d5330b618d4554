"""Rewrites the list of verbs in docs/commands.md from the verbs' own parsers: `python -m tools.verb_reference`."""

from pathlib import Path

from launch.dispatch import command_of
from launch.verb_table import GROUPS

PAGE = Path("docs/commands.md")
BEGIN, END = "<!-- begin: made by `make docs` -->\n", "<!-- end -->\n"


def tables() -> str:
    """Returns a section per group of verbs: the usage and the purpose of each."""
    sections = []
    for title, verbs in GROUPS.items():
        rows = [f"| `{usage(name)}` | {verb.purpose} |" for name, verb in verbs.items()]
        sections.append("\n".join([f"## {title.capitalize()}", "", "| command | purpose |", "|---|---|", *rows]))
    return "\n" + "\n\n".join(sections) + "\n\n"


def usage(verb: str) -> str:
    """Returns the usage of a verb in one line, for a cell of a table."""
    words = command_of(verb).parser().format_usage().split()
    return " ".join(word for word in words[1:] if word != "[-h]").replace("|", "\\|")


def rewritten(page: str) -> str:
    """Returns the page with the current tables between its two marks."""
    head, _, rest = page.partition(BEGIN)
    return head + BEGIN + tables() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
