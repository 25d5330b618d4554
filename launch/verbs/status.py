"""Shows a run, its pods and each host, from the run folder and the API alone, without a login to any host.

With --follow until the run has ended: in a terminal as a table drawn in place, elsewhere as a line for each change.
"""

from argparse import ArgumentParser, Namespace
from concurrent.futures import ThreadPoolExecutor

from launch import clock
from launch.cloud.api_time import api_now
from launch.cloud.job_pods import pods_of
from launch.cloud.observe import NODE_EVERY_S, POLL_S, latest_statuses
from launch.cloud.run_status import planned_batches, read_run_status
from launch.job_config import config_of_run
from launch.verbs.arguments import add_follow, add_run
from launch.view.status_view import Live, RunStatus, table
from pod_job.commands.command_line import DONE, Command, add_json
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.formats.records import encode
from pod_job.run_folder.layout import RUN
from pod_job.storage.folder import Folder, exists
from pod_job.storage.open import open_folder
from pod_job.terminal import SafeConsole

EXAMPLES = (
    "runs/first",
    "gs://my-bucket/run --follow",
    "experiment=qwen05b-text-v5e64 storage.run_dir=gs://my-bucket/run --json",
)


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    add_follow(parser)
    add_json(parser, "the state of the run")


def status(options: Namespace) -> int:
    config = config_of_run(options.overrides)
    folder = open_folder(config.storage.run_dir)
    with ThreadPoolExecutor(1) as gcloud:  # which takes its seconds while the run folder is read
        asked = gcloud.submit(pods_of, config)
        nothing = not exists(folder, RUN) and not any(map(any, latest_statuses(folder, config).values()))
        if nothing and not options.follow and not asked.result():
            raise JobError(f"storage.run_dir={config.storage.run_dir}: no run is there, and no pod of one; start it")
        batches = planned_batches(config, folder)
        pods = asked.result()
    # Pods are paid by the API's clock; this machine's counts on from there.
    began = (api_now() if any(pod.created for pod in pods) else clock.now()) - clock.monotonic()
    view = read_run_status(config, folder, batches, pods, began + clock.monotonic())
    if not options.follow:
        show(view, options.json)
        return DONE
    looked = clock.monotonic()
    with Live(SafeConsole(), plain=options.json) as live:
        while True:
            if options.json:
                print(encode(view).decode(), flush=True)
            else:
                live.show(view)
            # A host that died at its exit never reports its end.
            if view.ended or (view.batches_done == view.batches and complete(config, folder)):
                return DONE
            clock.sleep(POLL_S)
            if clock.monotonic() - looked > NODE_EVERY_S:
                looked = clock.monotonic()
                pods = pods_of(config)
            view = read_run_status(config, folder, batches, pods, began + clock.monotonic())


def complete(config: JobConfig, folder: Folder) -> bool:
    from pod_job.planning.training import is_complete  # tables of tasks, which a run that goes on does not need

    return is_complete(folder, config.mode)


def show(view: RunStatus, with_json: bool) -> None:
    if with_json:
        print(encode(view).decode())
    else:
        SafeConsole().print(table(view), highlight=False, soft_wrap=True)


COMMAND = Command("status", __doc__, EXAMPLES, add_arguments, status)
