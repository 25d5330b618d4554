"""Damage to a folder: what disks, copies, other programs and strangers do to the files in it."""

import json
import os
import random
import re
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pod_job.formats.checksummed_json import KEY, read_checksummed, with_checksum
from tools.corruption.bombs import BOMBS
from tools.corruption.corpus import TRAINING

SECRET = b"the reader's secret"
"""Content of a file outside the folder, which no command may read or change."""
TEXTS = {
    "garbage": b"garbage{",
    "list": b"[]",
    "null": b"null",
    "number": b"3",
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "NaN": b'{"format": NaN}',
    "huge integer": b'{"format": ' + b"9" * 100_000 + b"}",
    "key twice": b'{"format": 2, "format": 2}',
    "not UTF-8": b'{"format": "\xff\xfe"}',
    "half a pair": b'{"format": "\\ud800"}',
    "many keys": b"{" + b",".join(b'"%d":0' % number for number in range(200_000)) + b"}",
    "binary": bytes(range(256)) * 16,
}
"""Contents that a program or a stranger may have left in place of a record."""
VALUES: list[Any] = [
    *(0, 1, -1, 2**31, 2**47, 2**63, -(2**70), 10**400, 1e308, -1e308, 0.5, float("nan"), float("inf"), None, True, 3),
    *("", "x", "../../etc/passwd", "/etc/passwd", "gs://attacker/x", "${oc.env:HF_TOKEN}", "~/.ssh/id_rsa", "layer_9"),
    *(
        "\x1b]52;c;eA==\x07",
        "\x1b[2J\u202e\u2066",
        "a\nb\rc\td",
        "\x00",
        "\ud800",
        "[bold]x[/]",
        "<script>",
        "9" * 5000,
    ),
    *([], {}, [[]], {"a": {"b": []}}, ["x"] * 1000),
]
"""Values of a field that are of another type, out of range, or what a stranger hopes somebody follows or prints."""


@dataclass(frozen=True)
class Damage:
    """Change of a folder: `kind` was done to the file `path`.

    `lie`: what was put there is consistent by itself, so that a reader of one file cannot tell it from the truth.
    """

    kind: str
    path: str
    lie: bool = False


@dataclass(frozen=True)
class Place:
    """A file of a folder that is damaged; `folder` is a copy of the one called `name` below `sound`."""

    path: Path
    folder: Path
    sound: Path
    rng: random.Random

    @property
    def name(self) -> str:
        return self.path.relative_to(self.folder).as_posix()

    @property
    def outside(self) -> Path:
        """A file that is not the folder's."""
        secret = self.folder.parent / "outside" / "secret"
        secret.parent.mkdir(exist_ok=True)
        secret.write_bytes(SECRET)
        return secret


Change = Callable[[Place], object]
"""Damages a file; returns False where it cannot."""


def file_kind(name: str) -> str:
    """Returns the name with all its numbers alike: files of a kind are read by the same reader."""
    return re.sub(r"\d+[^\W_]*", "0", re.sub("[0-9a-f]{32}", "0", name))


def damage(folder: Path, sound: Path, rng: random.Random) -> Damage:
    """Damages one file of the folder: of a kind by chance, in a way by chance of those that its ending allows."""
    by_kind = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            by_kind[file_kind(path.relative_to(folder).as_posix())].append(path)
    while True:
        place = Place(rng.choice(by_kind[rng.choice(sorted(by_kind))]), folder, sound, rng)
        ways = ways_for(place)
        kind = rng.choice(sorted(ways))
        if ways[kind](place) is not False:
            return Damage(kind, place.name, lie=kind in LIES)


def ways_for(place: Place) -> dict[str, Change]:
    """Returns the changes that make sense for a file; each kind of file has some of its own."""
    ways: dict[str, Change] = WAYS | {kind: bombed(bomb) for kind, bomb in BOMBS.get(place.path.suffix, {}).items()}
    if place.path.suffix in (".json", ".jsonl"):
        ways |= {"JSON: another value": another_value, "JSON: another version": another_version}
        ways |= {f"JSON: {kind}": written(text) for kind, text in TEXTS.items()}
    if os.geteuid() == 0:
        del ways["unreadable"]  # root reads every file
    return ways


def written(content: bytes) -> Change:
    return lambda place: place.path.write_bytes(content)


def bombed(bomb: Callable[[bytes, random.Random], bytes]) -> Change:
    return lambda place: place.path.write_bytes(bomb(place.path.read_bytes(), place.rng))


def edited(place: Place, edit: Callable[[Any], Any]) -> None:
    """Changes a JSON record, whose checksum then fits it, where it has one."""
    data = place.path.read_bytes()
    checksummed = f',\n"{KEY}":"'.encode() in data[-40:]
    lines = data.splitlines() if place.path.suffix == ".jsonl" else [data]
    at = place.rng.randrange(len(lines))
    text = json.dumps(edit(json.loads(read_checksummed(data, "") if checksummed else lines[at]))).encode()
    lines[at] = with_checksum(text) if checksummed else text
    place.path.write_bytes(b"\n".join(lines))


def another_value(place: Place) -> None:
    edited(place, lambda record: with_another_value(record, place.rng))


def with_another_value(value: Any, rng: random.Random) -> Any:
    """Returns the value with one thing in it replaced, removed or added, at any depth."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.05:
        return rng.choice(VALUES)
    key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    changed: Any = value.copy()
    chance = rng.random()
    if chance < 0.08:
        del changed[key]
    elif chance < 0.12 and isinstance(changed, dict):
        changed[rng.choice(("new", "../x", "\x1b[2J", "x" * 3000))] = value[key]
    elif chance < 0.16 and isinstance(changed, list):
        changed.append(value[key])
    else:
        changed[key] = with_another_value(value[key], rng)
    return changed


def another_version(place: Place) -> None:
    versions = (0, 1, 3, 2**70, -2, "2", None, 2.0, [2])
    edited(place, lambda record: {**record, "format": place.rng.choice(versions)} if isinstance(record, dict) else 3)


def cut(place: Place) -> None:
    os.truncate(place.path, place.rng.randrange(place.path.stat().st_size + 1))


def flipped(place: Place) -> object:
    data = bytearray(place.path.read_bytes())
    if not data:
        return False
    data[place.rng.randrange(len(data))] ^= 1 << place.rng.randrange(8)
    return place.path.write_bytes(data)


def zeroed(place: Place) -> None:
    data = place.path.read_bytes()
    start = place.rng.randrange(len(data) + 1)
    place.path.write_bytes((data[:start] + bytes(512) + data[start + 512 :])[: len(data)])


def of_another_batch(place: Place) -> object:
    """Puts another file of the same kind in its place."""
    kind = file_kind(place.path.name)
    others = [
        path for path in sorted(place.path.parent.iterdir()) if path != place.path and file_kind(path.name) == kind
    ]
    return place.path.write_bytes(place.rng.choice(others).read_bytes()) if others else False


def other_runs(place: Place) -> list[Path]:
    """Returns the other sound folders, but for the one that is made late."""
    return [run for run in sorted(place.sound.iterdir()) if run.name not in (place.folder.name, TRAINING)]


def of_another_run(place: Place) -> object:
    """Puts the file of the same name of another run in its place."""
    content = place.path.read_bytes()
    donors = [run / place.name for run in other_runs(place)]
    contents = [donor.read_bytes() for donor in donors if donor.is_file()]
    contents = [other for other in contents if other != content]
    return place.path.write_bytes(place.rng.choice(contents)) if contents else False


def batch_of_another_run(place: Place) -> object:
    """Puts all files of a batch of another run in the place of one of this run: only metadata.json can tell."""
    number = place.rng.randrange(1, 4)
    donor = place.rng.choice(other_runs(place))
    names = [path.relative_to(donor) for path in sorted(donor.rglob(f"*batch_{number:06d}.*"))]
    if not any((place.folder / name).exists() for name in names):
        return False
    for name in names:
        (place.folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(donor / name, place.folder / name)
    return None


def swapped(place: Place) -> object:
    """Swaps the file with another one of its kind."""
    kind = file_kind(place.path.name)
    others = [
        path for path in sorted(place.path.parent.iterdir()) if path != place.path and file_kind(path.name) == kind
    ]
    if not others:
        return False
    other, content = place.rng.choice(others), place.path.read_bytes()
    place.path.write_bytes(other.read_bytes())
    return other.write_bytes(content)


def doubled(place: Place) -> None:
    """Copies the file under another name that a copy gets, or a number that the run has not."""
    name = place.path.name
    numbered = re.sub(r"\d{6,}", lambda found: f"{int(found[0]) + place.rng.choice((1, 7, 999_000_000)):06d}", name)
    names = {numbered, f"{name} (1)", f"copy of {name}", f".{name}.{'0' * 32}.tmp"} - {name}
    target = place.path.with_name(place.rng.choice(sorted(names)))
    if not target.exists():
        shutil.copy(place.path, target)


def foreign(place: Place) -> None:
    """Writes a file of another program beside this one."""
    names = (b".DS_Store", b"Thumbs.db", b"\xff\xfe.bin", b"batch_000001.json.part", b"\x1b[2J", b"a\nb", b"x" * 250)
    with open(os.fsencode(place.path.parent) + b"/" + place.rng.choice(names), "wb") as file:
        file.write(place.rng.choice((b"", b"x", b"{}")))


def replaced_by(make: Callable[[Place], object]) -> Change:
    """Returns a change that removes the file and makes something else under its name."""

    def change(place: Place) -> None:
        place.path.unlink()
        make(place)

    return change


def folder_replaced_by(make: Callable[[Place], object]) -> Change:
    """Returns a change that does the same to the folder in which the file lies."""

    def change(place: Place) -> object:
        if place.path.parent == place.folder:
            return False
        shutil.rmtree(place.path.parent)
        make(Place(place.path.parent, place.folder, place.sound, place.rng))
        return None

    return change


def linked_folder(place: Place) -> None:
    """Makes a link to a folder outside, in which a file of every name of the sound one has the secret."""
    target = place.outside.parent / "folder"
    shutil.copytree(place.sound / place.folder.name / place.name, target)
    for path in target.rglob("*"):
        if path.is_file():
            path.write_bytes(SECRET)
    place.path.symlink_to(target)


WAYS: dict[str, Change] = {
    "missing": lambda place: place.path.unlink(),
    "emptied": written(b""),
    "cut": cut,
    "longer": lambda place: place.path.write_bytes(place.path.read_bytes() + place.rng.randbytes(64)),
    "sparse, of a terabyte": lambda place: os.truncate(place.path, 1 << 40),
    "a bit flipped": flipped,
    "512 zeros": zeroed,
    "random bytes": lambda place: place.path.write_bytes(place.rng.randbytes(4096)),
    "another batch's": of_another_batch,
    "another run's": of_another_run,
    "a whole batch of another run": batch_of_another_run,
    "swapped": swapped,
    "doubled": doubled,
    "a foreign file beside it": foreign,
    "a folder": replaced_by(lambda place: place.path.mkdir()),
    "a FIFO": replaced_by(lambda place: os.mkfifo(place.path)),
    "a link to itself": replaced_by(lambda place: place.path.symlink_to(place.path.name)),
    "a link to nothing": replaced_by(lambda place: place.path.symlink_to("nothing")),
    "a link out": replaced_by(lambda place: place.path.symlink_to(place.outside)),
    "a link to a device": replaced_by(lambda place: place.path.symlink_to("/dev/zero")),
    "unreadable": lambda place: place.path.chmod(0),
    "its folder missing": folder_replaced_by(lambda place: None),
    "its folder a file": folder_replaced_by(lambda place: place.path.write_bytes(b"x")),
    "its folder a FIFO": folder_replaced_by(lambda place: os.mkfifo(place.path)),
    "its folder a link to itself": folder_replaced_by(lambda place: place.path.symlink_to(place.path.name)),
    "its folder a link out": folder_replaced_by(linked_folder),
    "a link to its folder in it": lambda place: (place.path.parent / "loop").symlink_to(place.path.parent),
}
LIES = ("JSON: another value", "a whole batch of another run")
"""Kinds of damage after which each file by itself is sound."""
