# PYTHON_ARGCOMPLETE_OK
"""The command line of the launcher: `python -m launch VERB OVERRIDES...`."""

import argparse
import sys
from collections.abc import Callable, Sequence

from launch.completion import complete, offer, override_words
from launch.local import Stopped
from launch.options import Options
from pod_job.errors import JobError

VERBS = {
    "plan": "check the inputs; show mesh, hosts, batches and the command of each host; start nothing",
    "up": "create the pod in the first zone that has one, or find it, and wait until it is ready",
    "run": "start the job, creating the pod if need be; run again, it finishes what is missing",
    "watch": "run to the end through preemptions: create, run, create again, resume; then delete the pod",
    "status": "the run, the pod and each host: phase, batches, speed, time left, cost, errors",
    "logs": "what the hosts have logged, in the order of time; also after the pod is gone",
    "stop": "ask the job to end after the batches it holds; the pod stays",
    "doctor": "check gcloud, account, API, bucket, inputs and code; one line each, with the fix",
    "gc": "list what the launcher left in the cloud, in all zones; delete what is dead",
    "down": "delete the pod in every zone where it is",
}

EXAMPLES = """\
examples:
  python -m launch plan experiment=demo
  python -m launch plan experiment=v5e64 storage.run_dir=gs://my-bucket/qwen --json
  python -m launch run experiment=demo storage.run_dir=runs/first tasks.limit=8
  python -m launch run experiment=v5e64 storage.run_dir=gs://my-bucket/qwen cloud.zones=[us-west4-a] --follow
  python -m launch down experiment=v5e64 storage.run_dir=gs://my-bucket/qwen --dry-run

Every field of the configuration can be set as key=value; conf/ has the groups to choose from (mesh=4x2, pod=local_4x2).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a failure that is a bug or a lost host, 2 something the user can mend, 128+n signal n."""
    parser = make_parser()
    complete(parser)
    options = parser.parse_intermixed_args(argv)
    chosen = Options(
        dry_run=options.dry_run,
        as_json=options.json,
        follow=options.follow,
        host=options.host,
        no_preflight=options.no_preflight,
    )
    if options.verb is None:
        parser.print_help()
        return 2
    try:
        if options.verb not in VERBS:
            raise JobError(f"{options.verb} is not a verb; use one of: {', '.join(VERBS)}")
        return action(options.verb)(options.overrides, chosen)
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"stopped by {stopped}; the same command again finishes what is missing", file=sys.stderr)
        return 128 + stopped.signum


def action(verb: str) -> Callable[[Sequence[str], Options], int]:
    """The function of a verb, which returns the exit status. Each imports what it needs: all of it would take longer
    than a plan.
    """
    match verb:
        case "plan":
            from launch.verbs.plan import plan as act
        case "up":
            from launch.verbs.up import up as act
        case "run":
            from launch.verbs.run import run as act
        case "watch":
            from launch.verbs.watch import watch as act
        case "status":
            from launch.verbs.status import status as act
        case "logs":
            from launch.verbs.logs import logs as act
        case "stop":
            from launch.verbs.stop import stop as act
        case "doctor":
            from launch.verbs.doctor import doctor as act
        case "gc":
            from launch.verbs.gc import gc as act
        case _:
            from launch.verbs.up import down as act
    return act


def make_parser() -> argparse.ArgumentParser:
    verbs = "\n".join(f"  {name:<7}{purpose}" for name, purpose in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="python -m launch",
        description=f"Plans the job and runs it on a pod.\n\nverbs:\n{verbs}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb = parser.add_argument("verb", nargs="?", metavar="VERB", help=" | ".join(VERBS))
    overrides = parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="key=value, as Hydra reads it")
    offer(verb, lambda prefix: [name for name in VERBS if name.startswith(prefix)])
    offer(overrides, override_words)
    parser.add_argument("--dry-run", action="store_true", help="print the commands that would be started, start none")
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    parser.add_argument("--follow", action="store_true", help="run, status, logs: stay until the run has ended")
    parser.add_argument("--no-preflight", action="store_true", help="plan, up, run, watch: compile nothing before")
    parser.add_argument("--host", type=int, help="logs: of this host only")
    return parser


if __name__ == "__main__":
    sys.exit(main())
