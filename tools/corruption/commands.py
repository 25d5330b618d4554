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
    HALF_IMPORTED,
    HALFWAY,
    MODEL,
    PICKLES,
    SHARDS,
    Content,
    file_content,
    job_words,
    pickle_content,
    run_content,
    run_job,
)

HANG_S, HANG_OF_JOB_S, WAITED_S = 20, 120, 240
"""Seconds of CPU time, of a job, and by the clock, after which a command hangs: others may use the machine, too."""


@dataclass(frozen=True)
class Command:
    """A command and the words behind it; `{run}` is the spoilt folder, `{sound}` the same one before, `{out}` new.

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


READ, RUN = "ActivationDataset", "run"
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
    Command("status", "{run}", share=0.5),
    Command("status", "{run} --json", share=0.5),
    Command("logs", "{run}", share=0.5),
    Command(READ, "{run}", share=2),
)
"""READ stands for a trainer that reads the run, RUN for the job that is started again."""
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
    """Runs the command in this process. Raises what it raises."""
    words = [word.format(run=folder, sound=sound, out=out) for word in command.words.split()]
    if command.name == RUN:
        words = job_words(sound.parent / MODEL, folder)
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            status = main_of(command.name)(words)
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
    return Ended(status, stdout.getvalue(), stderr.getvalue())


def main_of(name: str) -> Callable[[Sequence[str]], int]:
    """Returns the command's main function."""
    if name == RUN:
        return run_job
    if name == READ:
        return lambda words: exit_status(lambda: (run_content(Path(words[0])), DONE)[1])
    return importlib.import_module(MODULES.get(name, f"pod_job.commands.{name}")).COMMAND.main
