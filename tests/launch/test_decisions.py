"""Verbs of the launcher in a simulated cloud: what they delete, whom they blame, where they end, what scripts get."""

import base64
import json
import re
import subprocess
from pathlib import Path

import pytest
from simulated_cloud import World, job, world
from simulated_hosts import HOSTS

from launch import clock
from launch.__main__ import main
from launch.cloud import remote
from launch.cloud.deploy import Start, send_secrets
from launch.cloud.gcloud import Reach
from launch.cloud.limits import Limit, nearest_limit
from launch.cloud.observe import Liveness
from launch.view.status_view import RunStatus
from pod_job.config.load import load
from pod_job.errors import JobError
from pod_job.preflight.prices import hours, usd_per_hour
from pod_job.preflight.tpu_facts import read_accelerator_type
from pod_job.preflight.whole_run import dollars
from pod_job.run_folder.layout import log_file
from pod_job.run_folder.pods import PodRecord
from pod_job.run_folder.status import EndKind, HostStatus, Phase

__all__ = ["world"]  # the fixture

PARENT = "projects/p/locations/us-west4-a"
OURS = {"labels": {"made-by": "pod-job"}, "acceleratorType": "v4-16"}
REACH = Reach("extract-1", "us-west4-a", None, False, [])
HOSTILE = ["a b", "$(touch stolen)", "`id`", "it's", 'say "x"', "two\nlines", "; touch stolen #", "\\", "*", "", "~"]


def test_gc_deletes_dead_pods_of_pod_job_and_no_others(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    cloud = world.cloud
    for name in ("dead", "alive", "others"):
        cloud.create_node(PARENT, name, OURS if name != "others" else {"labels": {"team": "x"}})
    world.clock.sleep(60)
    cloud.get(cloud.nodes, f"{PARENT}/nodes/alive")  # both are READY by now
    cloud.preempt("dead")
    cloud.preempt("others")
    cloud.create_node(PARENT, "coming", OURS)
    cloud.grant_s = 1e6
    cloud.create_queued(PARENT, "waiting", {"tpu": {"nodeSpec": [{"nodeId": "waiting", "node": OURS}]}})
    assert main(["gc", "--dry-run"]) == 0
    assert [line.split()[5] for line in capsys.readouterr().out.splitlines()] == ["dead"]
    assert main(["gc", "--json"]) == 0
    listed = {pod["name"]: pod["deleted"] for pod in json.loads(capsys.readouterr().out)}
    assert listed == {"dead": True, "alive": False, "coming": False, "waiting": False}
    assert {name.rpartition("/")[2] for name in cloud.nodes} == {"alive", "others", "coming"}
    assert len(cloud.queued) == 1


def test_up_and_run_start_once_and_down_deletes(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", *job(world), "--no-preflight"]) == 0
    assert "extract-1 in us-west4-a: READY, 2 workers" in capsys.readouterr().out
    assert main(["run", *job(world), "--no-preflight"]) == 0
    first = capsys.readouterr()
    assert "pod-job down experiment=v5e64" in first.out
    assert main(["run", *job(world), "--no-preflight"]) == 0
    assert "2 ALREADY_RUNNING" in capsys.readouterr().err
    assert (world.creates, len(world.starts)) == (1, 1)
    assert main(["down", *job(world)]) == 0
    assert world.empty


def test_run_follows_to_the_end_and_says_that_the_pod_stays(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *job(world), "--no-preflight", "--follow", "--json"]) == 0
    done = capsys.readouterr()
    assert json.loads(done.out)["complete"]
    assert "extract-1 in us-west4-a stays (READY), at $7.38 an hour; delete it: pod-job down " in done.err


def test_a_traceback_is_not_tried_again_within_the_budget(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.stages["running"] = lambda world: world.machines[0].end(1, 1, EndKind.bug)
    assert main(["watch", *job(world, "cloud.failures=5", "cloud.bad_machines=5"), "--no-preflight"]) == 1
    assert "error: host 1: error of host 1" in capsys.readouterr().err
    assert (len(world.starts), world.creates, world.empty) == (1, 1, True)


def test_logs_end_with_a_run_that_failed(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.stages["running"] = lambda world: world.machines[0].end(1, 1, EndKind.bug)
    main(["watch", *job(world), "--no-preflight"])
    for host in range(HOSTS):
        world.folder.replace(log_file(host), f"2026-11-26 10:00:0{2 - host},000 INFO line of {host}\n".encode())
    capsys.readouterr()
    assert main(["logs", *job(world), "--follow"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["1", "0"]


@pytest.mark.parametrize("phase", list(Phase))
def test_following_a_status_ends_with_every_host(phase: Phase) -> None:
    ended = phase in (Phase.done, Phase.stopped, Phase.failed)
    hosts = [HostStatus(host=0, attempt="a", phase=Phase.done), HostStatus(host=1, attempt="a", phase=phase)]
    unknown = dict.fromkeys(
        ("batches_per_hour", "tokens_per_s", "left_s", "ready_at", "cost_so_far", "cost_expected"), None
    )
    run = RunStatus(run="r", batches_done=0, batches=1, pod_hours=[], pods=[], hosts=[*hosts], **unknown)
    assert run.ended is ended


def test_silence_is_that_of_the_host_that_is_silent(world: World) -> None:
    liveness = Liveness(2)

    def hears(*phases: Phase) -> None:
        liveness.update(
            [
                HostStatus(host=host, attempt="a", phase=phase, updated=1.0 if host else clock.now())
                for host, phase in enumerate(phases)
            ]
        )

    for _ in range(10):
        hears(Phase.extracting, Phase.extracting)
        world.clock.sleep(10)
    assert liveness.silent_s() == pytest.approx(100)  # of host 1, which repeats itself
    hears(Phase.extracting, Phase.done)
    assert liveness.silent_s() == pytest.approx(0)  # who has ended may be silent


def test_a_pod_that_was_lost_is_charged_until_it_was_last_heard() -> None:
    lost = PodRecord("n", "z", "v4-16", "spot", created=3600.0)
    assert hours([lost], [], heard=3 * 3600.0, now=100 * 3600.0)[0][1] == pytest.approx(2)
    assert hours([lost], [lost.key], heard=3 * 3600.0, now=5 * 3600.0)[0][1] == pytest.approx(4)


def test_a_plan_is_in_dollars_an_hour() -> None:
    pod = read_accelerator_type("v5litepod-64")
    assert dollars(1800.0, pod, 1.25) == pytest.approx(32 * 1.25)
    assert dollars(1800.0, pod, None) is None


def test_a_price_that_nobody_publishes_is_unknown_and_the_users_own_is_of_a_chip() -> None:
    assert usd_per_hour("tpu7x-8", "spot", None) is None
    assert usd_per_hour("tpu7x-8", "spot", 12.0) == pytest.approx(4 * 12)


def test_the_nearest_limit_counts_every_pod() -> None:
    base = ["experiment=v5e64", "storage.run_dir=gs://b/r", "cloud.price_per_chip_hour=1"]  # 64 dollars an hour
    earlier = PodRecord("n", "z", "v5litepod-64", "spot", created=3600.0, ended=2 * 3600.0)
    living = PodRecord("n", "z", "v5litepod-64", "spot", created=10 * 3600.0)
    now = 11 * 3600.0

    def limit(*more: str) -> Limit | None:
        return nearest_limit(load([*base, *more]), [earlier, living], [living.key], heard=now, now=now)

    assert limit() is None
    hours_left, dollars_left = limit("cloud.max_hours=3"), limit("cloud.max_usd=192")
    assert hours_left is not None
    assert hours_left.left_s == pytest.approx(3600)
    assert dollars_left is not None
    assert dollars_left.left_s == pytest.approx(3600)
    both = limit("cloud.max_hours=3", "cloud.max_usd=150")
    assert both is not None
    assert both.reason == "cloud.max_usd=150 is reached"
    over = limit("cloud.max_hours=1.5")
    assert over is not None
    assert over.reached
    with pytest.raises(JobError, match=r"^cloud\.max_usd=5: the price of .* is unknown; set cloud\.price_per_chip"):
        nearest_limit(load([*base[:2], "cloud.max_usd=5", "pod.accelerator_type=v9-64"]), [], [], 0.0, now)


@pytest.mark.parametrize("value", HOSTILE)
def test_a_value_reaches_a_script_as_it_is(value: str, tmp_path: Path) -> None:
    """Through the shells that are between here and a host: none reads it as a command."""
    lines = [remote.assignment("ONE", value), "printf '%s\\0' \"$ONE\""]
    done = subprocess.run(
        ["bash", "-c", remote.command("\n".join(lines))], capture_output=True, check=True, cwd=tmp_path
    )
    assert done.stdout.decode().split("\0")[0] == value
    assert not list(tmp_path.iterdir())


def test_secrets_go_over_stdin_alone_and_arrive_as_they_are(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = "s3cr3t'\"$(touch stolen) `id`\nsecond line \\"
    monkeypatch.setenv("MY_SECRET", secret)
    assert main(["run", *job(world, "cloud.secrets=[MY_SECRET]"), "--no-preflight"]) == 0
    scripts = re.findall(r"echo (\S+) \|", "\n".join(" ".join(argv) for argv in world.calls))
    assert not [text for text in scripts if b"s3cr3t" in base64.b64decode(text)]
    assert not [argv for argv in world.calls if "s3cr3t" in " ".join(argv)]
    assert not [values for values in world.starts if "s3cr3t" in str(values)]
    sent = [stdin for stdin in world.stdins if stdin]
    assert len(sent) == HOSTS
    script = f"{sent[0].decode()}\nprintf '%s\\0' \"$MY_SECRET\""
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True, cwd=tmp_path)
    assert done.stdout.decode().split("\0")[0] == secret
    assert not (tmp_path / "stolen").exists()


def test_a_start_tells_the_hosts_their_limit() -> None:
    assert Start("a", "p/nodes/x", None).values == {"ATTEMPT": "a", "POD": "p/nodes/x", "LEFT_S": "", "LIMIT": ""}
    limited = Start("a", "p/nodes/x", Limit(90.4, "cloud.max_hours=2 is reached")).values
    assert (limited["LEFT_S"], limited["LIMIT"]) == ("90", "cloud.max_hours=2 is reached")


def test_a_secret_that_is_not_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_SECRET", raising=False)
    config = load(["experiment=v5e64", "storage.run_dir=gs://b/r", "cloud.secrets=[MY_SECRET]"])
    with pytest.raises(JobError, match=r"^cloud\.secrets: MY_SECRET"):
        send_secrets(config, REACH)
