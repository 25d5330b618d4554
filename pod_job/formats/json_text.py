"""JSON that others may have written, decoded within limits of size and depth, each name once in its object.

Everything in JSON is decoded here or, where it is a record, by `records`, which asks here. A few bytes of JSON become
some hundred bytes of Python, and a value as deep as the interpreter allows ends whoever walks through it.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from pod_job.errors import first_line

MOST_BYTES = 64 << 20
MOST_NESTED = 64
TOO_DEEP = f"it is nested deeper than {MOST_NESTED} levels"


def parse_json(text: bytes | str, most_bytes: int = MOST_BYTES, strict: bool = False) -> Any:
    """Returns the value that a JSON text holds; unless `strict`, also NaN and Infinity, as Python writes them.

    Raises:
        ValueError: it is not JSON, larger than `most_bytes`, nested deeper than MOST_NESTED, has a name twice in an
            object or a number of thousands of digits; says so in one line.
    """
    if len(text) > most_bytes:
        raise ValueError(f"it is larger than {most_bytes:,} bytes")
    try:
        value = json.loads(text, object_pairs_hook=unique_names, parse_constant=_refuse if strict else None)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except MemoryError:
        raise ValueError("it takes more memory than there is") from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        too_long = "Exceeds the limit" in str(error)  # Python's, of the digits of a number
        raise ValueError("it has a number of too many digits" if too_long else first_line(error)) from None
    # Most texts have too few brackets to be deep, and that is seen a hundred times faster.
    brackets = text.count("{") + text.count("[") if isinstance(text, str) else text.count(b"{") + text.count(b"[")
    if brackets > MOST_NESTED:
        check_depth(value)
    return value


def read_json_file(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """Returns the value in a file.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ValueError: as of `parse_json`, or it is not a regular file.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError("it is not a regular file")
    if size > most_bytes:
        raise ValueError(f"it is larger than {most_bytes:,} bytes")
    return parse_json(path.read_bytes(), most_bytes)


def check_depth(value: Any) -> None:
    """Raises ValueError where lists and objects are nested deeper than MOST_NESTED."""
    level = [value]
    for _ in range(MOST_NESTED):
        level = [inner for outer in level for inner in _containers(outer)]
        if not level:
            return
    raise ValueError(TOO_DEEP)


def _containers(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in inner if isinstance(item, dict | list)]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object; ValueError for a name that is there twice, of which `json` would drop the first value."""
    table = dict(pairs)
    if len(table) != len(pairs):
        twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise ValueError(f"the key {twice!a:.60} is there twice in one object")
    return table
