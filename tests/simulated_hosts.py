"""Hosts of a simulated node and the job on them, as a timetable on simulated time: scripts in, their answers out."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from pod_job.formats.records import encode
from pod_job.run_folder.layout import status_file
from pod_job.run_folder.status import EndKind, HostStatus, Phase
from pod_job.storage.folder import Folder

EPOCH = 1_800_000_000.0
HOSTS, BATCHES = 2, 4
# Seconds after the start of the job.
PHASES = {Phase.checking: 0, Phase.arrived: 5, Phase.weights: 10, Phase.compiling: 20, Phase.extracting: 40}
BATCH_S, MERGING_S, DONE_S = 15, 110, 130
OTHERS_S = 6  # from the end of a host to that of the others


class Clock:
    """Simulated time: whoever sleeps moves it on."""

    def __init__(self) -> None:
        self.time = 0.0
        self.ticks: list[Callable[[], None]] = []

    def monotonic(self) -> float:
        return self.time

    def now(self) -> float:
        return EPOCH + self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        for tick in self.ticks:
            tick()

    def stamp(self) -> str:
        return datetime.fromtimestamp(self.now(), UTC).isoformat().replace("+00:00", "Z")


class Surroundings(Protocol):
    """World in which the hosts are: the run folder that they write, and what is known of their starts.

    Attributes:
        unprepared: host -> why it cannot be prepared.
        starts: values of every start of the job.
    """

    clock: Clock
    folder: Folder
    unprepared: dict[int, str]
    starts: list[dict[str, str]]

    def commit(self, number: int) -> None: ...

    def merge(self) -> None: ...


@dataclass
class SimHost:
    """A host of a node. `exit`: exit code of its job, None while it runs; `failure`: the end that it reports."""

    silent: bool = False
    exit: int | None = None
    failure: EndKind | None = None
    ended_at: float | None = None


class SimHosts:
    """Hosts of a node, as `Cloud` starts and stops them, and the job on them."""

    def __init__(self, world: Surroundings) -> None:
        self.world = world
        self.addresses = [f"10.0.0.{host}" for host in range(HOSTS)]
        self.hosts = [SimHost() for _ in range(HOSTS)]
        self.attempt = ""
        self.began = 0.0
        self.running = False
        self.up = False

    def start(self) -> None:
        self.up = True

    def stop(self) -> None:
        self.up = self.running = False

    def announce_preemption(self) -> None:
        pass

    def host_keys(self) -> list[str]:
        return []

    def end(self, host: int, code: int, failure: EndKind | None = None) -> None:
        """Ends a host's job; the others end because of it."""
        self.hosts[host].exit, self.hosts[host].failure = code, failure
        self.hosts[host].ended_at = self.world.clock.time

    def answer(self, script: str, values: dict[str, str]) -> str:
        lines = [self._answer(host, script, values) for host in range(HOSTS) if not self.hosts[host].silent]
        return "".join(f"pod-job {line}\n" for line in lines)

    def _answer(self, host: int, script: str, values: dict[str, str]) -> str:
        state = self.hosts[host]
        if script == "prepare":
            refusal = self.world.unprepared.get(host, "")
            return f"{host} FAILED {refusal}" if refusal else f"{host} READY reused"
        if script == "secrets":
            return f"{host} STORED"
        if script == "start":
            if self.running and state.exit is None and self.attempt != values["ATTEMPT"]:
                return f"{host} ALREADY_RUNNING {self.attempt}"
            if not self.running or self.attempt != values["ATTEMPT"]:
                self.attempt, self.began, self.running = values["ATTEMPT"], self.world.clock.time, True
                self.world.starts.append(values)
                for each in self.hosts:
                    each.exit = each.failure = each.ended_at = None
            return f"{host} LAUNCHED {self.attempt}"
        if script == "stop":
            word = "KILLED" if self.running and state.exit is None else "NOT_RUNNING"
            if host == HOSTS - 1:
                self.running = False
            return f"{host} {word} {self.attempt}"
        assert script == "probe", script
        if state.exit is None:
            return f"{host} RUNNING {self.attempt}" if self.running else f"{host} NONE"
        return f"{host} EXITED {self.attempt} {state.exit} {base64.b64encode(b'last line').decode()}"

    def tick(self) -> None:
        """Brings the run folder to where the job is now."""
        if not (self.up and self.running):
            return
        elapsed = self.world.clock.time - self.began
        done = all(host.exit is None and not host.silent for host in self.hosts)  # a silent machine computes nothing
        if done:
            for number in range(1, BATCHES + 1):
                if elapsed >= PHASES[Phase.extracting] + number * BATCH_S:
                    self.world.commit(number)
            if elapsed >= DONE_S:
                self.world.merge()
        first = next((host.ended_at for host in self.hosts if host.ended_at is not None), None)
        for host, state in enumerate(self.hosts):
            if first is not None and state.exit is None and self.world.clock.time > first + OTHERS_S:
                blamed = next(other for other, each in enumerate(self.hosts) if each.exit is not None)
                state.exit, state.failure, state.ended_at = 1, EndKind.lost_peer, self.world.clock.time
                self._report(host, Phase.failed, end=EndKind.lost_peer, error="peer lost", blamed_host=blamed)
            elif state.failure is not None and state.failure is not EndKind.lost_peer:
                self._report(host, Phase.failed, end=state.failure, error=f"error of host {host}")
            elif state.exit is None and not state.silent:
                self._report(host, self._phase(elapsed))
        if done and elapsed >= DONE_S:
            for state in self.hosts:
                state.exit = 0

    def _phase(self, elapsed: float) -> Phase:
        if elapsed >= DONE_S:
            return Phase.done
        if elapsed >= MERGING_S:
            return Phase.merging
        return [phase for phase, since in PHASES.items() if elapsed >= since][-1]

    def _report(self, host: int, phase: Phase, **more: Any) -> None:
        steps = int(self.world.clock.time - self.began)
        status = HostStatus(
            host=host, attempt=self.attempt, phase=phase, steps=steps, updated=self.world.clock.now(), **more
        )
        self.world.folder.replace(status_file(host), encode(status))
