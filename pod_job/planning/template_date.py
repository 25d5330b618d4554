"""The day that chat templates take for today: that of the run's first start, on every host and at every later start."""

import os
import re
from datetime import UTC, date, datetime

from pod_job import environment
from pod_job.errors import JobError
from pod_job.prompts.chat import uses_date
from pod_job.prompts.tasks import Tasks
from pod_job.prompts.tokenizer import TokenizerFolder
from pod_job.run_folder.identity import RunRecord
from pod_job.run_folder.layout import RUN


def template_date(recorded: RunRecord | None) -> date:
    """Returns the day of the first start: as run.json (`recorded`, None before it) has it, else that of this start.

    A run of 0.1.0 does not record it; its run.json tells when it was made.
    """
    if recorded is None:
        return start_date()
    if recorded.identity.template_date is not None:
        return recorded.identity.template_date
    try:
        return date.fromisoformat(recorded.created[:10])
    except ValueError as error:
        raise JobError(f"{RUN}: created={recorded.created!r:.80} is no time; copy the file again") from error


def start_date() -> date:
    """Returns the day in the name of this start, which all hosts share; without one, today in UTC."""
    started = re.match(r"(\d{8})T\d{6}Z", os.environ.get(environment.ATTEMPT, ""))
    return datetime.strptime(started[1], "%Y%m%d").date() if started else datetime.now(UTC).date()


def date_to_record(
    recorded: RunRecord | None, tasks: Tasks, tokenizer_folder: TokenizerFolder, today: date
) -> date | None:
    """Returns `today`, which this start renders with, for the run's identity.

    None where no template writes it, or where run.json is of 0.1.0. Should another host have claimed the folder with
    another day meanwhile, as around midnight by hand, this start is refused.
    """
    if not (tasks.chat or not tasks.whole) or not uses_date(tokenizer_folder.tokenizer.chat_template):
        return None
    unknown = recorded is not None and recorded.identity.template_date is None
    return None if unknown else today
