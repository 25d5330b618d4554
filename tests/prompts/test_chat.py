"""Chat templates: what they read, the date that they write, and the limits that a stranger's template has."""

from datetime import date
from typing import Any

import pytest

from pod_job.errors import JobError
from pod_job.prompts import chat
from pod_job.prompts.chat import ChatSettings, Rendered, TemplateWorker, render_chats, uses_date
from pod_job.prompts.sources.sample import BrokenTask, Message, Reason, Sample
from pod_job.prompts.tokenizer import load_tokenizer
from tools.tiny_model import write_tiny_model

ASK: list[Message] = [{"role": "user", "content": "hello"}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": [1, None]}}}
CHATS: dict[str, list[Message]] = {
    "plain": ASK,
    "calls": [*ASK, {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "a sum"}],
    "tool": [*ASK, {"role": "tool", "content": "2", "tool_call_id": "x", "name": "add"}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "hello"}, {"type": "text", "text": "you"}]}],
    "named": [{"role": "system", "content": ""}, {"role": "user", "name": "kim", "content": "\u4f60\u597d"}],
}
EVERYTHING = (
    "{{ messages|tojson }} {{ tools|tojson }} {{ documents|tojson }} {{ add_generation_prompt }} {{ eos_token }}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(write_tiny_model(tmp_path_factory.mktemp("model")))


def render(tokenizer: Any, template: Any, prompt: list[Message] = ASK, day: date | None = None, **values: Any) -> Any:
    tokenizer.chat_template = template
    (chat,) = render_chats(tokenizer, [Sample("a", 0, prompt, values)], ChatSettings(day))
    return chat.text if isinstance(chat, Rendered) else chat


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("values", [{}, {"tools": [CALL]}, {"tools": [CALL], "documents": [{"title": "sums"}]}])
def test_a_template_reads_what_hugging_face_gives_it(tokenizer: Any, name: str, values: dict[str, Any]) -> None:
    opening = CHATS[name][-1]["role"] != "assistant"
    here = render(tokenizer, EVERYTHING, CHATS[name], **values)
    there = tokenizer.apply_chat_template(CHATS[name], tokenize=False, add_generation_prompt=opening, **values)
    assert here == there


def test_a_tokenizer_with_a_template_for_tools_uses_it(tokenizer: Any) -> None:
    templates = {"default": "plain", "tool_use": "with tools"}
    assert render(tokenizer, templates) == "plain"
    assert render(tokenizer, templates, tools=[CALL]) == "with tools"


def test_the_date_of_a_template_is_the_one_that_is_given(tokenizer: Any) -> None:
    template = "{{ strftime_now('%d %b %Y %H:%M') }}"
    assert render(tokenizer, template, day=date(2024, 5, 6)) == "06 May 2024 00:00"
    assert render(tokenizer, template, day=date(2025, 1, 31)) == "31 Jan 2025 00:00"
    assert render(tokenizer, "{{ strftime_now('%Y') }}") >= "2026"
    assert uses_date(template)
    assert uses_date({"default": "plain", "tool_use": template})
    assert not uses_date("{{ messages }}")


def test_chance_in_a_template_is_the_same_every_time(tokenizer: Any) -> None:
    template = "{{ range(1000)|random }}"
    assert render(tokenizer, template) == render(tokenizer, template)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('no system role\\nat all') }}", "no system role"),
        ("{{ messages.foo.bar }}", "has no attribute 'foo'"),
        ("{{ 1 + 'a' }}", "unsupported operand"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ messages", "unexpected end of template"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion depth"),
        ("{{ '\\ud83d' }}", "surrogates not allowed"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ 'x' * 3000000000 }}", "it takes too much memory"),
        ("{{ 'x' * 20000000 }}", "it writes 20,000,000 characters"),
        ("{{ raise_exception('x' * 20000000) }}", "xxx"),
    ],
)
def test_what_a_template_fails_on_is_one_line(tokenizer: Any, template: str, says: str) -> None:
    tokenizer.chat_template = template
    samples = [Sample("a\x1b", 3, ASK), Sample("b", 0, ASK)]
    first, second = render_chats(tokenizer, samples)
    assert isinstance(first, BrokenTask)
    assert isinstance(second, BrokenTask)
    assert first.reason is Reason.refused_by_template
    assert str(first).startswith("task a\\u001b, sample 3: the model's chat template refuses it (")
    assert says in str(first)
    assert str(first).isprintable()


@pytest.mark.parametrize("template", ["{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"])
def test_a_template_without_an_end_is_ended(tokenizer: Any, monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    monkeypatch.setattr(chat, "CPU_S", 0.5)
    worker = TemplateWorker()
    monkeypatch.setattr(chat, "WORKER", worker)
    with pytest.raises(JobError, match=r"^task a, sample 0: the model's chat template takes more than 0\.5 s"):
        render(tokenizer, template)
    assert render(tokenizer, "again") == "again"
    worker.close()
