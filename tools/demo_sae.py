"""Trains an SAE on this machine: a real model, real text, live metrics, and its page; `make demo-sae`.

Every call makes a new run folder under runs/. The model and the text are made once.
"""

import sys
from pathlib import Path

from rich.console import Console

from launch.host_commands import new_attempt
from launch.local import stopped_by_signals
from launch.local_job import HostFailed, report_failure, run_pod
from launch.view import summary
from launch.view.facts import show_facts
from pod_job.config.load import load
from pod_job.errors import JobError, Stopped
from tools.demo_model import write_demo_model
from tools.demo_text import REQUIREMENT, write_demo_text

EXPERIMENT = "experiment=sae-laptop"


def main() -> int:
    """Runs the command line; its exit statuses are those of `pod-job run`."""
    screen = Console()
    try:
        with stopped_by_signals():
            demo(screen)
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except HostFailed as failure:
        report_failure(failure, Console(stderr=True))
        return 2 if failure.cause.user_error else 1
    except Stopped as stopped:
        return 128 + stopped.signum
    return 0


def demo(screen: Console) -> None:
    """Makes model and text, and trains the SAE of the experiment."""
    run_dir = f"runs/demo-sae-{new_attempt()}"
    overrides = [EXPERIMENT, f"storage.run_dir={run_dir}"]
    config = load(overrides)
    screen.rule("model and text")
    model, text = write_demo_model(Path(config.model.path)), write_demo_text(Path(config.tasks.paths[0]))
    show_facts([("model", f"SmolLM2-135M-Instruct in {model}"), ("text", f"{text}, of {REQUIREMENT}")], screen)
    screen.rule("train")
    summary.show(run_pod(config, overrides, screen), screen)


if __name__ == "__main__":
    sys.exit(main())
