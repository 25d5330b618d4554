"""All verbs of `pod-job`. To add one, write its module, which defines `COMMAND`, and add a line here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """A line of `pod-job --help`, and the module that is imported once the verb is used."""

    purpose: str
    module: str


GROUPS = {
    "a job, from its configuration": {
        "plan": Verb("check the inputs; show mesh, hosts, batches, memory, time and cost", "launch.verbs.plan"),
        "doctor": Verb("check gcloud, account, API, bucket, inputs and code, with the fix", "launch.verbs.doctor"),
        "up": Verb("create the pod in the first zone that has one; wait until it is ready", "launch.verbs.up"),
        "run": Verb("start the job, or what is missing of it, creating the pod if need be", "launch.verbs.run"),
        "watch": Verb("run to the end through preemptions, then delete the pod", "launch.verbs.watch"),
        "manifest": Verb(
            "write the job for JobSet on GKE or SkyPilot, its watching for systemd", "launch.verbs.manifest"
        ),
        "preflight": Verb("memory, time and cost on a TPU pod, by its compiler", "pod_job.commands.preflight"),
    },
    "a job that was started, by its run folder": {
        "status": Verb("run, pod and hosts: phase, batches, speed, time left, cost, errors", "launch.verbs.status"),
        "logs": Verb("the hosts' logs in the order of time; also after the pod is gone", "launch.verbs.logs"),
        "stop": Verb("ask the job to end after the batches it holds; the pod stays", "launch.verbs.stop"),
        "down": Verb("delete the pod in every zone where it is", "launch.verbs.down"),
        "gc": Verb("list the project's pods in all zones; delete those that are dead", "launch.verbs.gc"),
    },
    "a run": {
        "inspect": Verb("show a run, a batch, a tap, or a row with the text around it", "pod_job.commands.inspect"),
        "verify": Verb("read every file and report what is wrong", "pod_job.commands.verify"),
        "report": Verb("one HTML page: norms, outliers, spectra, speed, cost", "pod_job.commands.report"),
        "evaluate": Verb("measure SAEs on held-out documents, spliced into the model", "pod_job.commands.evaluate"),
        "diff": Verb("what two runs differ in, key by key", "pod_job.commands.diff"),
        "merge": Verb("write metadata.json; --compact joins small files", "pod_job.commands.merge"),
        "shuffle": Verb("write the rows in random order as another run", "pod_job.commands.shuffle"),
    },
    "other formats": {
        "export": Verb("the pickle files of the extraction document", "pod_job.commands.export"),
        "export-sae-lens": Verb("a tap as cached activations for SAELens", "pod_job.commands.export_sae_lens"),
        "publish": Verb("activations or SAEs on the Hugging Face hub, with a card", "pod_job.commands.publish"),
        "import": Verb("a run made of pickle files", "pod_job.commands.import_pickles"),
        "convert": Verb("a model's weights as one orbax checkpoint", "pod_job.commands.convert"),
    },
}
"""Title of a group -> its verbs, in the order of their use."""
VERBS = {name: verb for group in GROUPS.values() for name, verb in group.items()}
