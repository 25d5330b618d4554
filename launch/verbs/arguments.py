"""Arguments that several verbs of the launcher take."""

from argparse import ArgumentParser, Namespace

from pod_job.commands.command_line import add_overrides


def add_run(parser: ArgumentParser) -> None:
    """Adds a run folder or the overrides of a start, both as `overrides`."""
    purpose = "the run folder, local or gs://bucket/prefix; or key=value ..., with which the job was started"
    add_overrides(parser, purpose, metavar="RUN_DIR")


def add_dry_run(parser: ArgumentParser, purpose: str = "check, print the commands, start nothing") -> None:
    parser.add_argument("--dry-run", action="store_true", help=purpose)


def add_follow(parser: ArgumentParser) -> None:
    parser.add_argument("--follow", action="store_true", help="stay until the run has ended")


def add_no_preflight(parser: ArgumentParser) -> None:
    parser.add_argument("--no-preflight", action="store_true", help="compile nothing for the pod beforehand")


def add_accept_identity(parser: ArgumentParser) -> None:
    """Adds the option --accept-identity, which may be given several times; `start_overrides` reads it."""
    purpose = "go on where this field of the run's identity differs, such as model.weights; metadata.json records it"
    parser.add_argument("--accept-identity", metavar="FIELD", action="append", default=[], help=purpose)


def start_overrides(options: Namespace) -> list[str]:
    """Returns the overrides of a start, with the fields that --accept-identity names."""
    accepted = [f"storage.accept_identity=[{','.join(options.accept_identity)}]"] if options.accept_identity else []
    return [*options.overrides, *accepted]
