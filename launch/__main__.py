"""The command line of the launcher: `python -m launch VERB OVERRIDES...`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launch.local import Stopped
from launch.plan import plan
from launch.run import run
from pod_job.errors import JobError


@dataclass(frozen=True)
class Verb:
    """What a verb is for, and the function that does it: `act(overrides, dry_run=..., as_json=...)` -> exit status."""

    purpose: str
    act: Callable[..., int]


VERBS = {
    "plan": Verb("check the inputs; show mesh, hosts, batches and the command of each host; start nothing", plan),
    "run": Verb("run the job on a local pod and show its progress; run again, it finishes what is missing", run),
}

EXAMPLES = """\
examples:
  python -m launch plan experiment=demo
  python -m launch plan experiment=v5e64 storage.run_dir=gs://my-bucket/qwen --json
  python -m launch run experiment=demo storage.run_dir=runs/first tasks.limit=8
  python -m launch run experiment=demo --dry-run

Every field of the configuration can be set as key=value; conf/ has the groups to choose from (mesh=4x2, pod=local_4x2).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a failure that is a bug or a lost host, 2 something the user can mend, 128+n signal n."""
    parser = make_parser()
    options = parser.parse_intermixed_args(argv)
    if options.verb is None:
        parser.print_help()
        return 2
    try:
        if options.verb not in VERBS:
            raise JobError(f"{options.verb} is not a verb; use one of: {', '.join(VERBS)}")
        return VERBS[options.verb].act(options.overrides, dry_run=options.dry_run, as_json=options.json)
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"stopped by {stopped}; the same command again finishes what is missing", file=sys.stderr)
        return 128 + stopped.signum


def make_parser() -> argparse.ArgumentParser:
    verbs = "\n".join(f"  {name:<6}{verb.purpose}" for name, verb in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="python -m launch",
        description=f"Plans the job and runs it on a pod.\n\nverbs:\n{verbs}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", nargs="?", metavar="VERB", help=" | ".join(VERBS))
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="key=value, as Hydra reads it")
    parser.add_argument("--dry-run", action="store_true", help="print the commands that would be started, start none")
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    return parser


if __name__ == "__main__":
    sys.exit(main())
