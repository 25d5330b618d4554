"""Records go through JSON unchanged, and a wrong one is refused with the file and the field."""

import json
import math
from typing import Literal

import msgspec
import pytest

from pod_job.errors import JobError
from pod_job.formats.records import Count, Record, decode, encode


class Part(msgspec.Struct, frozen=True):
    rows: int
    sizes: list[int] = []


class Whole(msgspec.Struct, frozen=True):
    name: str
    parts: list[Part]


def test_a_record_goes_through_json_unchanged() -> None:
    record = Whole("a", [Part(3, [1, 2]), Part(4)])
    assert encode(record) == b'{"name":"a","parts":[{"rows":3,"sizes":[1,2]},{"rows":4,"sizes":[]}]}'
    assert decode(encode(record), Whole, "whole.json") == record


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Input data was truncated"),
        (b"{'a'", "JSON is malformed"),
        (b'{"name":"\xff","parts":[]}', "utf-8"),
        (b'{"unknown":' + b"[" * 100_000, "recursion"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"parts":[]}', r"name is missing;"),
        (b'{"name":1,"parts":[]}', r"name: expected `str`, got `int`;"),
        (b'{"name":"a","parts":[{"rows":1},{"sizes":[]}]}', r"parts\[1\].rows is missing;"),
        (b'{"name":"a","parts":[{"rows":true}]}', r"parts\[0\].rows: expected `int`, got `bool`;"),
        (b'{"name":"a","parts":[{"rows":1.5}]}', r"parts\[0\].rows: expected `int`, got `float`;"),
    ],
)
def test_a_wrong_record_is_refused_with_its_file_and_field(data: bytes, reason: str) -> None:
    with pytest.raises(JobError, match=reason) as refusal:
        decode(data, Whole, "whole.json")
    assert str(refusal.value).startswith("whole.json: ")


class Versioned(Record, frozen=True):
    size: Count
    format: Literal[2]
    errors: dict[str, float] = msgspec.field(default_factory=dict)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"size":1,"format":3}', "format 3, this version reads 2;"),
        (b'{"length":1,"format":3}', "format 3, this version reads 2;"),  # though other fields are wrong, too
        (b'{"length":NaN,"format":3}', "format 3, this version reads 2;"),
        (b'{"size":1}', "format is missing;"),
        (b'{"size":1,"format":2,"length":1}', "object contains unknown field `length`;"),
        (b'{"size":-1,"format":2}', "size: expected `int` >= 0;"),
        (b'{"size":281474976710656,"format":2}', "size: expected `int` <= 281474976710655;"),
        (b'{"size":Infinity,"format":2}', "size: expected `int`, got `float`;"),
        (b'{"size":1,"format":2,"errors":{"\\ud800":NaN}}', "JSON is malformed"),
    ],
)
def test_versions_unknown_fields_and_sizes_that_cannot_be_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(JobError, match=f"(?i){reason}"):
        decode(data, Versioned, "versioned.json")


def test_numbers_that_are_not_finite_go_through_json() -> None:
    record = Versioned(1, 2, {"layer_6": math.inf, "layer_12": math.nan})
    assert encode(record) == json.dumps(msgspec.to_builtins(record), separators=(",", ":")).encode()
    again = decode(encode(record), Versioned, "versioned.json")
    assert again.errors["layer_6"] == math.inf
    assert math.isnan(again.errors["layer_12"])
