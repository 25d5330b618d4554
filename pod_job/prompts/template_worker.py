"""Renders chats in a process of its own: a chat template is a program that a stranger may have written.

Started by `chat.py` as a script. Reads requests as JSON lines on stdin, and answers each chat of a request with a JSON
line on stdout: `{"text": ...}` or `{"error": ...}`. A template that computes too long ends this process, one that takes
too much memory or writes too much gets an error.
"""

import json
import os
import random
import resource
import signal
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any, TextIO

MEMORY_BYTES = 1 << 30
"""Memory that rendering may take."""
MOST_CHARACTERS = 1 << 24
"""Characters of a rendered chat at most."""


def main(cpu_s: float) -> None:
    """Answers requests until stdin ends; `cpu_s`: seconds of CPU time that one chat may take."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else prints does not mix with the answers
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers.tokenization_utils_base  # noqa: F401

    with suppress(ValueError, OSError):  # macOS has no such limit
        limit = address_space() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for line in sys.stdin:
        answer(json.loads(line), answers, cpu_s)


def address_space() -> int:
    """Returns the bytes of address space of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def answer(request: Any, answers: TextIO, cpu_s: float) -> None:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    renderer = PreTrainedTokenizerBase(chat_template=request["template"])
    set_date(request["date"])
    for chat in request["chats"]:
        random.seed(0)  # jinja has a filter `random`
        signal.setitimer(signal.ITIMER_PROF, cpu_s)  # its signal ends the process, whatever that is doing
        try:
            text: Any = renderer.apply_chat_template(
                chat["messages"], tokenize=False, **chat["values"], **request["tokens"]
            )
            if len(text) > MOST_CHARACTERS:
                raise ValueError(f"it writes {len(text):,} characters; at most {MOST_CHARACTERS:,} are taken")
            text.encode()
            result = {"text": text}
        except Exception as error:
            reason = str(error) if not isinstance(error, MemoryError) else "it takes too much memory"
            result = {"error": reason.strip() or type(error).__name__}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(result) + "\n")
        answers.flush()


def set_date(date: str | None) -> None:
    """Makes `strftime_now` of templates tell this time (ISO 8601) in place of the present one."""
    from transformers.utils import chat_template_utils

    class FixedTime(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) if date is None else datetime.fromisoformat(date)

    chat_template_utils.datetime = FixedTime  # pyright: ignore[reportPrivateImportUsage]


if __name__ == "__main__":
    main(float(sys.argv[1]))
