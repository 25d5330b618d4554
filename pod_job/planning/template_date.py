"""The day that chat templates take for today: that of the run's first start, on every host and at every later start."""

import os
import re
from datetime import UTC, date, datetime

from pod_job import environment
from pod_job.errors import JobError
from pod_job.prompts.chat import uses_date
from pod_job.prompts.tasks import Tasks
from pod_job.prompts.tokens import TokenizerFolder
from pod_job.run_folder.identity import read_run
from pod_job.run_folder.layout import RUN
from pod_job.storage.folder import Folder


def template_date(folder: Folder) -> date:
    """Returns the day of the first start: as run.json records it, else the day of this start.

    A run of 0.1.0 does not record it; its run.json tells when it was made.
    """
    if folder.stat(RUN) is None:
        return start_date()
    record = read_run(folder)
    if record.identity.template_date is not None:
        return record.identity.template_date
    try:
        return date.fromisoformat(record.created[:10])
    except ValueError as error:
        raise JobError(f"{folder.url}/{RUN}: created={record.created!r} is no time; the file is damaged") from error


def start_date() -> date:
    """Returns the day in the name of this start, which all hosts share; without one, today in UTC."""
    started = re.match(r"(\d{8})T\d{6}Z", os.environ.get(environment.ATTEMPT, ""))
    return datetime.strptime(started[1], "%Y%m%d").date() if started else datetime.now(UTC).date()


def date_to_record(folder: Folder, tasks: Tasks, tokenizer_folder: TokenizerFolder, today: date) -> date | None:
    """Returns `today`, which this start renders with, for the run's identity.

    None where no template writes it, or where run.json is of 0.1.0. Should another host have claimed the folder with
    another day meanwhile, as around midnight by hand, this start is refused.
    """
    if not (tasks.chat or not tasks.whole) or not uses_date(tokenizer_folder.tokenizer.chat_template):
        return None
    unknown = folder.stat(RUN) is not None and read_run(folder).identity.template_date is None
    return None if unknown else today
