"""`follow` judges the hosts' exit codes with the statuses that they left, not with those of before it asked them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sample_runs import finished_run

from launch.cause import Cause
from launch.cloud import observe
from launch.cloud.gcloud import Reach
from launch.cloud.observe import RunningJob, follow
from launch.cloud.outcome import End, NodeView, Outcome
from launch.cloud.remote import Answer
from pod_job.config.generate import Mode
from pod_job.planning.training import is_complete
from pod_job.run_folder.status import EndKind, HostStatus, Phase, write_status
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

ATTEMPT = "20250101T000000Z-abcdef"


def report(folder: Folder, host: int, end: EndKind | None = None, blamed: int | None = None) -> None:
    phase, error = (Phase.failed, f"error of host {host}") if end else (Phase.extracting, None)
    write_status(folder, HostStatus(host=host, attempt=ATTEMPT, phase=phase, error=error, end=end, blamed_host=blamed))


def followed(
    folder: Folder, codes: tuple[int, ...], meanwhile: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> Outcome:
    """Returns the outcome when `meanwhile` happens between the look at the statuses and the answers over ssh."""

    def probe(reach: Reach) -> dict[int, Answer]:
        meanwhile()
        return {host: Answer(host, "EXITED", f"{ATTEMPT} {code} eA==") for host, code in enumerate(codes)}

    monkeypatch.setattr(observe, "probe", probe)
    monkeypatch.setattr(observe, "node_view", lambda _: NodeView("READY"))
    monkeypatch.setattr(observe, "POLL_S", 0.01)
    monkeypatch.setattr(observe, "WORRIED_EVERY_S", -1.0)
    complete = lambda: is_complete(folder, Mode.prefill)  # noqa: E731
    job = RunningJob(Reach("extract-1", "us-west4-a", None, False, []), len(codes), folder, ATTEMPT, 4, complete)
    return follow(job, 600.0, lambda _: None, lambda _: None)


def test_a_peer_that_leaves_while_it_is_asked_is_not_to_blame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = open_folder(str(tmp_path))
    report(folder, 0)
    report(folder, 1, EndKind.bad_machine)
    leave = lambda: report(folder, 0, EndKind.lost_peer, blamed=1)  # noqa: E731
    outcome = followed(folder, (1, 1), leave, monkeypatch)
    assert (outcome.end, outcome.cause) == (End.lost, Cause(1, "error of host 1", EndKind.bad_machine))


@pytest.mark.parametrize(("kind", "code"), [(EndKind.bug, 1), (EndKind.user_error, 2)])
def test_an_error_reported_while_the_hosts_are_asked_ends_the_job(
    kind: EndKind, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_folder(str(tmp_path))
    report(folder, 0, EndKind.lost_peer, blamed=1)
    report(folder, 1)
    outcome = followed(folder, (1, code), lambda: report(folder, 1, kind), monkeypatch)
    assert (outcome.end, outcome.cause) == (End.failed, Cause(1, "error of host 1", kind))


def test_a_host_that_died_at_its_exit_does_not_hold_up_a_run_that_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_folder(str(tmp_path))
    for host, phase in enumerate((Phase.merging, Phase.done)):
        write_status(folder, HostStatus(host=host, attempt=ATTEMPT, phase=phase))
    asked: list[int] = []

    def merged() -> None:
        if not asked:
            finished_run(folder, [3])
        asked.append(1)

    monkeypatch.setattr(observe, "SILENT_S", -1.0)
    outcome = followed(folder, (139, 0), merged, monkeypatch)
    assert (outcome.end, len(asked)) == (End.done, 1)
