"""A systemd unit that watches the job from a small VM which is always on, with no workstation.

systemd starts `watch` again after a crash, a reboot or an end from outside, and `watch` finds pod, job and batches; it
stays ended where the next start would end as the last did. https://www.freedesktop.org/software/systemd/man/systemd.service
"""

import re
from dataclasses import dataclass
from pathlib import Path

from launch.cloud.checks import check_pod
from launch.cloud.request import pod_spec
from launch.manifests.job_facts import check_elsewhere
from pod_job.commands.command_line import BAD_INPUT, FAILED
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError

PLAIN = re.compile(r"[\w@=:,./+-]+", re.ASCII)
ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "%": "%%", "$": "$$"}
RESTART_S = 60
STOP_S = 120
"""Seconds that `watch` has to say what stays, for which it asks the API."""


@dataclass(frozen=True)
class Watcher:
    """Account and checkout of the VM that watches; hosts know the job by the account's name."""

    user: str
    checkout: Path


def unit(config: JobConfig, overrides: list[str], watcher: Watcher) -> str:
    """Returns the unit's text.

    Raises:
        JobError: no pod in the cloud is asked for, or the VM or its hosts would not find what they read.
    """
    spec = pod_spec(config)
    check_pod(config)
    check_elsewhere(config, "the VM that watches does not have it")
    command = [str(watcher.checkout / ".venv/bin/pod-job"), "watch", "--no-preflight", *overrides]
    secrets = f"/etc/{spec.name}.env"
    return "\n".join(
        [
            "[Unit]",
            f"Description=pod-job watch: {specifiers(config.storage.run_dir)}",
            "Wants=network-online.target",
            "After=network-online.target",
            "StartLimitIntervalSec=0",
            "",
            "[Service]",
            "Type=exec",
            f"User={watcher.user}",
            f"WorkingDirectory={specifiers(str(watcher.checkout))}",
            *([f"EnvironmentFile={secrets}"] if config.cloud.secrets else []),
            "Environment=PYTHONUNBUFFERED=1",
            f"ExecStart={' '.join(map(quoted, command))}",
            "Restart=on-failure",
            f"RestartSec={RESTART_S}",
            f"RestartPreventExitStatus={FAILED} {BAD_INPUT}",
            "KillMode=mixed",
            f"TimeoutStopSec={STOP_S}",
            "",
            "[Install]",
            "WantedBy=multi-user.target",
            "",
        ]
    )


def steps(config: JobConfig) -> list[str]:
    """Returns what to do with the unit, one command a line."""
    name = pod_spec(config).name
    secrets = [f"NAME=VALUE of {', '.join(config.cloud.secrets)} in /etc/{name}.env, mode 600"]
    return [
        *(secrets if config.cloud.secrets else []),
        f"sudo cp FILE /etc/systemd/system/{name}.service",
        f"sudo systemctl enable --now {name}",
        f"journalctl -fu {name}",
    ]


def quoted(word: str) -> str:
    """Returns a word as systemd reads it in ExecStart. JobError for a control character, which it cannot take."""
    if PLAIN.fullmatch(word):
        return word
    text = "".join(ESCAPES.get(character, character) for character in word)
    if not text.isprintable():
        raise JobError(f"{word!r}: a unit cannot have this control character; leave it out")
    return f'"{text}"'


def specifiers(text: str) -> str:
    return text.replace("%", "%%")
