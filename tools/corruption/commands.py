"""The commands that run on spoilt folders, in this process."""

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pod_job.commands.command_line import DONE, exit_status
from tools.corruption.corpus import (
    EXTRACTED,
    HALF_IMPORTED,
    HALFWAY,
    MODEL,
    PICKLES,
    SHARDS,
    TRAINED,
    TRAINING,
    Content,
    file_content,
    job_words,
    pickle_content,
    run_content,
    run_job,
    sae_content,
    training_words,
)

MOST_SENT = 1 << 28
STOPPED = ": no further batch is begun"
"""In the log of a job that is asked to stop."""
HANG_S, HANG_OF_JOB_S, WAITED_S = 20, 120, 240
"""Seconds of CPU time, of a job, and by the clock, after which a command hangs: others may use the machine, too."""


@dataclass(frozen=True)
class Command:
    """A command and the words behind it.

    Of these `{run}` is the spoilt folder, `{sound}` the same one before, `{out}` new, `{model}` the job's model.

    Attributes:
        on: the folder that it runs on, "" for every run.
        made: reads what it has made in `{out}`.
        writes: beginnings of the names of files in the run folder that it may change.
        resumes: goes on with what lies in the folder.
        most_s: seconds of CPU time after which it hangs.
        share: how often it runs, beside others.
    """

    name: str
    words: str
    on: str = ""
    made: Callable[[Path], Content] | None = None
    writes: tuple[str, ...] = ()
    resumes: bool = False
    most_s: int = HANG_S
    share: float = 1.0

    @property
    def slow(self) -> bool:
        """Returns whether it compiles a trainer or an evaluation, which takes seconds."""
        return self.name in (TRAIN, TRAIN_ON, "evaluate")


QUICK = "quick"
"""In place of a command's name: all but the slow ones."""
READ, RUN, TRAIN, TRAIN_ON = "ActivationDataset", "run", "train", "train on a run"
EVALUATE = "{run} model.path={model} tasks.path={model}/tasks.jsonl model.dtype=float32 --tokens 64 --json"
COMMANDS = (
    Command("inspect", "{run}", share=0.5),
    Command("inspect", "{run} --batch 1", share=0.5),
    Command("inspect", "{run} --row 3 --json"),
    Command("inspect", "{run} --tap layer_1", share=0.5),
    Command("report", "{run} --out {out}/page.html --json", share=0.3),
    Command("verify", "{run}", writes=("verify/",), share=2),
    Command("verify", "{run} --json", writes=("verify/",), share=0.5),
    Command("merge", "{run}", writes=("activations/metadata.json",), share=1.5),
    Command("merge", "{run} --compact", writes=("activations/", "compaction/")),
    Command("shuffle", "{run} {out}", made=run_content),
    Command("diff", "{run} {sound}", share=0.5),
    Command("diff", "{sound} {run}", share=0.5),
    Command("export", "{run} {out}", made=pickle_content),
    Command("export-sae-lens", "{run} {out} --layer 1 --context-size 4 --hook-name x", made=file_content, share=0.3),
    Command("import", "{run} {out}", on=PICKLES, made=run_content, share=2),
    Command("import", "{run} {out}", on=SHARDS, made=run_content),
    Command("import", f"{{sound}}/../{PICKLES} {{run}}", on=HALF_IMPORTED, writes=("",), resumes=True),
    Command(RUN, "{run}", on=HALFWAY, writes=("",), resumes=True, most_s=HANG_OF_JOB_S, share=0.5),
    Command("publish", "{run} me/run", share=0.5),
    Command("publish", "{run} me/saes", on=TRAINED, share=0.5),
    Command("evaluate", EVALUATE, on=TRAINED, writes=("evaluation/", "saes/"), most_s=HANG_OF_JOB_S, share=0.15),
    Command("inspect", "{run}", on=TRAINED, share=0.3),
    Command("report", "{run} --out {out}/page.html", on=TRAINED, share=0.3),
    Command("status", "{run}", on=TRAINED, share=0.3),
    Command(TRAIN, "{run}", on=TRAINING, writes=("",), resumes=True, most_s=HANG_OF_JOB_S, share=0.15),
    Command(TRAIN_ON, "{run}", on=EXTRACTED, made=sae_content, most_s=HANG_OF_JOB_S, share=0.15),
    Command("status", "{run}", share=0.5),
    Command("status", "{run} --json", share=0.5),
    Command("logs", "{run}", share=0.5),
    Command(READ, "{run}", share=2),
)
"""READ stands for a trainer that reads the run, RUN and TRAIN for jobs that go on, TRAIN_ON for a new one."""
MODULES = {
    "status": "launch.verbs.status",
    "logs": "launch.verbs.logs",
    "import": "pod_job.commands.import_pickles",
    "export-sae-lens": "pod_job.commands.export_sae_lens",
}
ANSWERS_NO = ("verify", "diff")
"""Commands whose status 1 is an answer."""


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


def run(command: Command, folder: Path, sound: Path, out: Path) -> Ended:
    """Runs the command in this process. Raises what it raises.

    Raises:
        KeyboardInterrupt: it is a job that was asked to stop, by SIGTERM to this process, and did so with status 0.
    """
    places = {"run": folder, "sound": sound, "out": out, "model": sound.parent / MODEL}
    words = [word.format(**places) for word in command.words.split()]
    if command.name == RUN:
        words = job_words(sound.parent / MODEL, folder)
    if command.name in (TRAIN, TRAIN_ON):
        words = (
            training_words(sound.parent / EXTRACTED, folder) if command.name == TRAIN else training_words(folder, out)
        )
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            status = publish(words, out) if command.name == "publish" else main_of(command.name)(words)
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
    if STOPPED in stdout.getvalue():
        raise KeyboardInterrupt(stdout.getvalue()[-200:])
    return Ended(status, stdout.getvalue(), stderr.getvalue())


def main_of(name: str) -> Callable[[Sequence[str]], int]:
    """Returns the command's main function."""
    if name in (RUN, TRAIN, TRAIN_ON):
        return run_job
    if name == READ:
        return lambda words: exit_status(lambda: (run_content(Path(words[0])), DONE)[1])
    return importlib.import_module(MODULES.get(name, f"pod_job.commands.{name}")).COMMAND.main


def publish(words: Sequence[str], out: Path) -> int:
    """Runs `publish --dry-run`; puts what it would send into `out`, without files of gigabytes."""
    from pod_job.interop.publish import operation, plan_publication, size_of  # jax, whose platform is not set before

    status = main_of("publish")([*words, "--dry-run"])

    def send() -> int:
        publication = plan_publication(*words)
        for number, name in enumerate(publication.names):
            if size_of(publication.folder, name) < MOST_SENT:
                out.mkdir(exist_ok=True)
                with operation(publication.folder, name).as_file() as file:
                    (out / str(number)).write_bytes(file.read())
        return DONE

    return exit_status(send) if status == DONE else status
