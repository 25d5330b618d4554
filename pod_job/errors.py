"""The one exception whose message is meant for the person who started the job."""


class JobError(Exception):
    """Something the user can fix: one line that names the field, its value, the rule and the fix.

    Commands print it as `error: ...` and exit with status 2; every other exception is a bug and keeps its traceback.
    """
