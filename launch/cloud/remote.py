"""Scripts on all hosts of a pod at once: a script and its values in, one answer per host out.

gcloud runs a command again when a connection drops, exits 0 when some hosts failed, and mixes their output. So scripts
may run any number of times, each host prints its own index with its answer, and only distinct answers count.
"""

import base64
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from launch import clock
from launch.cloud import gcloud
from launch.cloud.calls import call_hosts, gcloud_error
from launch.cloud.gcloud import Reach
from launch.shell import Finished
from pod_job.errors import JobError

SCRIPTS = Path(__file__).parent / "scripts"
ANSWER = re.compile(r"^pod-job (\d+) ([A-Z_]+) ?(.*)$", re.MULTILINE)
ROUNDS = 3  # for hosts that have not answered
FIRST_CONTACT_S = 180.0  # from a pod's READY: its hosts may still be booting, or getting gcloud's key
PAUSE_S = 5.0  # between rounds after the third
STDIN_CALLS = 8  # at once; each is a gcloud process


@dataclass(frozen=True)
class Answer:
    """One host's answer: a word in capitals, and more about it."""

    host: int
    word: str
    detail: str


class NoAnswer(JobError):
    """Hosts gave no answer over ssh.

    Attributes:
        silent: those hosts.
        reason: gcloud's.
        others_answered: False where it may as well be this machine's network or key.
    """

    def __init__(self, silent: Sequence[int], hosts: int, reason: str) -> None:
        names = ", ".join(map(str, silent))
        super().__init__(f"worker {names} of {hosts} gave no answer over ssh: {reason}; run it again")
        self.silent = silent
        self.reason = reason
        self.others_answered = len(silent) < hosts


class Refused(JobError):
    """A host could not do what it was asked, or runs an earlier start.

    Attributes:
        host: the first such host; `detail`: its reason.
        by_all: whether no host could: then it is hardly the machine.
        earlier: whether it runs an earlier start.
    """

    def __init__(self, host: int, detail: str, by_all: bool = False, earlier: bool = False) -> None:
        super().__init__(f"worker {host}: {detail}")
        self.host, self.detail, self.by_all, self.earlier = host, detail, by_all, earlier


def script(name: str, values: Mapping[str, str | Sequence[str]]) -> str:
    """Returns the text of a script with its variables set before it."""
    lines = [assignment(key, value) for key, value in values.items()]
    return "\n".join([(SCRIPTS / "head.sh").read_text(), *lines, (SCRIPTS / f"{name}.sh").read_text()])


def assignment(name: str, value: str | Sequence[str]) -> str:
    """Returns a line of bash that sets a variable, to an array for a sequence."""
    return f"{name}={shlex.quote(value)}" if isinstance(value, str) else f"{name}=({shlex.join(value)})"


def command(text: str) -> str:
    """Returns the script as one command that survives three shells; its stdin is that of the connection."""
    return f'bash -c "$(echo {base64.b64encode(text.encode()).decode()} | base64 -d)"'


class Rounds:
    """Rounds of asking the hosts that have not answered: ROUNDS of them, and as many as `patience_s` has room for."""

    def __init__(self, patience_s: float) -> None:
        self.deadline, self.done = clock.monotonic() + patience_s, 0

    def another(self) -> bool:
        """Returns whether another round is due, after a pause where one is needed."""
        self.done += 1
        if self.done < ROUNDS:
            return True
        if clock.monotonic() + PAUSE_S > self.deadline:
            return False
        clock.sleep(PAUSE_S)
        return True


def ask(reach: Reach, hosts: int, text: str, patience_s: float = 0.0) -> dict[int, Answer]:
    """Runs a script on every host; host -> answer.

    Args:
        patience_s: for how long hosts that do not answer are asked at least; FIRST_CONTACT_S on a new pod.
    Raises:
        NoAnswer: some hosts gave no answer, with their indexes and what gcloud said last.
    """
    answers: dict[int, Answer] = {}
    rounds = Rounds(patience_s)
    while True:
        workers = ",".join(map(str, missing(answers, hosts))) if answers else "all"
        done = call_hosts(gcloud.ssh(reach, workers, command(text)))
        answers |= read_answers([done])
        if len(answers) == hosts:
            return answers
        if not rounds.another():
            raise no_answer(answers, hosts, done.err)


def copy(reach: Reach, hosts: int, source: str, target: str) -> None:
    """Copies the code into the home folder of every host, trying for FIRST_CONTACT_S. NoAnswer: not on all hosts."""
    rounds = Rounds(FIRST_CONTACT_S)
    while (done := call_hosts(gcloud.scp(reach, source, target))).code:
        if not rounds.another():
            raise NoAnswer(range(hosts), hosts, f"the code could not be copied, {gcloud_error(done.err)}")


def ask_briefly(reach: Reach, text: str, timeout_s: float) -> dict[int, Answer]:
    """Returns the answers of those hosts that can be reached within `timeout_s`."""
    done = call_hosts(gcloud.ssh(reach, "all", command(text)), timeout_s=timeout_s)
    return read_answers([done])


def ask_each(reach: Reach, hosts: int, text: str, stdin: bytes) -> dict[int, Answer]:
    """Runs a script on every host with `stdin`, as `ask`; by one gcloud a host, since together they would share one."""
    answers: dict[int, Answer] = {}
    last_error = ""
    for _ in range(ROUNDS):
        with ThreadPoolExecutor(STDIN_CALLS) as pool:
            calls = [gcloud.ssh(reach, str(host), command(text)) for host in missing(answers, hosts)]
            done = list(pool.map(lambda argv: call_hosts(argv, stdin), calls))
        last_error = done[-1].err
        # FAILED here means that stdin broke off: worth another round.
        answers |= {host: answer for host, answer in read_answers(done).items() if answer.word != "FAILED"}
        if len(answers) == hosts:
            return answers
    raise no_answer(answers, hosts, last_error)


def read_answers(done: Iterable[Finished]) -> dict[int, Answer]:
    """Returns the answers that gcloud printed, by host; one given twice, because gcloud tried twice, counts once."""
    lines = (line for command in done for line in ANSWER.findall(command.out))
    return {int(host): Answer(int(host), word, detail) for host, word, detail in lines}


def missing(answers: Mapping[int, Answer], hosts: int) -> list[int]:
    return sorted(set(range(hosts)) - answers.keys())


def no_answer(answers: Mapping[int, Answer], hosts: int, last_error: str) -> NoAnswer:
    return NoAnswer(missing(answers, hosts), hosts, gcloud_error(last_error))
