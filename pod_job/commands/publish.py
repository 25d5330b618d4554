"""Publishes a finished run on the Hugging Face hub, with a card: activations as a dataset, SAEs as a model.

The launcher's state, logs and code are left out. The same command again sends only what the hub does not have.
"""

from argparse import ArgumentParser, Namespace

from pod_job.commands.command_line import DONE, Command, add_run_dir
from pod_job.progress import progress_bar

EXAMPLES = ("runs/first me/qwen-activations --license apache-2.0", "gs://my-bucket/saes me/qwen-saes --dry-run")


def add_arguments(parser: ArgumentParser) -> None:
    add_run_dir(parser, "a finished run")
    parser.add_argument("repo", metavar="OWNER/NAME", help="the repository on the hub, made where there is none")
    parser.add_argument("--license", metavar="ID", help="the card's license, by the hub's name: apache-2.0")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument("--dry-run", action="store_true", help="print what would be sent, and the card")


def run_publish(options: Namespace) -> int:
    from pod_job.interop.publish import listing, plan_publication, publish

    publication = plan_publication(options.run_dir, options.repo, options.license)
    if options.dry_run:
        print("\n".join([publication.url, *listing(publication.names), "", publication.card]))
        return DONE
    print(publish(publication, options.private, progress_bar))
    return DONE


COMMAND = Command("publish", __doc__, EXAMPLES, add_arguments, run_publish)
main = COMMAND.main
