"""What a verb is told on the command line beside the overrides."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """`host`: only this one; None: all. `no_preflight`: nothing is compiled first."""

    dry_run: bool = False
    as_json: bool = False
    follow: bool = False
    host: int | None = None
    no_preflight: bool = False
