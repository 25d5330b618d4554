"""Scripts on all hosts of a pod at once: a script and its values in, one answer per host out.

gcloud runs a command again when a connection drops, exits 0 when some hosts failed, and mixes their output. So scripts
may run any number of times, each host prints its own index with its answer, and only distinct answers count.
"""

import base64
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from launch import clock
from launch.cloud import gcloud, plain_ssh
from launch.cloud.calls import SSH_TIMEOUT_S, call_hosts, gcloud_error
from launch.cloud.gcloud import Reach
from launch.hosts_file import SshHost
from launch.shell import Finished
from pod_job.errors import JobError

SCRIPTS = Path(__file__).parent / "scripts"
ANSWER = re.compile(r"^pod-job (\d+) ([A-Z_]+) ?(.*)$", re.MULTILINE)
ROUNDS = 3  # for hosts that have not answered
FIRST_CONTACT_S = 180.0  # from a pod's READY: its hosts may still be booting, or getting gcloud's key
PAUSE_S = 5.0  # between rounds after the third
STDIN_CALLS = 8  # at once; each is a gcloud process
SSH_CALLS = 64  # at once, of plain ssh


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
        reason: gcloud's or ssh's.
        others_answered: False where it may as well be this machine's network or key.
        by_hand: of a host that the user has started, the command that must work by hand; "" of others.
    """

    def __init__(self, silent: Sequence[int], hosts: int, reason: str, reach: Reach | None = None) -> None:
        own = reach.hosts if reach is not None else ()
        names = ", ".join(f"{host} ({own[host]})" if own else str(host) for host in silent)
        super().__init__(f"worker {names} of {hosts} gave no answer over ssh: {reason}; run it again")
        self.silent = silent
        self.reason = reason
        self.others_answered = len(silent) < hosts
        self.by_hand = by_hand(own[silent[0]]) if own else ""


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


def by_hand(host: SshHost) -> str:
    """Returns the command with which the user reaches a host."""
    return " ".join(["ssh", *([] if host.port is None else ["-p", str(host.port)]), host.target, "true"])


def command(text: str, worker: int | None = None) -> str:
    """Returns the script as one command that survives three shells; its stdin is that of the connection.

    Args:
        worker: index of the host, where it is not to ask its metadata server.
    """
    text = text if worker is None else f"POD_JOB_WORKER={worker}\n{text}"
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
        done = run_on(reach, missing(answers, hosts) if answers else None, text)
        answers |= read_answers(done)
        if len(answers) == hosts:
            return answers
        if not rounds.another():
            raise no_answer(answers, hosts, done, reach)


def ssh_commands(
    reach: Reach, text_for: Callable[[int | None], str], workers: Sequence[int] | None = None
) -> list[list[str]]:
    """Returns the commands for these workers, or for all: one gcloud, or one ssh for each host of the user's own.

    Args:
        text_for: index of a host of the user's own, None for workers that gcloud reaches together -> what they run.
    """
    if not reach.hosts:
        return [gcloud.ssh(reach, "all" if workers is None else ",".join(map(str, workers)), text_for(None))]
    chosen = range(len(reach.hosts)) if workers is None else workers
    return [plain_ssh.ssh(reach, worker, text_for(worker)) for worker in chosen]


def planned_ssh(reach: Reach, name: str) -> list[str]:
    """Returns the commands that run a script on all hosts, for people: it is named, not shown."""
    return [shlex.join(argv) for argv in ssh_commands(reach, lambda _: f"... # launch/cloud/scripts/{name}.sh")]


def addresses(reach: Reach) -> list[str]:
    """Returns the names by which hosts of the user's own know each other: those that ssh resolves its aliases to.

    Raises:
        JobError: two of them are one machine.
    """
    with ThreadPoolExecutor(SSH_CALLS) as pool:
        resolved = list(pool.map(lambda worker: call_hosts(plain_ssh.resolve(reach, worker)), range(len(reach.hosts))))
    names: list[str] = []
    machines: dict[tuple[str, str], SshHost] = {}
    for host, done in zip(reach.hosts, resolved, strict=True):
        settings = dict(re.findall(r"^(hostname|port) (\S+)$", done.out, re.MULTILINE)) if done.code == 0 else {}
        name, port = settings.get("hostname", host.name), settings.get("port", str(host.port))
        if (first := machines.setdefault((name, port), host)) is not host:
            raise JobError(f"pod.hosts_file: {first} and {host} are one machine, {name} port {port}; list it once")
        names.append(f"[{name}]" if ":" in name else name)
    return names


def run_on(
    reach: Reach, workers: Sequence[int] | None, text: str, stdin: bytes = b"", timeout_s: float = SSH_TIMEOUT_S
) -> list[Finished]:
    """Runs a script on these workers, or on all."""
    calls = ssh_commands(reach, lambda worker: command(text, worker), workers)
    with ThreadPoolExecutor(SSH_CALLS) as pool:
        return list(pool.map(lambda argv: call_hosts(argv, stdin, timeout_s), calls))


def copy(reach: Reach, hosts: int, source: str, target: str) -> None:
    """Copies the code into the home folder of every host, trying for `first_contact_s`. NoAnswer: not on all hosts."""
    rounds = Rounds(first_contact_s(reach))
    calls = [plain_ssh.scp(reach, host, source, target) for host in range(len(reach.hosts))]
    while True:
        with ThreadPoolExecutor(SSH_CALLS) as pool:
            done = list(pool.map(call_hosts, calls or [gcloud.scp(reach, source, target)]))
        failed = [host for host, one in enumerate(done) if one.code]
        if not failed:
            return
        if not rounds.another():
            silent = failed if reach.hosts else range(hosts)
            reason = f"the code could not be copied, {gcloud_error(done[failed[0]].err)}"
            raise NoAnswer(silent, hosts, reason, reach)


def first_contact_s(reach: Reach) -> float:
    """Returns for how long hosts that do not answer are asked at least: not at all where they were there before."""
    return 0.0 if reach.hosts else FIRST_CONTACT_S


def ask_briefly(reach: Reach, text: str, timeout_s: float) -> dict[int, Answer]:
    """Returns the answers of those hosts that can be reached within `timeout_s`."""
    return read_answers(run_on(reach, None, text, timeout_s=timeout_s))


def ask_each(reach: Reach, hosts: int, text: str, stdin: bytes) -> dict[int, Answer]:
    """Runs a script on every host with `stdin`, as `ask`; by one gcloud a host, since together they would share one."""
    answers: dict[int, Answer] = {}
    done: list[Finished] = []
    for _ in range(ROUNDS):
        with ThreadPoolExecutor(STDIN_CALLS) as pool:
            calls = [pool.submit(run_on, reach, [host], text, stdin) for host in missing(answers, hosts)]
            done = [finished for one in calls for finished in one.result()]
        # FAILED here means that stdin broke off: worth another round.
        answers |= {host: answer for host, answer in read_answers(done).items() if answer.word != "FAILED"}
        if len(answers) == hosts:
            return answers
    raise no_answer(answers, hosts, done, reach)


def read_answers(done: Iterable[Finished]) -> dict[int, Answer]:
    """Returns the answers that gcloud printed, by host; one given twice, because gcloud tried twice, counts once."""
    lines = (line for command in done for line in ANSWER.findall(command.out))
    return {int(host): Answer(int(host), word, detail) for host, word, detail in lines}


def missing(answers: Mapping[int, Answer], hosts: int) -> list[int]:
    return sorted(set(range(hosts)) - answers.keys())


def no_answer(answers: Mapping[int, Answer], hosts: int, done: Sequence[Finished], reach: Reach) -> NoAnswer:
    """Returns the error of hosts that gave no answer; the reason is that of the first call that failed."""
    text = next((one.err for one in done if one.code), done[-1].err)
    return NoAnswer(missing(answers, hosts), hosts, gcloud_error(text), reach)
