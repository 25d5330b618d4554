"""Samples from objects with fields: a JSON line, or a row of a dataset."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pod_job.formats.json_text import parse_json
from pod_job.prompts.sources.sample import TEMPLATE_FIELDS, BrokenTask, Message, Prompt, Reason, Sample, checked

MISSING = object()
"""Value of a field that is not there."""


def read_record(where: str, record: Any, field: str, task_id: str) -> Sample:
    """Returns a sample from an object with `field`, and `task_id` (else the one given) and `sample_idx` (else 0).

    Beside token ids, `attention_mask` tells which of them are padding; beside a chat, `tools` and `documents` are for
    the template. A null is a missing value: a column of a dataset has one where a row has none.

    Raises:
        BrokenTask: with `where`, the first field that is missing or cannot be used.
    """
    value = field_of(record, field)
    if value is MISSING:
        raise BrokenTask(f'{where} must be an object with the field "{field}" (tasks.field)')
    number = 0 if record.get("sample_idx") is None else record["sample_idx"]
    if type(number) is not int or not 0 <= number < 2**31:
        raise BrokenTask(f"{where}: sample_idx={number!r} is not a whole number from 0")
    name = task_id if record.get("task_id") is None else record["task_id"]
    if type(name) not in (str, int):
        raise BrokenTask(f"{where}: task_id={name!r:.100} is neither text nor a whole number")
    prompt = read_prompt(f"{where}: {field}", value)
    if isinstance(prompt, np.ndarray) and record.get("attention_mask") is not None:
        prompt = unmasked(where, prompt, record["attention_mask"])
    values = template_values(where, record) if isinstance(prompt, list) else {}
    return checked(where, Sample(str(name), number, prompt, values))


def field_of(record: Any, field: str) -> Any:
    """Returns the value of a field, whose dots lead inside of others; MISSING where there is none."""
    if isinstance(record, dict) and field in record:
        return record[field]
    for name in field.split("."):
        if not isinstance(record, dict) or name not in record:
            return MISSING
        record = record[name]
    return record


def read_prompt(where: str, value: Any) -> Prompt:
    """Returns the prompt that a value holds: text, also as UTF-8 bytes, messages or token ids; BrokenTask otherwise."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise BrokenTask(f"{where} is not UTF-8 text ({error})") from error
    match value:
        case str() if value:
            return value
        case [dict(), *_] if all(is_message(message) for message in value):
            return list(value)
        case [int(), *_] if all(type(token) is int and 0 <= token < 2**63 for token in value):
            return np.array(value)
    raise BrokenTask(
        f"{where} must be a non-empty text, a list of messages with role and content, or of token ids",
        Reason.blank if value in ("", []) else Reason.broken,
    )


def is_message(value: Any) -> bool:
    """Returns True for a message as chat templates read them: content may be text, a list of parts, or null."""
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        return False
    has_content = "content" in value or value.get("tool_calls") is not None
    return has_content and isinstance(value.get("content"), str | list | None)


def template_values(where: str, record: Mapping[str, Any]) -> dict[str, list[Message]]:
    """Returns the fields of a chat that its template reads; each is a list of objects, or JSON text of one."""
    values = {}
    for name in TEMPLATE_FIELDS:
        value = record.get(name)
        if isinstance(value, str):
            try:
                value = parse_json(value)
            except ValueError as error:
                raise BrokenTask(f"{where}: {name} is a text, but not JSON ({error})") from error
        if value is None:
            continue
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise BrokenTask(f"{where}: {name} is not a list of objects, as chat templates take it")
        values[name] = value
    return values


def unmasked(where: str, ids: np.ndarray, mask: Any) -> np.ndarray:
    """Returns the ids that `mask` keeps, those before or after padding.

    Raises:
        BrokenTask: a mask of another length, of other values than 0 and 1, of zeros only, or with a hole.
    """
    values = mask.tolist() if isinstance(mask, np.ndarray) else mask
    if not isinstance(values, list) or len(values) != len(ids) or not all(value in (0, 1) for value in values):
        raise BrokenTask(f"{where}: attention_mask must have a 0 or a 1 for each of the {len(ids)} token ids")
    places = np.flatnonzero(values)
    if not len(places):
        raise BrokenTask(f"{where}: attention_mask keeps no token", Reason.blank)
    if len(places) != places[-1] - places[0] + 1:
        hole = int(places[np.flatnonzero(np.diff(places) > 1)[0]]) + 1
        raise BrokenTask(f"{where}: attention_mask has a hole at token {hole}; only padding at either end is left out")
    return ids[places[0] : places[-1] + 1]
