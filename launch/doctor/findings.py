"""Findings of checks: each check is made once those are that it needs, and each cause is shown once."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from launch.cloud.iam import NotChecked
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError

AT_ONCE = 4  # checks; each waits for gcloud most of the time


@dataclass(frozen=True)
class Finding:
    """Result of one check: what it found, or what is wrong and the fix. `checked`: False where it could not look."""

    check: str
    well: bool
    said: str
    checked: bool = True

    @property
    def mark(self) -> str:
        return "[red]BAD[/] " if not self.well else "[green]ok[/]  " if self.checked else "[yellow]WARN[/]"


@dataclass(frozen=True)
class Check:
    """Check with its name in the list, and the names of those without which it cannot look.

    `look` returns what it found; it raises JobError for what is wrong, NotChecked where it could not look.
    """

    name: str
    look: Callable[[JobConfig], str]
    needs: Sequence[str] = ()


def all_findings(checks: Sequence[Check], config: JobConfig) -> list[Finding]:
    """Makes all checks, those first that others need; what needs one that failed is not made."""
    found: dict[str, Finding] = {}
    left = list(checks)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while left:
            ready = [check for check in left if set(check.needs) <= found.keys()]
            made = pool.map(partial(examine, config=config, found=dict(found)), ready)
            found |= {finding.check: finding for finding in made}
            left = [check for check in left if check.name not in found]
    return [found[check.name] for check in checks]


def examine(check: Check, config: JobConfig, found: Mapping[str, Finding]) -> Finding:
    failed = [needed for needed in check.needs if not (found[needed].well and found[needed].checked)]
    if failed:
        return Finding(check.name, True, f"not checked: it needs {failed[0]}", checked=False)
    try:
        return Finding(check.name, True, check.look(config))
    except NotChecked as error:
        return Finding(check.name, True, f"not checked: {error}", checked=False)
    except JobError as error:
        return Finding(check.name, False, str(error))


def each_cause_once(findings: Sequence[Finding]) -> list[Finding]:
    """Returns the findings with every error at the first check that met it."""
    first: dict[str, str] = {}
    shown = []
    for finding in findings:
        met = finding.check if finding.well else first.setdefault(finding.said, finding.check)
        once = Finding(finding.check, True, f"not checked: it needs {met}", checked=False)
        shown.append(finding if met == finding.check else once)
    return shown
