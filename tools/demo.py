"""Runs the whole job on this machine: a model, a bucket, a pod of four processes, and its dataset; `make demo`.

Every call makes a new run folder in the same bucket under runs/. The model is made once.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from launch.host_commands import new_attempt
from launch.local import stopped_by_signals
from launch.local_job import HostFailed, report_failure, run_pod
from launch.view import summary
from launch.view.facts import show_facts
from pod_job import environment
from pod_job.config.load import load
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError, Stopped
from pod_job.interop.pickle_export import export_pickles
from pod_job.prompts.tokenizer import load_tokenizer
from pod_job.reading.dataset import ActivationDataset
from tools.bucket import bucket_available, bucket_server
from tools.demo_model import write_demo_model

RUNS = Path("runs")
BUCKET = "demo-activations"
LAYER = 12
ROWS_SHOWN = 8

# The loading snippet of the format's documentation, unchanged; it runs in the folder that holds `activations/`.
SNIPPET = """\
import pickle
import numpy as np

# Load a batch
with open('activations/layer_12_batch_000001.pkl', 'rb') as f:
    data = pickle.load(f)

layer = data['layer']
activations = [item['activation'] for item in data['activations']]
activations_array = np.stack(activations)  # [n_samples, hidden_dim]

print(f"Layer {layer}: {activations_array.shape}")
"""


def main() -> int:
    """Runs the command line; its exit statuses are those of `pod-job run`."""
    screen = Console()
    return status_of(lambda: demo(screen))


def status_of(demo: Callable[[], int | None]) -> int:
    """Returns the exit status of a demo: what it returns, or that of the error, signal or failed host that ended it."""
    try:
        with stopped_by_signals():
            return demo() or 0
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except HostFailed as failure:
        report_failure(failure, Console(stderr=True))
        return 2 if failure.cause.user_error else 1
    except Stopped as stopped:
        return 128 + stopped.signum


def demo(screen: Console) -> None:
    """Makes the model, runs the job, and shows its dataset and the exported pickle files."""
    name = f"demo-{new_attempt()}"
    screen.rule("model")
    model_dir = write_demo_model(Path(load(["experiment=demo"]).model.path))
    show_facts([("model", "SmolLM2-135M-Instruct"), ("files", str(model_dir))], screen)

    with bucket(name, screen) as run_dir:
        screen.rule("run")
        overrides = ["experiment=demo", f"storage.run_dir={run_dir}"]
        config = load(overrides)
        summary.show(run_pod(config, overrides, screen), screen)

        screen.rule(f"ActivationDataset(run_dir, layer={LAYER})")
        show_dataset(config, screen)

        screen.rule("the run as pickle files")
        exported = RUNS / name
        export_pickles(run_dir, exported / "activations")
        show_pickles(exported, screen)
    show_next(files_of(run_dir), screen)


def files_of(run_dir: str) -> str:
    """Returns the folder on this machine that has the run's files, those of the emulator's bucket too."""
    return run_dir.replace(f"gs://{BUCKET}", str(RUNS / "buckets" / BUCKET))


def show_next(folder: str, screen: Console) -> None:
    """Shows commands that go on from here."""
    screen.rule("next")
    pod_job = os.path.relpath(Path(sys.executable).parent / "pod-job")
    next_commands = [
        ("look at it", f"{pod_job} report {folder} --out page.html"),
        ("read every byte", f"{pod_job} verify {folder}"),
        ("your own text", f"{pod_job} run experiment=laptop tasks.path=my_texts.jsonl storage.run_dir={RUNS}/mine"),
    ]
    show_facts(next_commands, screen)


@contextmanager
def bucket(name: str, screen: Console) -> Iterator[str]:
    """Yields the run folder: in a bucket of the emulator where that is installed, otherwise a local folder."""
    screen.rule("bucket")
    if reason := bucket_available():
        screen.print(f"no bucket emulator: {reason}; the run folder is local", highlight=False)
        yield str(RUNS / name / "run")
        return
    root = RUNS / "buckets"
    with bucket_server(root, BUCKET) as endpoint:
        # The hosts inherit it.
        os.environ[environment.STORAGE_EMULATOR] = endpoint
        again = f"python -m tools.bucket {root} --bucket {BUCKET}"
        show_facts([("bucket", f"gs://{BUCKET}"), ("files", str(root / BUCKET)), ("serve again", again)], screen)
        yield f"gs://{BUCKET}/{name}"


def show_dataset(config: JobConfig, screen: Console) -> None:
    """Shows the shape, the statistics and a few rows of one tap, each with its token."""
    dataset = ActivationDataset(config.storage.run_dir, layer=LAYER)
    tokenizer = load_tokenizer(Path(config.model.path))
    chosen = np.linspace(0, len(dataset) - 1, ROWS_SHOWN).astype(int)
    vectors, origins = dataset[chosen].astype(np.float32), dataset.rows(chosen)
    mean_norm = f"{dataset.statistics['mean_norm']:.1f}"
    show_facts([("shape", str(dataset.shape)), ("dtype", str(dataset.dtype)), ("mean norm", mean_norm)], screen)
    table = Table("row", "task_id", "sample_idx", "position", "token", "norm")
    for i, row in enumerate(chosen):
        token = tokenizer.decode([int(origins["token_id"][i])])
        origin = [str(origins[column][i]) for column in ("task_id", "sample_idx", "position")]
        table.add_row(str(row), *origin, repr(token), f"{np.linalg.norm(vectors[i]):.1f}")
    screen.print(table, highlight=False, markup=False)


def show_pickles(exported: Path, screen: Console) -> None:
    """Loads one exported batch with the documented snippet, in a process without this project."""
    files = sorted((exported / "activations").glob("*.pkl"))
    size = sum(file.stat().st_size for file in files)
    show_facts([("where", str(exported / "activations")), ("files", f"{len(files)}, {size:,} bytes")], screen)
    shown = subprocess.run(
        [sys.executable, "-I", "-c", SNIPPET], cwd=exported, capture_output=True, text=True, check=True
    )
    show_facts([("loaded", shown.stdout.rstrip())], screen)


if __name__ == "__main__":
    sys.exit(main())
