"""Hosts that the user has started: the file that lists them, and what each command does with them."""

import socket
from base64 import b64decode
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from launch.cloud import capacity, plain_ssh, watching
from launch.cloud.budgets import Step
from launch.cloud.capacity import bring_up, take_down
from launch.cloud.gcloud import Reach
from launch.cloud.job import planned
from launch.cloud.job_pods import pods_of
from launch.cloud.outcome import End, NodeView, not_started
from launch.cloud.own_hosts import clear, reaches
from launch.cloud.remote import NoAnswer, addresses, ask, ask_each, command, copy, ssh_commands
from launch.cloud.request import reach
from launch.dispatch import dispatch
from launch.hosts_file import UNREAD, SshHost, parse_hosts, read_hosts_file
from launch.job_config import config_of_run
from launch.shell import Finished
from launch.slices import slice_jobs
from pod_job.config.load import load, to_json
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.host.rendezvous import engine_coordinator, this_host
from pod_job.planning.training import JobInputs
from pod_job.run_folder.start import record_start, shareable
from pod_job.storage.open import open_folder

TWO_SLICES = "# mine\n[slice a]\nme@vm-0:2222\nvm-1 # the second\n\n[slice b]\n10.0.0.7\n[2001:db8::1]:22\n"
TWO_HOSTS = ("pod.hosts=2", "pod.accelerator_type=v5litepod-8", "pod.devices_per_host=4", "mesh.data=8", "mesh.model=1")


def config(path: Path, *more: str) -> JobConfig:
    return load(["experiment=v5e64", *TWO_HOSTS, f"pod.hosts_file={path}", "storage.run_dir=gs://bucket/run", *more])


@pytest.fixture
def hosts_file(tmp_path: Path) -> Path:
    path = tmp_path / "hosts.txt"
    path.write_text(TWO_SLICES)
    return path


def names(text: str) -> list[tuple[str, list[str]]]:
    return [(group.name, [str(host) for host in group.hosts]) for group in parse_hosts(text, "f")]


GROUPS = {
    "a\nb\n": [("0", ["a", "b"])],
    "a\n\nb\n\n\nc": [("0", ["a"]), ("1", ["b"]), ("2", ["c"])],
    "\n\na\n# a comment is no blank line\nb\n  \n\tc:22  # x\n": [("0", ["a", "b"]), ("1", ["c:22"])],
    "a\r\nb\r\n\r\nc\r\n": [("0", ["a", "b"]), ("1", ["c"])],
    TWO_SLICES: [("a", ["me@vm-0:2222", "vm-1"]), ("b", ["10.0.0.7", "[2001:db8::1]:22"])],
    "[slice x]\na\n\nb\n[ slice y ]\nc": [("x", ["a", "b"]), ("y", ["c"])],
    "127.0.0.1:2201\n127.0.0.1:2202": [("0", ["127.0.0.1:2201", "127.0.0.1:2202"])],
}


@pytest.mark.parametrize("text", GROUPS)
def test_blank_lines_or_sections_separate_slices(text: str) -> None:
    assert names(text) == GROUPS[text]


WRONG = {
    "": "lists no host; write one per line",
    "# nothing\n": "lists no host",
    "a\nb c\n": "line 2: 'b c' is not a host; write one NAME, USER@NAME or USER@NAME:PORT per line",
    "a,b": "line 1: 'a,b' is not a host",
    "-oProxyCommand=x": "line 1: .* is not a host",
    "me@-x": "line 1: .* is not a host",
    "ssh://a": "line 1: .* is not a host",
    "a:0": "line 1: 'a:0' is not a host",
    "a:65536": "line 1: .* is not a host",
    "a;b": "line 1: .* is not a host",
    "$(touch stolen)": "line 1: .* is not a host",
    "a\n\nme@A\n": r"line 3: A is listed in line 1 too; leave one out",
    "2001:db8::1": r"line 1: 2001:db8::1 is an IPv6 address without brackets; write \[2001:db8::1\]",
    "a\n[slice b]\nc": r"line 2: hosts stand before the first section; begin the file with \[slice NAME\]",
    "[slice B c]\na": "line 1: 'B c' is no name of a slice; use up to 40 of a-z",
    "[slice]\na": "line 1: '' is no name of a slice",
    "[slice a]\nx\n[slice a]\ny": r"line 3: \[slice a\] stands twice",
    "[slice a]\n\n[slice b]\ny": r"line 1: \[slice a\] has no hosts; list them below it",
    "[group a]\nx": "line 1: .* is not a host",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_line_is_refused_with_its_number_and_the_fix(text: str) -> None:
    with pytest.raises(JobError, match=rf"^pod\.hosts_file=f.*{WRONG[text]}") as error:
        parse_hosts(text, "pod.hosts_file=f")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        (b"a\nb\xff\n", "line 2: not UTF-8"),
        (b"\xef\xbb\xbfa\n", ""),
        (b"a\n" * 600_000, "1 MiB"),
    ],
)
def test_a_file_that_is_no_list_of_hosts_is_refused_in_one_line(
    content: bytes | None, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "hosts.txt"
    if content is not None:
        path.write_bytes(content)
    if not reason:
        assert read_hosts_file(str(path))[0].hosts == (SshHost("a"),)
        return
    with pytest.raises(JobError, match=rf"^pod\.hosts_file={path}.*{reason}"):
        read_hosts_file(str(path))


def test_each_group_is_a_slice_with_its_own_name_and_hosts(hosts_file: Path) -> None:
    whole = config(hosts_file, "pod.slices=2")
    jobs = slice_jobs(whole, [])
    assert [(job.number, job.name, *job.overrides) for job in jobs] == [
        (0, "a", "pod.slice='a'"),
        (1, "b", "pod.slice='b'"),
    ]
    assert [[str(host) for host in way.hosts] for way in reaches(whole)] == [
        ["me@vm-0:2222", "vm-1"],
        ["10.0.0.7", "[2001:db8::1]:22"],
    ]
    pods = pods_of(whole)
    assert [(pod.ready, pod.workers, pod.resource, pod.created) for pod in pods] == [(True, 2, "", 0.0)] * 2
    assert len({pod.name for pod in pods}) == 2
    one = config(hosts_file, "pod.slice=b")
    assert reach(one, "").hosts[0] == SshHost("10.0.0.7")
    assert bring_up(one, print).workers == 2


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ([], "has 2 groups of hosts; set pod.slices=2"),
        (["pod.slices=3"], "has 2 groups of hosts; set pod.slices=2"),
        (["pod.slice=c"], "pod.slice=c is not in pod.hosts_file=.*; use one of a, b"),
        (["pod.slices=2", "pod.hosts=4", "mesh.data=16"], "line 2: slice a has 2 hosts, and pod.hosts=4; list each"),
    ],
)
def test_a_file_that_does_not_fit_the_pod_is_refused_before_anything_starts(
    more: list[str], reason: str, hosts_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["watch", "experiment=v5e64", *TWO_HOSTS, f"pod.hosts_file={hosts_file}", "storage.run_dir=gs://b/r", *more]
    assert dispatch([*words, "--no-preflight"]) == 2
    assert reason.split(".*")[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "field",
    [
        *(
            "cloud.zones=[us-west4-a]",
            "cloud.max_hours=1",
            "cloud.max_usd=5",
            "cloud.iap=true",
            "cloud.internal_ip=true",
        ),
        *(
            "cloud.network=n",
            "cloud.subnetwork=n",
            "cloud.tags=[a]",
            "cloud.create_flags=[--x]",
            "cloud.service_account=a",
        ),
    ],
)
def test_budgets_zones_and_the_like_do_not_go_with_hosts_that_exist(field: str, hosts_file: Path) -> None:
    with pytest.raises(JobError, match=rf"^{field.partition('=')[0]}=.* leave one out$"):
        config(hosts_file, "pod.slices=2", field)


def test_hosts_of_a_file_are_no_processes_of_this_machine(hosts_file: Path) -> None:
    with pytest.raises(JobError, match=r"^pod.hosts_file=.* pod.kind=local is this machine; use pod=v5e_8 or"):
        load(["experiment=demo", f"pod.hosts_file={hosts_file}", "storage.run_dir=runs/x"])


WAY = Reach("extract-1", "", None, False, ["-i", "key"], hosts=(SshHost("vm-0", "me", 2222), SshHost("2001:db8::1")))


def test_each_host_is_reached_by_a_plain_ssh_of_its_own() -> None:
    ssh = [plain_ssh.ssh(WAY, host, "true") for host in (0, 1)]
    assert ssh[0][-4:] == ["-p", "2222", "me@vm-0", "true"]
    assert ssh[1][-2:] == ["2001:db8::1", "true"]
    assert all(
        {"-oBatchMode=yes", "-oConnectTimeout=20", "-i", "key"} <= set(argv) and argv[0] == "ssh" for argv in ssh
    )
    assert plain_ssh.scp(WAY, 0, "a", "b")[-4:] == ["-P", "2222", "a", "me@vm-0:b"]
    assert plain_ssh.scp(WAY, 1, "a", "b")[-2:] == ["a", "[2001:db8::1]:b"]


def answering(monkeypatch: pytest.MonkeyPatch, silent: dict[str, str]) -> list[str]:
    """Has ssh answer READY on every host but those in `silent`, with their errors; returns the hosts asked so far."""
    asked: list[str] = []

    def call(argv: list[str], stdin: bytes = b"", timeout_s: float = 0.0) -> Finished:
        target = argv[-2] if argv[0] == "ssh" else argv[-1].rpartition(":")[0]
        asked.append(target)
        index = [host.target for host in WAY.hosts].index(target.strip("[]"))
        error = silent.get(target)
        return Finished(255, "", error) if error else Finished(0, f"pod-job {index} READY {stdin.decode()}\n", "")

    monkeypatch.setattr("launch.cloud.calls.call", call)
    return asked


def test_only_hosts_that_gave_no_answer_are_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, {})
    assert {host: answer.word for host, answer in ask(WAY, 2, "x").items()} == {0: "READY", 1: "READY"}
    assert [answer.detail for answer in ask_each(WAY, 2, "x", b"secret").values()] == ["secret", "secret"]
    copy(WAY, 2, "a", "b")
    texts = [b64decode(argv[-1].split()[3]) for argv in ssh_commands(WAY, lambda worker: command("x", worker))]
    assert texts == [b"POD_JOB_WORKER=0\nx", b"POD_JOB_WORKER=1\nx"]
    asked = answering(monkeypatch, {"me@vm-0": "ssh: connect to host vm-0 port 2222: Connection refused"})
    with pytest.raises(
        NoAnswer, match=r"^worker 0 \(me@vm-0:2222\) of 2 gave no answer over ssh: .*refused; run it again$"
    ):
        ask(WAY, 2, "x")
    assert sorted(asked) == ["2001:db8::1", "me@vm-0", "me@vm-0", "me@vm-0"]
    with pytest.raises(NoAnswer, match="the code could not be copied"):
        copy(WAY, 2, "a", "b")


@pytest.mark.parametrize(
    ("reason", "end"),
    [
        ("me@vm-0: Permission denied (publickey).", End.failed),
        ("Host key verification failed.", End.failed),
        ("ssh: Could not resolve hostname vm-0: Name or service not known", End.failed),
        ("ssh: connect to host vm-0 port 22: Connection refused", End.lost),
        ("ssh: connect to host vm-0 port 22: No route to host", End.lost),
    ],
)
def test_a_wrong_name_or_key_ends_the_job_with_the_command_to_try(reason: str, end: End) -> None:
    outcome = not_started(NoAnswer([0], 2, reason, WAY), NodeView("READY"))
    assert outcome.end is end
    assert outcome.cause is not None
    if end is End.failed:
        assert outcome.cause.user_error
        assert "`ssh -p 2222 me@vm-0 true` must work on this machine without a question" in outcome.cause.reason


def test_down_says_which_hosts_were_not_cleared(hosts_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(argv: list[str], stdin: bytes = b"", timeout_s: float = 0.0) -> Finished:
        return (
            Finished(255, "", "down")
            if "vm-1" in argv
            else Finished(0, f"pod-job {int('2001' in argv[-2])} CLEARED \n", "")
        )

    monkeypatch.setattr("launch.cloud.calls.call", call)
    lines: list[str] = []
    whole = config(hosts_file, "pod.slices=2")
    assert clear(whole, lines.append) == {"vm-1": "no answer"}
    assert lines == [f"nothing of the job is left on 3 of 4 hosts of {hosts_file}"]
    reason = rf"^pod\.hosts_file={hosts_file}: not cleared: vm-1 \(no answer\); .*`pod-job down` with the same arg"
    with pytest.raises(JobError, match=reason):
        take_down(pods_of(whole), whole, lines.append)


def test_a_dry_run_names_each_host_and_asks_nothing_of_the_cloud(hosts_file: Path) -> None:
    lines = planned(config(hosts_file, "pod.slices=2"))
    assert len(lines) == 2 * 2 * 2
    assert all(line.startswith("ssh ") and "gcloud" not in line for line in lines)


def test_the_path_in_a_run_folder_is_not_followed(hosts_file: Path, tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "run")
    values = to_json(config(hosts_file, "pod.slices=2"))
    assert "hosts_file" not in shareable(values)["pod"]
    record_start(folder, values)
    recorded = config_of_run([str(tmp_path / "run")])
    assert recorded.pod.hosts_file == UNREAD
    assert pods_of(recorded) == []
    assert dispatch(["stop", str(tmp_path / "run")]) == 2
    given = config_of_run([str(tmp_path / "run"), f"pod.hosts_file={hosts_file}"])
    assert [pod.workers for pod in pods_of(given)] == [2, 2]


@pytest.mark.parametrize(
    ("worker", "count", "reason"),
    [
        (1, 2, ""),
        (0, 2, "as host 1 of its group .* but it is worker 0 of its TPU slice; list a slice's hosts in the order"),
        (0, 1, "pod.hosts=2, but this VM's TPU slice has 1; list the hosts of each slice as a group of its own"),
    ],
)
def test_a_host_refuses_a_file_that_lists_it_otherwise_than_its_slice(
    worker: int, count: int, reason: str, hosts_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = config(hosts_file, "pod.slice=a").pod
    for name, value in {"POD_JOB_HOST": "1", "POD_JOB_HOSTS": "vm-0,vm-1", "TPU_WORKER_ID": str(worker)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", ",".join(["10.0.0.1", "10.0.0.2"][:count]))
    if reason:
        with pytest.raises(JobError, match=reason):
            this_host(pod)
        return
    assert (this_host(pod).index, this_host(pod).coordinator) == (1, "10.0.0.1:8476")


def test_hosts_that_are_no_tpu_vms_meet_at_the_first_of_their_group(
    hosts_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POD_JOB_HOSTS", "vm-0,vm-1")
    monkeypatch.setattr("pod_job.host.rendezvous.is_tpu_vm", lambda: False)
    known = {"vm-0", "10.0.0.7", "2001:db8::1"}

    def getaddrinfo(name: str, port: None) -> None:
        if name not in known:
            raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    pod = config(hosts_file, "pod.slice=a").pod
    for listed, address in {
        "vm-0,vm-1": "vm-0:8476",
        "[2001:db8::1],vm-1": "[2001:db8::1]:8476",
        "10.0.0.7,10.0.0.8": "10.0.0.7:8476",
    }.items():
        monkeypatch.setenv("POD_JOB_HOSTS", listed)
        assert engine_coordinator(pod) == address
    for listed, reason in {
        "east,west": "east, the first host of this slice, is not known here",
        "localhost,localhost": "localhost is the address of 2 hosts of this slice",
    }.items():
        monkeypatch.setenv("POD_JOB_HOSTS", listed)
        with pytest.raises(JobError, match=rf"^pod\.hosts_file: {reason}.*; list each host by an address") as refused:
            engine_coordinator(pod)
        assert "\n" not in str(refused.value)


def test_hosts_know_each_other_by_what_ssh_makes_of_their_names(tmp_path: Path) -> None:
    """By the real ssh, which resolves aliases as it does when it connects."""
    (tmp_path / "ssh_config").write_text("Host east\n  HostName 10.0.0.7\nHost v6\n  HostName 2001:db8::7\n")
    hosts = (SshHost("east", "me", 2222), SshHost("v6"), SshHost("vm-1"), SshHost("2001:db8::1"))
    way = Reach("extract-1", "", None, False, [f"-F{tmp_path}/ssh_config"], hosts=hosts)
    assert addresses(way) == ["10.0.0.7", "[2001:db8::7]", "vm-1", "[2001:db8::1]"]
    assert addresses(replace(way, ssh_flags=["-oNoSuchOption=1"])) == ["east", "v6", "vm-1", "[2001:db8::1]"]
    assert len(addresses(replace(way, hosts=(SshHost("east", port=1), SshHost("east", port=2))))) == 2
    with pytest.raises(
        JobError, match=r"^pod\.hosts_file: east and me@10\.0\.0\.7:22 are one machine, 10\.0\.0\.7 port 22; "
    ):
        addresses(replace(way, hosts=(SshHost("east"), SshHost("10.0.0.7", "me", 22))))


def test_nothing_is_asked_of_the_cloud(hosts_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "find_pods", None)
    assert bring_up(config(hosts_file, "pod.slice=a"), print).ready


@pytest.mark.parametrize(
    ("step", "ended", "waits"),
    [(Step.same_pod, True, 0), (Step.same_pod, False, 1), (Step.new_pod, True, 1), (Step.again, True, 1)],
)
def test_what_would_need_another_pod_is_tried_on_the_same_hosts_after_a_while(
    step: Step, ended: bool, waits: int, hosts_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, waited = [], []

    def kill(way: Reach, hosts: int, log: object) -> bool:
        killed.append(way.hosts)
        return ended

    monkeypatch.setattr(watching, "kill", kill)
    monkeypatch.setattr(watching, "wait_for_hosts", waited.append)
    monkeypatch.setattr(watching, "take_down", None)
    one = config(hosts_file, "pod.slice=a")
    watcher = watching.Watching(one, [], cast(JobInputs, None), print, 0.0)
    watcher.prepare_for(step, bring_up(one, print))
    assert len(killed) == (step is not Step.again)
    assert len(waited) == waits
