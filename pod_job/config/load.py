"""Loads and checks the configuration: Hydra in, a typed `JobConfig` out, errors as one line."""

import contextlib
import difflib
import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pod_job.config.generate import Mode
from pod_job.config.schema import ConfigValues, JobConfig
from pod_job.config.train import TrainSource
from pod_job.errors import JobError

GROUPS = {"experiment", *(item.name for item in fields(JobConfig) if is_dataclass(item.type))}
"""Names of the choices in conf/, and of the sections that they set."""


MAPPINGS = ("cloud.labels",)
"""Fields whose keys are the user's."""


def conf_dir() -> Path:
    """Returns the folder of Hydra files: inside the installed package, or beside it in a checkout."""
    installed = Path(__file__).parent.parent / "conf"
    return installed if installed.is_dir() else Path(__file__).parent.parent.parent / "conf"


def load(overrides: Sequence[str]) -> JobConfig:
    """Returns the checked configuration for Hydra `overrides` such as `["experiment=demo", "mesh.data=4"]`.

    Raises JobError in one line for a misspelled key, an unknown choice, a wrong type, a missing or out-of-range value.
    """
    overrides = [part for override in overrides for part in hydra_words(override)]
    check_fields(word for word in overrides if word.startswith(("+", "hydra")))  # Hydra refuses other names itself
    ConfigStore.instance().store(name="schema", node=JobConfig)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
            tree = compose("job", list(overrides))
        if trains_on_a_run(tree):  # which has a model and prompts of its own
            for key in OmegaConf.missing_keys(tree) & {"model.path", "tasks.path"}:
                OmegaConf.update(tree, key, "")
        if missing := sorted(OmegaConf.missing_keys(tree)):
            raise JobError(not_set(missing[0]))
        config = OmegaConf.to_object(tree)
    except (HydraException, OmegaConfBaseException) as error:
        raise JobError(explain(error, overrides)) from error
    assert isinstance(config, JobConfig)
    return config


def trains_on_a_run(tree: Any) -> bool:
    """Returns whether the composed configuration reads vectors of a finished run, and no model."""
    return tree.mode is Mode.train and tree.train.source is TrainSource.run


def hydra_words(override: str) -> list[str]:
    """Returns an override as words of Hydra.

    One that gives a choice and its value, `extract.positions=every=8`, becomes one for each field. Values with commas,
    `extract.layers=6,18`, which Hydra takes for several jobs, become a list, and so does one value of a list,
    `extract.layers=6`.
    """
    match = re.fullmatch(r"(\+{0,2}extract\.)positions=['\"]?(every|sample|roles)=([^'\"]*)['\"]?", override)
    if match:
        positions = "all" if match[2] == "roles" else match[2]
        return [f"{match[1]}positions={positions}", f"{match[1]}{match[2]}={match[3]}"]
    with contextlib.suppress(HydraException):  # left as it is; Hydra refuses it
        values = OverridesParser.create().parse_override(override).value()
        key, _, text = override.partition("=")
        one = key.strip().lstrip("+") in list_keys() and isinstance(values, int | float | str | QuotedString | dict)
        if (isinstance(values, ChoiceSweep) and values.simple_form) or (one and text.strip() and "${" not in text):
            return [f"{key}=[{text}]"]
    return [override]


def quoted(text: str) -> str:
    """Returns the text as the value of an override, whatever characters it has."""
    return QuotedString(text, Quote.single).with_quotes()


def check_fields(overrides: Iterable[str]) -> None:
    """Raises JobError for a `key=value`, `+key=value` or `++key=value` whose key is no field, below one, or a group."""
    for override in overrides:
        key = override.partition("=")[0].lstrip("+").strip()
        below_mapping = any(key.startswith(f"{mapping}.") for mapping in MAPPINGS)
        if not (below_mapping or key in GROUPS or key in keys(JobConfig)):
            raise JobError(not_a_field(key))


def to_json(config: JobConfig) -> ConfigValues:
    """Returns the configuration as JSON values, for `from_json`."""
    return {item.name: _json_value(getattr(config, item.name)) for item in fields(config)}


def _json_value(value: Any) -> Any:
    if is_dataclass(value):
        return {item.name: _json_value(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    return value.name if isinstance(value, Enum) else value


def from_json(recorded: ConfigValues, overrides: Sequence[str] = ()) -> JobConfig:
    """Returns the configuration that `to_json` recorded, with `key=value` overrides.

    What is recorded is data: a `${...}` in it stays text. Raises JobError where a value does not fit its field.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if override.startswith("~") or key in GROUPS:
            raise JobError(f"{override}: a recorded configuration takes single fields only, such as cloud.project=...")
    if any(override.partition("=")[0].removeprefix("+") == "tasks.path" for override in overrides):
        recorded = without_uploads(recorded)
    try:
        parts = [part for override in overrides for part in hydra_words(override)]
        given = OmegaConf.from_dotlist([part.removeprefix("+") for part in parts])
        tree = OmegaConf.merge(OmegaConf.structured(JobConfig), _literal(recorded), given)
        config = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        raise JobError(explain(error, overrides)) from error
    assert isinstance(config, JobConfig)
    return config


def without_uploads(recorded: ConfigValues) -> ConfigValues:
    """Returns a recorded configuration without the places that its own task files were uploaded to."""
    tasks = recorded.get("tasks")
    if not isinstance(tasks, dict):
        return recorded
    return {**recorded, "tasks": {key: value for key, value in tasks.items() if key != "uploaded"}}


def _literal(value: Any) -> Any:
    """Returns recorded values with what OmegaConf would interpolate escaped; the backslashes before it too."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items()}
    return [_literal(item) for item in value] if isinstance(value, list) else value


def not_set(key: str) -> str:
    return f"{key} is not set; give {key}=... or an experiment=... that sets it"


def not_a_field(key: str) -> str:
    near = difflib.get_close_matches(key, keys(JobConfig), n=1, cutoff=0.0)
    return f"{key} is not a field of the configuration; did you mean {near[0]}?"


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """Returns Hydra's error as one line that names the override and the nearest valid key or choice."""
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} is not an override; write key=value, and quote it for the shell"
    text = str(error.__cause__ or error)
    if missing := re.search(r"Missing mandatory value: (\S+)", text):  # of a field that another one refers to
        return not_set(missing[1])
    if unknown := re.search(r"Key '([^']+)' (?:is not in struct|not in '\w+')", text) or re.search(
        r"Could not override '([^']+)'", str(error)
    ):
        key = next((o.split("=")[0].lstrip("+~") for o in overrides if unknown[1] in o.split("=")[0]), unknown[1])
        return not_a_field(key)
    if missing := re.search(r"Could not find '([^']+)'", str(error)):
        group, _, name = missing[1].partition("/")
        choices = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
        return f"{group}={name} is not one of the choices: {', '.join(choices)}"
    key = re.search(r"full_key: (\S+)", text)
    if key and ("is not a ListConfig" in text or "Cannot merge DictConfig with ListConfig" in text):
        return f"{key[1]} is a list; write {key[1]}=[...]"
    reason = text.splitlines()[0]
    return f"{key[1]}: {reason}" if key else reason


@functools.cache
def list_keys() -> frozenset[str]:
    """Returns the dotted names of the fields that are lists."""
    sections = [(f"{item.name}.", item.type) for item in fields(JobConfig) if is_dataclass(item.type)]
    return frozenset(
        prefix + item.name
        for prefix, section in sections
        for item in fields(section)
        if list in (get_origin(kind) for kind in (item.type, *get_args(item.type)))
    )


def keys(schema: Any, prefix: str = "") -> list[str]:
    """Returns the dotted names of every field of a dataclass tree."""
    names = []
    for item in fields(schema):
        names.append(prefix + item.name)
        for part in (item.type, *get_args(item.type)):  # of a list, the fields of its entries
            if is_dataclass(part):
                names += keys(part, f"{prefix}{item.name}.")
    return names
