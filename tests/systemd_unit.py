"""A systemd unit as systemd reads it: its settings, and the words of its command.

Quoting is that of https://www.freedesktop.org/software/systemd/man/systemd.service (COMMAND LINES); systemd 252 took
the same words from a unit with all of it.
"""

import re
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

WORD = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|(\S+))')
ESCAPED = {"n": "\n", "t": "\t", "\\": "\\", '"': '"', "'": "'", "s": " "}


@dataclass(frozen=True)
class Unit:
    """Settings by name, each with its values in order; the words of `ExecStart`."""

    settings: Mapping[str, list[str]]
    command: list[str]

    def only(self, name: str) -> str:
        (value,) = self.settings[name]
        return value

    def start(self, machine: Mapping[str, str]) -> subprocess.Popen[str]:
        """Starts the command as the manager would on a machine: with its variables and the unit's, and no others."""
        variables = dict(setting.split("=", 1) for setting in self.settings["Environment"])
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.command,
            cwd=self.only("WorkingDirectory"),
            env={"LANG": "C.UTF-8", "USER": self.only("User"), **machine, **variables},
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            text=True,
            start_new_session=True,
        )

    def starts_again(self, status: int) -> bool:
        """Returns whether it is started again after such an end; `status` is negative for a signal."""
        assert self.only("Restart") == "on-failure"
        clean_signals = {-1, -2, -13, -15}
        prevented = {int(word) for word in self.only("RestartPreventExitStatus").split()}
        return status not in {0, *clean_signals, *prevented}


def read_unit(text: str) -> Unit:
    """Returns the unit in a file's text."""
    settings = defaultdict[str, list[str]](list)
    for line in text.splitlines():
        if line and line[0] not in "#;[":
            name, _, value = line.partition("=")
            settings[name].append(value)
    (line,) = settings["ExecStart"]
    return Unit(settings, words(line))


def words(line: str) -> list[str]:
    """Returns the words of a command line of a unit."""
    found = []
    for quoted, plain in WORD.findall(line):
        assert plain != ";", "another command begins"
        text = re.sub(r"\\(.)", lambda match: ESCAPED[match[1]], quoted) if quoted else plain
        assert not re.search(r"(?<![$])(\$\$)*\$(?!\$)", text), f"{text!r}: a variable's value"
        assert not re.search(r"(?<!%)(%%)*%(?!%)", text), f"{text!r}: a specifier"
        found.append(text.replace("$$", "$").replace("%%", "%"))
    return found
