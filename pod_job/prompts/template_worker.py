"""Renders chats in a process of its own: a chat template is a program that a stranger may have written.

Started by `chat.py` as a script. Reads requests as JSON lines on stdin, and answers each chat of a request with a JSON
line on stdout: `{"text": ..., "spans": [[start, end, role, marked], ...]}` or `{"error": ...}`. A template that
computes too long ends this process, one that takes too much memory or writes too much gets an error.
"""

import json
import os
import random
import re
import resource
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, TextIO

MEMORY_BYTES = 1 << 30
"""Memory that rendering may take."""
MOST_CHARACTERS = 1 << 24
"""Characters of a rendered chat at most."""
MOST_REASON = 10_000
"""Characters of a refusal at most; a template may give any text as its reason."""


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
            values = named(request["tokens"]) | chat["values"]
            text: Any = renderer.apply_chat_template(chat["messages"], tokenize=False, **values)
            if len(text) > MOST_CHARACTERS:
                raise ValueError(f"it writes {len(text):,} characters; at most {MOST_CHARACTERS:,} are taken")
            text.encode()
            spans = Spans(renderer, chat, request["tokens"], text).find() if request["roles"] else []
            result = {"text": text, "spans": spans}
        except Exception as error:
            reason = str(error) if not isinstance(error, MemoryError) else "it takes too much memory"
            result = {"error": reason.strip()[:MOST_REASON] or type(error).__name__}
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


class Spans:
    """Parts of a rendered chat by the role of the message that they were written from.

    What an assistant wrote is what the template marks as generated. Where it marks nothing it is what the template
    writes for the message after the opening of an answer, as far as its end token. Of other messages, and where
    messages change how earlier ones are written, it is their content, found by rendering with a mark in it.
    """

    def __init__(self, renderer: Any, chat: Any, tokens: Mapping[str, Any], text: str) -> None:
        self.renderer, self.messages, self.text = renderer, chat["messages"], text
        self.values = named(tokens) | chat["values"]
        self.opening = self.values.pop("add_generation_prompt", False)
        self.mark = next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)
        names = sorted(filter(None, tokens["all_special_tokens"]), key=len, reverse=True)
        self.end_token = re.compile(rf"\s*(?:{'|'.join(map(re.escape, names))})" if names else "(?!)")

    def find(self) -> list[tuple[int, int, str, bool]]:
        """Returns [start, end) of each part in the text, its role, and whether the template marks it."""
        generated = self.generated()
        spans = [] if generated is None else [(start, end, "assistant", True) for start, end in generated]
        for number, message in enumerate(self.messages):
            if message["role"] != "assistant":
                spans.append((*self.content(number), message["role"], False))
            elif generated is None:
                spans.append((*self.written(number), "assistant", False))
        return [span for span in spans if span[1] > span[0]]

    def render(self, messages: Any, opening: bool) -> str | None:
        """Returns other messages as the template writes them; None where it refuses them."""
        random.seed(0)
        try:
            return self.renderer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=opening, **self.values
            )
        except Exception:
            return None

    def generated(self) -> list[tuple[int, int]] | None:
        """Returns what the template marks by `{% generation %}`; None where it has no such marks."""
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self.renderer.get_chat_template(None, self.values.get("tools"))
        if not re.search(r"\{%-?\s*generation\s*-?%\}", template):
            return None
        present = [{key: value for key, value in message.items() if value is not None} for message in self.messages]
        rendered: Any = render_jinja_template(
            [present],
            chat_template=template,
            return_assistant_tokens_mask=True,
            add_generation_prompt=self.opening,
            **self.values,
        )
        if rendered[0][0] != self.text:
            raise ValueError("it writes another text where what the assistant wrote is asked for")
        return rendered[1][0]

    def written(self, number: int) -> tuple[int, int]:
        """Returns the part that an assistant's message is, with its end token."""
        before = self.render(self.messages[:number], opening=True) if number else None
        after = self.render(self.messages[: number + 1], opening=False)
        content = None
        if before and self.text.startswith(before):
            start = len(before)
        else:
            start, _ = content = self.content(number)
        if after and len(after) >= start and self.text.startswith(after):
            ends = [start + match.end() for match in self.end_token.finditer(after[start:])]
            end = ends[-1] if ends and not after[ends[-1] :].strip() else len(after.rstrip())
        else:
            _, end = content or self.content(number)
            following = self.end_token.match(self.text, end)
            end = following.end() if following else end
        return start, max(start, end)

    def content(self, number: int) -> tuple[int, int]:
        """Returns the part that a message's content is; an empty one where the template leaves it out."""
        content = self.messages[number].get("content")
        if isinstance(content, str) and content.strip():
            start = self.marked(number, self.mark + content, self.mark + content.lstrip())
            end = self.marked(number, content + self.mark, content.rstrip() + self.mark)
            if start is not None and end is not None and start <= end:
                return start, end
        return self.replaced(number)

    def marked(self, number: int, *contents: str) -> int | None:
        """Returns where the mark is in the text; None where it is lost, or changes more than its own place."""
        for content in contents:
            text = self.render(self.with_content(number, content), self.opening)
            if text is not None and text.replace(self.mark, "", 1) == self.text and self.mark in text:
                return text.index(self.mark)
        return None

    def replaced(self, number: int) -> tuple[int, int]:
        """Returns the part of the text that another content changes."""
        message = self.messages[number]
        parts = isinstance(message.get("content"), list)
        content = [{"type": "text", "text": self.mark}] if parts else self.mark
        text = self.render(self.with_content(number, content, alone=True), self.opening)
        if text is None:
            raise ValueError(f"it does not tell which part is of message {number}, by {message['role']}")
        start = common_length(self.text, text)
        most = min(len(self.text), len(text)) - start
        after = common_length(self.text[len(self.text) - most :][::-1], text[len(text) - most :][::-1])
        return start, len(self.text) - after

    def with_content(self, number: int, content: Any, alone: bool = False) -> list[Any]:
        """Returns the messages with another content of one; `alone`: without whatever else that one has."""
        message = self.messages[number]
        changed = {"role": message["role"], "content": content} if alone else {**message, "content": content}
        return [*self.messages[:number], changed, *self.messages[number + 1 :]]


def common_length(one: str, other: str) -> int:
    """Returns how many characters two texts begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def named(tokens: Mapping[str, object]) -> dict[str, object]:
    """Returns the special tokens that a template can name."""
    return {name: token for name, token in tokens.items() if name != "all_special_tokens"}


if __name__ == "__main__":
    main(float(sys.argv[1]))
