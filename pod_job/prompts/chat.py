"""Chats as the model's template writes them, in a process with limits of time and memory.

The template gets all of a message, and the chat's tools and documents, as Hugging Face passes them.
"""

import atexit
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from pod_job.errors import JobError
from pod_job.prompts.sources.sample import BrokenTask, Reason, Sample
from pod_job.terminal import one_line

CPU_S = 10.0
"""Seconds of CPU time that one chat may take; a template takes milliseconds."""
SHOWN = 200
"""Characters of a template's own message that are shown."""
DATE_FUNCTION = "strftime_now"
SYSTEM_ROLES = ("system", "developer")
"""Roles of a first message that takes the place of `tasks.system`."""
RESERVED = ("messages", "conversation", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize")
"""Names that are no values for a template."""


def uses_date(template: Any) -> bool:
    """Returns whether a chat template (text, or texts by name) may write the present date."""
    return DATE_FUNCTION in json.dumps(template)


@dataclass(frozen=True)
class ChatSettings:
    """Input of a chat template beside the chats.

    Attributes:
        template_date: the day that it takes for today, at midnight; None: the present time.
        system: content of a system message for chats that have none.
        values: variables of the template; those of a chat itself win.
        roles: find which message each part of the text is of.
    """

    template_date: date | None = None
    system: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    roles: bool = False


@dataclass(frozen=True)
class Rendered:
    """A chat as text, and of the parts that its messages are [start, end), role, and whether the template marks it."""

    text: str
    spans: Sequence[tuple[int, int, str, bool]] = ()


def render_chats(
    tokenizer: Any, samples: Sequence[Sample], settings: ChatSettings = ChatSettings()
) -> list[Rendered | BrokenTask]:
    """Returns each chat as text, with the opening of an answer unless it ends in one, or why the template refuses it.

    Raises:
        JobError: rendering a chat takes too long.
    """
    if not samples:
        return []
    special = [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
    tokens = {**tokenizer.special_tokens_map, "all_special_tokens": special}
    at = None if settings.template_date is None else settings.template_date.isoformat()
    request = {"template": tokenizer.chat_template, "tokens": tokens, "date": at, "roles": settings.roles}
    return WORKER.render(request, samples, settings)


def check_values(values: Mapping[str, Any], template: Any) -> None:
    """Raises JobError for a value of tasks.template_kwargs that the chat template does not read."""
    text = json.dumps(template)
    for name in values:
        if name in RESERVED or not re.search(rf"\b{re.escape(name)}\b", text):
            raise JobError(
                f"tasks.template_kwargs.{name}: the model's chat template reads no such value; look for its name in "
                "chat_template.jinja or tokenizer_config.json"
            )


class TemplateWorker:
    """The process that renders, started when it is first needed, and again after it was ended; for any thread."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

    def render(
        self, template: Mapping[str, Any], samples: Sequence[Sample], settings: ChatSettings = ChatSettings()
    ) -> list[Rendered | BrokenTask]:
        """Returns the texts as `render_chats` does."""
        request = {**template, "chats": [described(sample, settings) for sample in samples]}
        with self.lock:
            process = self.process = self.process or start()
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError):  # where it has ended, the first answer is missing
                process.stdin.write(json.dumps(request, default=str).encode() + b"\n")
                process.stdin.flush()
            texts = []
            for sample in samples:
                line = process.stdout.readline()
                if not line:
                    raise JobError(why_ended(sample, self.close()))
                texts.append(rendered(sample, json.loads(line)))
        return texts

    def close(self) -> int:
        """Ends the process, if there is one; returns its exit status."""
        process, self.process = self.process, None
        if process is None:
            return 0
        with suppress(BrokenPipeError):
            process.communicate()
        return process.returncode


WORKER = TemplateWorker()
atexit.register(WORKER.close)


def start() -> "subprocess.Popen[bytes]":
    """Starts the process; in a session of its own, as Ctrl-C is for its parent, with whose pipe it ends."""
    script = Path(__file__).with_name("template_worker.py")
    # -P: this folder is not one to import from.
    command = [sys.executable, "-P", str(script), str(CPU_S)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)


def described(sample: Sample, settings: ChatSettings) -> dict[str, Any]:
    """Returns a chat as the process takes it."""
    messages: Any = sample.prompt
    opening = messages[-1]["role"] != "assistant"
    if settings.system is not None and messages[0]["role"] not in SYSTEM_ROLES:
        messages = [{"role": SYSTEM_ROLES[0], "content": settings.system}, *messages]
    values = {"add_generation_prompt": opening, **settings.values, **sample.template_values}
    return {"messages": messages, "values": values}


def rendered(sample: Sample, answer: Mapping[str, Any]) -> Rendered | BrokenTask:
    """Returns the text in an answer, or why there is none."""
    if "text" in answer:
        return Rendered(answer["text"], [tuple(span) for span in answer["spans"]])
    reason = answer["error"].splitlines()[0][:SHOWN]
    return BrokenTask(f"{sample}: the model's chat template refuses it ({reason})", Reason.refused_by_template)


def why_ended(sample: Sample, status: int) -> str:
    """Returns what a chat did to the process that was to render it."""
    did = f"takes more than {CPU_S:g} s" if status == -signal.SIGPROF else f"ended its process ({status})"
    return one_line(f"{sample}: the model's chat template {did}; correct the template")
