"""Records go through JSON unchanged, and a wrong one is refused with the file and the field."""

import msgspec
import pytest

from pod_job.errors import JobError
from pod_job.formats.records import decode, encode


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
