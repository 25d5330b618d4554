"""Check of hosts that the user has started: each answers over ssh."""

from launch.cloud.own_hosts import reaches
from launch.cloud.remote import ask, script
from pod_job.config.schema import JobConfig


def check_answer(config: JobConfig) -> str:
    """Asks every host of the file whether a job runs there. NoAnswer: some cannot be reached."""
    running = []
    for way in reaches(config):
        answers = ask(way, len(way.hosts), script("probe", {"TAIL": "0"}))
        running += [str(way.hosts[host]) for host, answer in sorted(answers.items()) if answer.word == "RUNNING"]
    return "all hosts answer over ssh" + (f"; a job runs on {', '.join(running)}" if running else "")
