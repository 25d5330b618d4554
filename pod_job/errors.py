"""The exceptions that are no bugs: a person's input at fault, a person's signal; and the commonest rule about input."""

import signal


class JobError(Exception):
    """Something the user can fix: one line that names the field, its value, the rule and the fix.

    Commands print it as `error: ...` and exit with status 2; every other exception is a bug and keeps its traceback.
    """


class Stopped(Exception):
    """A signal asked the command to end; `signum` is its number."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class NoWeights(JobError):
    """A model's folder holds no weights at all; its config.json is enough for a plan."""


def at_least(name: str, value: int, least: int) -> None:
    """Raises JobError unless `value >= least`."""
    if value < least:
        raise JobError(f"{name}={value} is too small; use {least} or more")


def is_panic(error: BaseException) -> bool:
    """Returns whether a library in Rust has panicked, which Python gets as an exception that is no Exception."""
    return type(error).__name__ == "PanicException"


def first_line(error: BaseException) -> str:
    """Returns the first line of another library's error, short enough for one line of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
