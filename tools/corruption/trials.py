"""One trial: a folder is spoilt, a command runs on it, and how it ends is an outcome."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pod_job.commands.command_line import BAD_INPUT, DONE, FAILED
from pod_job.errors import JobError
from pod_job.run_folder import layout
from pod_job.run_folder.identity import read_run
from pod_job.run_folder.metadata import Metadata, read_any
from pod_job.storage.open import open_folder
from tools.corruption.commands import ANSWERS_NO, COMMANDS, QUICK, READ, TRAIN, WAITED_S, Command, Ended, run
from tools.corruption.corpus import PICKLES, SHARDS, Content, Corpus, run_content, sae_content
from tools.corruption.damage import SECRET, Damage, damage, file_kind

MOST_LINE = 2000
"""Characters of an error: it may name a path and list some values."""
TOKEN = "hf_token_of_the_reader"
NO_CHECKSUMS = (PICKLES, SHARDS)
"""Folders with files whose content no record vouches for: as other programs write and read them."""
VARYING = ("merged", "pod_job_version", "parity", "accepted")
"""Keys of metadata.json that a later merge may give other values, or that come from records without a checksum."""
ANNOTATIONS = ("run", "verified", "created", "version", "starts", "parity", "note", "before", "token", "after")
"""Facts that `inspect` shows of records which describe a run and are not part of its data."""
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")

NOTE = re.compile(r"note: |.*; treated as a host that has not reported$")
"""Lines beside the result: a report that cannot be stored, a status that cannot be read."""


class Trial(msgspec.Struct, frozen=True):
    """A command on a spoilt folder: what was done to which kind of file of which run, and how the command ended."""

    number: int
    command: str
    damage: str
    file: str
    run: str
    outcome: str

    @property
    def failed(self) -> bool:
        return self.outcome.split()[0].isupper()


class Hang(BaseException):
    """A command that does not end."""


@dataclass
class Bench:
    """The corpus, and what each command makes of each sound folder: None where it refuses."""

    corpus: Corpus
    made: dict[tuple[str, str], Any] = field(default_factory=dict)


def try_one(bench: Bench, number: int, seed: int, only: str = "") -> Trial:
    """Spoils a copy of a folder, and runs a command on it: of that name `only`, or of QUICK those that are."""
    rng = random.Random(f"corruption/{seed}/{number}")
    commands = [command for command in COMMANDS if only in ("", command.name) or (only == QUICK and not command.slow)]
    command = rng.choices(commands, [command.share for command in commands])[0]
    name = command.on or rng.choice(bench.corpus.runs)
    with tempfile.TemporaryDirectory(dir=bench.corpus.root.parent) as scratch:
        folder, out = Path(scratch) / name, Path(scratch) / "out"
        shutil.copytree(bench.corpus.folder(name), folder)
        damaged = damage(folder, bench.corpus.root, rng)
        try:
            outcome = outcome_of(bench, command, damaged, folder, out)
        finally:
            restore_modes(Path(scratch))
    return Trial(number, command.name, damaged.kind, file_kind(damaged.path), name, outcome[:1000])


def outcome_of(bench: Bench, command: Command, damaged: Damage, folder: Path, out: Path) -> str:
    """Returns how the command ended on the spoilt folder; in capitals where it must not end so."""
    sound = bench.corpus.root / folder.name
    before = states(folder)
    try:
        expected = result_of_sound(bench, command, sound)
        with watched(command.most_s) as incidents:
            ended = run(command, folder, sound, out)
    except (Exception, Hang) as error:
        return f"CRASH {type(error).__name__}: {error}"
    if incidents:
        return f"CRASH in a thread: {incidents[0]}"
    verdict = judge(command, ended)
    if leaked := leaks(ended, folder.parent):
        return f"LEAK {leaked}"
    if changed := changes(before, states(folder), command):
        return f"CHANGED {changed}"
    if ended.status != DONE:
        return verdict
    try:
        return judge_data(command, damaged, result(command, ended, sound, folder, out), expected)
    except JobError as error:
        # Committed files are not read again by who goes on; readers meet the damage.
        return "done, readers refuse" if command.resumes else f"UNREADABLE {error}"
    except Exception as error:
        return f"UNREADABLE {type(error).__name__}: {error}"


def result_of_sound(bench: Bench, command: Command, sound: Path) -> Any:
    """Returns the result of the command on the sound folder, made once; None where it refuses or has none."""
    key = (f"{command.name} {command.words}", sound.name)
    if key not in bench.made:
        with tempfile.TemporaryDirectory(dir=bench.corpus.root.parent) as scratch:
            folder, out = Path(scratch) / sound.name, Path(scratch) / "out"
            shutil.copytree(sound, folder)
            ended = run(command, folder, sound, out)
            bench.made[key] = result(command, ended, sound, folder, out) if ended.status == DONE else None
    return bench.made[key]


def result(command: Command, ended: Ended, sound: Path, folder: Path, out: Path) -> Content:
    """Returns the data that a command which succeeded has shown or made."""
    if command.made:
        return command.made(out)
    if command.name == TRAIN:
        return sae_content(folder)
    if command.resumes or command.name in ("verify", READ):
        return run_content(folder)
    if command.name == "merge":
        described = msgspec.to_builtins(read_any(open_folder(folder)))
        joined_now = described.get("joined") and not (sound / layout.COMPACTION).exists()
        data = run_content(folder) if joined_now else None  # a merge alone reads records only
        return {key: described.get(key) for key in Metadata.__struct_fields__ if key not in VARYING}, data
    if command.name == "diff":
        return msgspec.to_builtins(read_run(open_folder(folder)).identity)
    if command.name == "evaluate":
        return json.loads(ended.out)["saes"]
    if command.name in ("inspect", "report") and "--json" in command.words:
        facts = json.loads(ended.out)
        return (
            {key: value for key, value in facts.items() if key not in ANNOTATIONS}
            if command.name == "inspect"
            else {key: facts[key] for key in ("complete", "rows", "rows_sampled", "taps")}
        )
    return None


def judge(command: Command, ended: Ended) -> str:
    """Returns `done`, `no` or `refused`, or in capitals what is wrong with how the command ended."""
    if "Traceback (most recent call last)" in ended.err + ended.out:
        return f"TRACEBACK {ended.err[-600:]}"
    if controls := CONTROLS.search(ended.out + ended.err):
        return f"CONTROL CHARACTER {controls[0]!r} is printed"
    if ended.status == DONE:
        return "done"
    if ended.status == FAILED and command.name in ANSWERS_NO:
        return "no"
    if ended.status != BAD_INPUT:
        return f"STATUS {ended.status}: {ended.err}"
    errors = [line for line in ended.err.split("\n")[:-1] if not NOTE.match(line)]
    if len(errors) != 1 or not errors[0].startswith("error: "):
        return f"LINES {ended.err}"
    if len(errors[0]) > MOST_LINE:
        return f"LONG {len(errors[0])} characters: {errors[0]}"
    return "refused"


def judge_data(command: Command, damaged: Damage, given: Content, expected: Content) -> str:
    """Returns `done` where a command that took the folder for sound gave the right data."""
    if given == expected:
        return "done"
    if command.on in NO_CHECKSUMS or (damaged.lie and command.name != "verify"):
        return "done, of a lie"
    return "WRONG DATA"


def leaks(ended: Ended, scratch: Path) -> str:
    """Returns which secret of the reader was printed or written, or was changed; "" for none."""
    printed = ended.out + ended.err
    if TOKEN in printed or SECRET.decode() in printed:
        return "is printed"
    outside = scratch / "outside"
    for path in scratch.rglob("*"):
        if path.is_symlink() or not path.is_file() or path.stat().st_size > 1 << 30:
            continue
        content = path.read_bytes()
        if path.is_relative_to(outside):
            if content != SECRET:
                return f"{path} was changed"
        elif SECRET in content or TOKEN.encode() in content:
            return f"is written to {path}"
    return ""


def states(folder: Path) -> dict[str, Any]:
    """Returns what is in the folder: for each name its kind and content."""
    found: dict[str, Any] = {}
    for directory, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(directory) / name
            status = path.lstat()
            small = stat.S_ISREG(status.st_mode) and status.st_size < 1 << 26
            if (path.is_dir() and not path.is_symlink()) or name.endswith(".tmp"):  # merging sweeps the abandoned
                continue
            content = os.readlink(path) if path.is_symlink() else path.read_bytes() if small else status.st_size * small
            found[str(path.relative_to(folder))] = stat.S_IFMT(status.st_mode), content
    return found


def changes(before: Mapping[str, Any], after: Mapping[str, Any], command: Command) -> str:
    """Returns a name in the run folder that the command must not have changed; "" for none."""
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return next((name for name in names if not f"{name}/".startswith(command.writes)), "") if names else ""


@contextlib.contextmanager
def watched(most_s: int) -> Iterator[list[str]]:
    """Yields what happens beside the block's own result: exceptions of threads.

    Raises Hang after `most_s` of CPU time, or where it waits for something, after WAITED_S.
    """
    incidents: list[str] = []

    def hang(*_: object) -> None:
        raise Hang(f"no answer within {most_s} s of CPU time or {WAITED_S} s")

    handlers = {number: signal.signal(number, hang) for number in (signal.SIGALRM, signal.SIGPROF)}
    hook = threading.excepthook
    threading.excepthook = lambda args: incidents.append(f"{args.exc_type.__name__}: {args.exc_value}")
    signal.alarm(WAITED_S)
    signal.setitimer(signal.ITIMER_PROF, most_s)
    try:
        yield incidents
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        threading.excepthook = hook


def restore_modes(scratch: Path) -> None:
    """Makes folders removable again."""
    for path in scratch.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
