"""A job on pods that come and go: created, started and followed, again and again, until it has ended for good."""

from collections.abc import Sequence

from launch.cloud.budgets import Budgets, Step, budgets_of
from launch.cloud.calls import PATIENCE_S
from launch.cloud.capacity import bring_up, take_down
from launch.cloud.job import describe, kill, limit_of, settled, show_outcome, start, until_end
from launch.cloud.job_pods import pods_of
from launch.cloud.observe import RunningJob, node_view
from launch.cloud.outcome import End, Outcome, not_started
from launch.cloud.own_hosts import wait_for_hosts
from launch.cloud.pods import Pod
from launch.cloud.remote import NoAnswer, Refused
from launch.cloud.request import reach
from launch.view.timed_log import Log
from pod_job.config.schema import JobConfig
from pod_job.planning.training import JobInputs
from pod_job.terminal import SafeConsole


class Watching:
    """Watches the job of one pod; that of a slice among others overrides how it gets a pod, is shown and paid for."""

    def __init__(self, config: JobConfig, overrides: Sequence[str], inputs: JobInputs, log: Log, began: float) -> None:
        """`overrides`: what the hosts get; `began`: moment of clock.monotonic() from which seconds are shown."""
        self.config, self.overrides, self.inputs, self.log, self.began = config, overrides, inputs, log, began
        self.budgets = budgets_of(config.cloud)

    def bring_up(self) -> Pod:
        """Returns the pod, READY."""
        return bring_up(self.config, self.log)

    def follow(self, job: RunningJob) -> Outcome:
        """Returns how a start ended, once it has."""
        return until_end(self.config, job, self.log, self.began)

    def pay(self, outcome: Outcome) -> tuple[Budgets, Step]:
        """Returns the budgets after this outcome, and the next step."""
        self.budgets, step = self.budgets.after(outcome)
        return self.budgets, step

    def run_to_the_end(self) -> tuple[RunningJob | None, Outcome]:
        """Returns the last start, None where no job was started, and how it ended."""
        outcome = None
        while True:
            limit = limit_of(self.config, self.inputs.folder, None)
            if limit is not None and limit.reached:
                return None, Outcome(End.limit, limit=limit.reason)
            pod = self.bring_up()
            job, outcome = self.run_once(pod, outcome)
            if job is not None and outcome is None:
                outcome = self.follow(job)
            assert outcome is not None
            outcome = settled(self.inputs, outcome, self.log)
            budgets, step = self.pay(outcome)
            if outcome.end is not End.done:
                self.log("; ".join(filter(None, [describe(outcome), budgets.line(outcome)])))
            if step is Step.end:
                return job, outcome
            if outcome.end is End.lost:
                show_outcome(outcome, SafeConsole(stderr=True))
            self.prepare_for(step, pod)

    def prepare_for(self, step: Step, pod: Pod) -> None:
        """Ends what is left of a start on the pod that stays, or deletes the pod."""
        own = self.config.pod.hosts_file is not None
        ends_job = step is Step.same_pod or (own and step is Step.new_pod)
        # A host where the job cannot be ended is lost for the next start too.
        unended = ends_job and not kill(reach(self.config, pod.zone), self.config, self.log)
        if own and (unended or step is not Step.same_pod):
            wait_for_hosts(self.log)
        elif not own and (unended or step is Step.new_pod):
            self.delete_pods()

    def run_once(self, pod: Pod, before: Outcome | None) -> tuple[RunningJob | None, Outcome | None]:
        """Starts the job on a pod; returns it, or why hosts could not start it.

        Args:
            before: how the start before it ended.
        """
        try:
            return start(pod, self.config, self.overrides, self.inputs, self.log), None
        except (NoAnswer, Refused) as error:
            return None, not_started(error, node_view(reach(self.config, pod.zone), PATIENCE_S), before)

    def delete_pods(self) -> None:
        """Deletes the pods of the job, as a rule one."""
        take_down(pods_of(self.config), self.config, self.log)
