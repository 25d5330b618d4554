"""Measures the rate from this machine to a run folder: writes objects of 64 MiB, reads them, removes them.

`pod-job doctor --measure-bucket` runs it on all hosts of a pod at once; people need not.
"""

from argparse import ArgumentParser, Namespace

from pod_job.commands.command_line import DONE, Command, add_run_dir

EXAMPLES = ("gs://my-bucket/run --host 3",)


def add_arguments(parser: ArgumentParser) -> None:
    add_run_dir(parser)
    parser.add_argument("--host", type=int, required=True, help="index of this host; no two use the same place")
    parser.add_argument("--writers", type=int, default=4, help="objects at the same time (default 4)")
    parser.add_argument("--objects", type=int, default=32, help="objects at most, none begun after 10 s (default 32)")


def measure_bucket(options: Namespace) -> int:
    from pod_job.formats.records import encode
    from pod_job.run_folder.bucket_rate import HostRate
    from pod_job.run_folder.layout import measurement_place
    from pod_job.storage.open import open_folder
    from pod_job.storage.throughput import Bounds, measure

    folder = open_folder(options.run_dir, "RUN_DIR")
    rates = measure(folder, measurement_place(options.host), options.writers, Bounds(objects=options.objects))
    print(encode(HostRate(rates.bytes, rates.write_bytes_s, rates.read_bytes_s)).decode())
    return DONE


COMMAND = Command("measure-bucket", __doc__, EXAMPLES, add_arguments, measure_bucket)
main = COMMAND.main
