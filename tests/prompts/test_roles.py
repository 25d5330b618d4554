"""Tokens by the role of their message: as Hugging Face masks them where a template marks them, else by differences."""

import re
from typing import Any

import numpy as np
import pytest

from pod_job.config.extract import ExtractConfig, Positions, RowColumn, TooLong
from pod_job.config.load import load
from pod_job.errors import JobError
from pod_job.prompts.chat import check_values
from pod_job.prompts.prompt import Prompt, PromptRules
from pod_job.prompts.sources.sample import Message, Sample
from pod_job.prompts.tokenizer import load_tokenizer
from pod_job.prompts.tokens import usable_prompts
from tools.tiny_model import write_tiny_model

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CHAT: list[Message] = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "  1 + 1? "},
    {"role": "assistant", "content": "two \u4f60"},
    {"role": "user", "content": "two"},
    {"role": "assistant", "content": " hm, two again\n"},
]
WITH_TOOLS: list[Message] = [
    *CHAT[:2],
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "2"},
    {"role": "assistant", "content": "<think>\neasy\n</think>\n\nIt is 2."},
    {"role": "user", "content": "thanks"},
]
HEAD = "<|im_start|>{{ message.role }}\n"
END = "<|im_end|>"
OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def chatml(assistant: str, other: str = "{{ message.content }}", end: str = f"{END}\n") -> str:
    return (
        "{% for message in messages %}" + HEAD + "{% if message.role == 'assistant' %}" + assistant + "{% else %}"
        f"{other}{end}" + "{% endif %}{% endfor %}" + OPENING
    )


MARK, UNMARK = "{% generation %}", "{% endgeneration %}"
MARKED = {
    "content": chatml(MARK + "{{ message.content }}" + UNMARK + f"{END}\n"),
    "content and end": chatml(MARK + "{{ message.content }}" + END + UNMARK + "\n"),
    "all": chatml(MARK + "{{ message.content }}" + END + "\n" + UNMARK),
    "with the head": MARK.join(["{% for message in messages %}{% if message.role == 'assistant' %}", ""])
    + HEAD
    + "{{ message.content }}"
    + END
    + UNMARK
    + "{% else %}"
    + HEAD
    + "{{ message.content }}"
    + END
    + "{% endif %}{% endfor %}",
    "trimmed": chatml(
        "{%- generation -%}{{ message.content | trim }}" + END + "{%- endgeneration -%}\n",
        "{{ message.content | trim }}",
    ),
    "calls": chatml(
        MARK
        + "{{ message.content }}{% for c in message.tool_calls %}<tool_call>{{ c | tojson }}</tool_call>{% endfor %}"
        + END
        + UNMARK
    ),
    "last only": chatml(
        "{% if loop.last or messages[-1].role == 'user' %}"
        + MARK
        + "{{ message.content }}"
        + END
        + UNMARK
        + "{% else %}{{ message.content }}{% endif %}"
    ),
    "twice": chatml(
        MARK + "{{ message.content[:3] }}" + UNMARK + "|" + MARK + "{{ message.content[3:] }}" + UNMARK + END
    ),
    "without heads": "{% for message in messages %}{% if message.role == 'assistant' %}"
    + MARK
    + "{{ message.content }}"
    + END
    + UNMARK
    + "{% else %}{{ message.content }}{% endif %}{% endfor %}",
    "none": chatml("{% if false %}" + MARK + "x" + UNMARK + "{% endif %}{{ message.content }}"),
}
# Templates without marks, and what of CHAT and of WITH_TOOLS the assistant wrote.
CHATML_CALLS = (
    "{{ message.content }}{% for c in message.tool_calls %}<tool_call>{{ c | tojson }}</tool_call>{% endfor %}"
    + f"{END}\n"
)
NO_THINKING = (
    "{% if '</think>' in message.content and not loop.last %}{{ message.content.split('</think>')[-1].lstrip('\\n') }}"
    "{% else %}{{ message.content }}{% endif %}"
    "{% for c in message.tool_calls %}<tool_call>{{ c | tojson }}</tool_call>{% endfor %}" + f"{END}\n"
)
SAID = [f"two \u4f60{re.escape(END)}", rf" hm, two again\n{re.escape(END)}"]
CALLED = r"<tool_call>\{.*\}</tool_call>" + re.escape(END)
TRIMMED = (
    "{% for message in messages %}{% if message.role == 'assistant' %} {{ message.content | trim }} <|endoftext|>"
    "{% else %}[INST] {{ message.content | trim }} [/INST]{% endif %}{% endfor %}"
)
NO_END = (
    "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
UNMARKED: dict[str, tuple[str, list[str], list[str] | None]] = {
    "chatml": (chatml(CHATML_CALLS), SAID, [CALLED, r"<think>\neasy\n</think>\n\nIt is 2\." + re.escape(END)]),
    "thinking of earlier turns goes": (chatml(NO_THINKING), SAID, [CALLED, rf"It is 2\.{re.escape(END)}"]),
    "trimmed, end of text": (
        TRIMMED,
        [r" ?two \u4f60 <\|endoftext\|>", r" ?hm, two again <\|endoftext\|>"],
        None,
    ),
    "no end token": (NO_END, [r" ?two \u4f60", r" ?hm, two again"], None),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(write_tiny_model(tmp_path_factory.mktemp("model")))


def prompt(tokenizer: Any, chat: Any, roles: tuple[str, ...] = (), **rules: Any) -> Prompt:
    extract = ExtractConfig(positions=Positions.all, columns=[RowColumn.role], roles=list(roles))
    made = usable_prompts(
        tokenizer, [Sample("a", 0, chat)], PromptRules(4096, TooLong.refuse, extract=extract, **rules)
    )
    (only,) = made.prompts
    return only


def parts(tokenizer: Any, made: Prompt, role: str) -> list[str]:
    """Returns the texts that consecutive tokens of the role make."""
    assert made.roles is not None
    of_role = np.concatenate([[False], made.roles == role, [False]])
    starts, stops = (
        np.flatnonzero(np.diff(of_role.astype(int)) == 1),
        np.flatnonzero(np.diff(of_role.astype(int)) == -1),
    )
    return [
        tokenizer.decode(made.token_ids[a:b], skip_special_tokens=False) for a, b in zip(starts, stops, strict=True)
    ]


@pytest.mark.parametrize("name", MARKED)
def test_marked_tokens_are_those_of_hugging_faces_mask(tokenizer: Any, name: str) -> None:
    tokenizer.chat_template = MARKED[name]
    for chat in (CHAT, CHAT[:4], WITH_TOOLS):
        theirs = tokenizer.apply_chat_template(
            chat,
            return_assistant_tokens_mask=True,
            return_dict=True,
            add_generation_prompt=chat[-1]["role"] != "assistant",
        )
        made = prompt(tokenizer, chat)
        assert made.token_ids.tolist() == theirs["input_ids"]
        assert made.roles is not None
        assert (made.roles == "assistant").astype(int).tolist() == theirs["assistant_masks"]
        chosen = prompt(tokenizer, chat, ("assistant",))
        assert np.isin(np.arange(len(made.token_ids)), chosen.places).astype(int).tolist() == theirs["assistant_masks"]


@pytest.mark.parametrize("name", UNMARKED)
def test_unmarked_tokens_are_found_by_rendering_differently(tokenizer: Any, name: str) -> None:
    template, *expected = UNMARKED[name]
    tokenizer.chat_template = template
    for chat, wanted in zip((CHAT, WITH_TOOLS), expected, strict=True):
        if wanted is None:
            continue
        made = prompt(tokenizer, chat)
        found = parts(tokenizer, made, "assistant")
        assert len(found) == len(wanted)
        for text, pattern in zip(found, wanted, strict=True):
            assert re.fullmatch(pattern, text), (text, pattern)
        users = [message["content"].strip() for message in chat if message["role"] == "user"]
        assert [text.strip() for text in parts(tokenizer, made, "user")] == users
        assert [text.strip() for text in parts(tokenizer, made, "system")] == ["be brief"]


def test_a_chat_gets_the_system_message_and_values_of_the_configuration(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        chatml("{{ message.content }}") + "{% if enable_thinking is false %}<think></think>{% endif %}"
    )
    ask: list[Message] = [{"role": "user", "content": "hello"}]
    text = tokenizer.decode(
        prompt(tokenizer, ask, system="be kind", template_values={"enable_thinking": False}).token_ids
    )
    same = [{"role": "system", "content": "be kind"}, *ask]
    assert text == tokenizer.apply_chat_template(
        same, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert text.endswith("<think></think>")
    assert parts(tokenizer, prompt(tokenizer, CHAT, system="be kind"), "system") == ["be brief"]


def test_texts_have_no_roles(tokenizer: Any) -> None:
    with pytest.raises(JobError, match=r"task a, sample 0 is no chat, so its tokens have no roles"):
        prompt(tokenizer, "a text")


@pytest.mark.parametrize("name", ["enable_thinkin", "add_generation_prompt", "enable"])
def test_a_value_that_the_template_does_not_read_is_refused(name: str) -> None:
    template = "{{ messages }}{{ enable_thinking }}{{ add_generation_prompt }}"
    check_values({"enable_thinking": True}, template)
    with pytest.raises(
        JobError, match=rf"tasks\.template_kwargs\.{name}: the model's chat template reads no such value"
    ):
        check_values({name: True}, template)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("tasks.template_kwargs={a: null}", "tasks.template_kwargs.a=None is no value for a chat template"),
        ("tasks.template_kwargs={a: [1, nan]}", "tasks.template_kwargs.a=nan is no value for a chat template"),
        ("tasks.template_kwargs=3", "tasks.template_kwargs=3 must be {name: value}"),
        ("extract.roles=[user,user]", "extract.roles=['user', 'user'] must name each role once"),
    ],
)
def test_what_no_template_takes_is_refused(override: str, says: str) -> None:
    with pytest.raises(JobError) as refused:
        load(["experiment=demo", "storage.run_dir=x", override])
    assert str(refused.value).startswith(says)


def test_values_are_read_as_they_are_written() -> None:
    given = "tasks.template_kwargs={enable_thinking: false, tools: [{a: 1}]}"
    assert load(["experiment=demo", "storage.run_dir=x", given]).tasks.template_values == {
        "enable_thinking": False,
        "tools": [{"a": 1}],
    }
