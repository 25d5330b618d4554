"""Several slices in the cloud, each a pod that is created, followed and replaced by itself, on one run folder.

Slices begin with different zones, so that these are asked at the same time; a slice that is replaced begins with a zone
that has given a pod last. What one start too many costs is paid from budgets that all slices share.
"""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from launch import clock
from launch.cloud.budgets import Budgets, Step, budgets_of
from launch.cloud.calls import CREATE_TIMEOUT_S
from launch.cloud.capacity import NoCapacity, NotWanted, bring_up
from launch.cloud.job import limit_of, start
from launch.cloud.observe import POLL_S, RunningJob, Statuses, follow
from launch.cloud.outcome import End, Outcome
from launch.cloud.pods import Pod
from launch.cloud.watching import Watching
from launch.slices import SliceJob, slice_jobs
from launch.view import progress
from launch.view.timed_log import Log
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.planning.training import JobInputs
from pod_job.run_folder.layout import committed
from pod_job.terminal import SafeConsole

LATE_S = CREATE_TIMEOUT_S + 60.0
"""From the end of the run until slices that do not end are left alone; calls of gcloud have their own deadlines."""


@dataclass(frozen=True)
class SliceEnd:
    """End of a slice: its last start, if there was one, and how that ended; or the error that ended it.

    Both are None of a slice that nobody wanted any more.
    """

    job: RunningJob | None = None
    outcome: Outcome | None = None
    error: BaseException | None = None


def end_of_run(ends: Mapping[str, SliceEnd], slices: int) -> SliceEnd | None:
    """Returns the end of a slice that is the end of the run, and None while slices are left that may finish it.

    A slice that is done has seen the run merged; a bug or a wrong request would meet the others too. A slice that is
    lost for good, or that reached the limit, leaves the rest to the others.
    """
    done = [end for end in ends.values() if end.outcome is not None and end.outcome.end is End.done]
    wrong = [
        end
        for end in ends.values()
        if end.error is not None or (end.outcome is not None and end.outcome.end is End.failed)
    ]
    if done or wrong:
        return (done or wrong)[0]
    return list(ends.values())[-1] if len(ends) == slices else None


def zone_order(zones: Sequence[str], number: int, answers: Mapping[str, bool]) -> list[str]:
    """Returns the zones as slice `number` tries them.

    Args:
        answers: zone -> whether it gave a pod when it was last asked, and has not taken it away since.
    """
    start = number % max(1, len(zones))
    turned = [*zones[start:], *zones[:start]]
    return sorted(turned, key=lambda zone: {True: 0, None: 1, False: 2}[answers.get(zone)])


def start_slices(config: JobConfig, overrides: Sequence[str], inputs: JobInputs, log: Log) -> list[RunningJob]:
    """Starts the job on all slices for which there is a pod, and returns the starts.

    Raises:
        JobError: none could be started, or a request is wrong.
    """
    fleet = Fleet(config, overrides, inputs, log, clock.monotonic())
    with ThreadPoolExecutor(len(fleet.watchings)) as pool:
        starts = [pool.submit(one.start_once) for one in fleet.watchings]
    jobs = [start.result() for start in starts if not isinstance(start.exception(), NoCapacity)]
    return jobs or [starts[0].result()]


class Fleet:
    """Watches all slices of a run at the same time, each in a thread of its own."""

    def __init__(self, config: JobConfig, overrides: Sequence[str], inputs: JobInputs, log: Log, began: float) -> None:
        self.config, self.overrides, self.inputs, self.log, self.began = config, overrides, inputs, log, began
        self.lock = threading.Lock()
        self.budgets = budgets_of(config.cloud)
        self.answers: dict[str, bool] = {}
        self.over = threading.Event()
        self.ends: dict[str, SliceEnd] = {}
        slices = slice_jobs(config, overrides)
        self.statuses: dict[str, Statuses] = {job.name: [None] * config.pod.hosts for job in slices}
        self.watchings = [SliceWatching(job, self) for job in slices]

    def run_to_the_end(self) -> tuple[RunningJob | None, Outcome]:
        """Returns a start of a slice that ended with the run, and how.

        Raises:
            JobError: a slice's request is wrong.
        """
        before = len(committed(self.inputs.folder))
        threads = [threading.Thread(target=self._watch, args=[one], daemon=True) for one in self.watchings]
        try:
            with progress.Screen(SafeConsole(stderr=True), self.began) as screen:
                for thread in threads:
                    thread.start()
                while (end := end_of_run(dict(self.ends), len(threads))) is None:
                    statuses = [status for of_slice in dict(self.statuses).values() for status in of_slice]
                    past = before + sum(one.past for one in self.watchings)
                    screen.show(progress.slice_bars(statuses, self.inputs.total_batches, past))
                    clock.sleep(POLL_S)
        finally:
            self.over.set()
        deadline = clock.monotonic() + LATE_S
        while any(thread.is_alive() for thread in threads) and clock.monotonic() < deadline:
            clock.sleep(POLL_S)
        if end.error is not None:
            raise end.error
        assert end.outcome is not None
        return end.job, end.outcome

    def _watch(self, watching: "SliceWatching") -> None:
        end = SliceEnd()
        try:
            end = SliceEnd(*watching.run_to_the_end())
            watching.delete_pods()
        except NotWanted:
            pass
        except JobError as error:
            end = replace(end, error=None if end.outcome is not None else error)
            watching.log(str(error))
        except BaseException as error:
            end = SliceEnd(error=error)
        self.ends[watching.job.name] = end


class SliceWatching(Watching):
    """Watches one slice of a fleet."""

    def __init__(self, job: SliceJob, fleet: Fleet) -> None:
        def log(text: str) -> None:
            fleet.log(f"slice {job.name}: {text}")

        super().__init__(job.config, job.overrides, fleet.inputs, log, fleet.began)
        self.job, self.fleet = job, fleet
        self.zone = ""
        self.past = 0
        """Batches of its earlier starts."""

    def bring_up(self) -> Pod:
        """Returns a pod for the slice, whenever there is one.

        Raises:
            NotWanted: the run has ended.
        """
        while True:
            try:
                return self.bring_up_once()
            except NoCapacity as error:
                self.log(f"{error}; asking again while the others go on")

    def bring_up_once(self) -> Pod:
        """Returns a pod for the slice. NoCapacity, NotWanted, JobError as `capacity.bring_up`."""
        zones = zone_order(self.config.cloud.zones, self.job.number, dict(self.fleet.answers))
        config = replace(self.config, cloud=replace(self.config.cloud, zones=zones))
        try:
            pod = bring_up(config, self.log, lambda: not self.fleet.over.is_set())
        except NoCapacity as error:
            self.fleet.answers |= dict.fromkeys(error.zones, False)
            raise
        self.zone = pod.zone
        self.fleet.answers[pod.zone] = True
        return pod

    def run_once(self, pod: Pod, before: Outcome | None) -> tuple[RunningJob | None, Outcome | None]:
        """Starts the job on a pod, as that of one slice. NotWanted: the run has ended."""
        if self.fleet.over.is_set():
            raise NotWanted
        return super().run_once(pod, before)

    def start_once(self) -> RunningJob:
        """Starts the job on a pod for the slice. NoCapacity, JobError as `bring_up_once`; NoAnswer, Refused."""
        return start(self.bring_up_once(), self.config, self.overrides, self.inputs, self.log)

    def follow(self, job: RunningJob) -> Outcome:
        """Returns how a start ended, once it has; the fleet shows its progress."""

        def show(statuses: Statuses) -> None:
            self.fleet.statuses[self.job.name] = statuses

        outcome = follow(job, self.config.cloud.stall_s, show, self.log)
        if outcome.end is not End.done:
            self.past += sum(status.batches for status in self.fleet.statuses[self.job.name] if status is not None)
            show([None] * self.config.pod.hosts)
        return outcome

    def limit_reached(self) -> bool:
        """Returns whether the run as a whole has cost what it may."""
        limit = limit_of(self.config, self.inputs.folder, None)
        return limit is None or limit.reached

    def pay(self, outcome: Outcome) -> tuple[Budgets, Step]:
        """Returns the budgets of all slices after this outcome, and the next step of this one."""
        if outcome.end is End.limit and not self.limit_reached():  # fewer slices than planned have run meanwhile
            return self.fleet.budgets, Step.new_pod
        with self.fleet.lock:
            if outcome.end is End.preempted:
                self.fleet.answers[self.zone] = False
            self.fleet.budgets, step = self.fleet.budgets.after(outcome)
            return self.fleet.budgets, step
