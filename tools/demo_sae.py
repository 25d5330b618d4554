"""Trains an SAE on this machine: a real model, real text, live metrics, and a page of its latents; `make demo-sae`.

Every call makes a new run folder under runs/. The model and the text are made once. Arguments are overrides:
`make demo-sae ARGS=train.tokens=30000` takes a tenth of the time.
"""

import os
import sys
from pathlib import Path

from rich.console import Console

from launch.host_commands import new_attempt
from launch.local_job import run_pod
from launch.view import summary
from launch.view.facts import show_facts
from pod_job.commands import evaluate, report
from pod_job.config.load import load
from pod_job.config.schema import JobConfig
from tools.demo import status_of
from tools.demo_model import write_demo_model
from tools.demo_text import REQUIREMENT, write_demo_text

EXPERIMENT = "experiment=sae-laptop"
ON = ["model=smollm2_135m", "tasks=demo_text", "tasks.limit=null"]
"""The experiment's model, and the documents from which it takes the first, as other commands take them."""
HELD_OUT_TOKENS, CONTEXTS = 4096, 5


def main() -> int:
    """Runs the command line; its exit statuses are those of `pod-job run`."""
    screen = Console()
    return status_of(lambda: demo(screen, sys.argv[1:]))


def demo(screen: Console, given: list[str]) -> int:
    """Makes model and text, trains the SAE of the experiment and makes its page; returns the exit status.

    `given`: overrides of the experiment.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # of the evaluation, in this process; hosts have their own
    run_dir = f"runs/demo-sae-{new_attempt()}"
    overrides = [EXPERIMENT, f"storage.run_dir={run_dir}", *given]
    config = load(overrides)
    screen.rule("model and text")
    model, text = write_demo_model(Path(config.model.path)), write_demo_text(Path(config.tasks.paths[0]))
    show_facts([("model", f"SmolLM2-135M-Instruct in {model}"), ("text", f"{text}, of {REQUIREMENT}")], screen)
    screen.rule("train")
    summary.show(run_pod(config, overrides, screen), screen)
    screen.rule("evaluate, on documents that were not trained on")
    if status := evaluate.main([*evaluation(config), "--tokens", str(HELD_OUT_TOKENS), "--contexts", str(CONTEXTS)]):
        return status
    screen.rule("page")
    if status := report.main([run_dir]):
        return status
    show_next(config, screen)
    return 0


def evaluation(config: JobConfig) -> list[str]:
    """Returns the arguments of `pod-job evaluate` for documents after those of the training."""
    return [config.storage.run_dir, *ON, "--skip", str(config.tasks.limit)]


def show_next(config: JobConfig, screen: Console) -> None:
    """Shows commands that go on from here."""
    run_dir = config.storage.run_dir
    screen.rule("next")
    pod_job = os.path.relpath(Path(sys.executable).parent / "pod-job")
    next_commands = [
        ("more documents", f"{pod_job} evaluate {' '.join(evaluation(config))} --tokens 65536"),
        ("more latents", f"{pod_job} report {run_dir} --latents 2000"),
        (
            "train longer",
            f"{pod_job} run {EXPERIMENT} train.tokens=1000000 train.epochs=4 storage.run_dir={run_dir}-longer",
        ),
    ]
    show_facts(next_commands, screen)


if __name__ == "__main__":
    sys.exit(main())
