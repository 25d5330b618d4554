"""Identities hold all that vectors depend on: a start that differs in any of it is refused, field by field."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pod_job.checkpoints.checkpoint import fingerprint, read_checkpoint, weights_content
from pod_job.checkpoints.convert import convert
from pod_job.checkpoints.locate import TOKENIZER_FILES, small_files
from pod_job.config.load import load
from pod_job.errors import JobError
from pod_job.formats.records import encode
from pod_job.models.arch import Arch, DeltaNet, LayerAttention, read_arch_file
from pod_job.models.rope import Rope
from pod_job.planning import identity as identifying
from pod_job.planning import inputs as inputs_module
from pod_job.planning.identity import tokenizer_files
from pod_job.planning.inputs import Inputs, claim_run, read_inputs
from pod_job.prompts.tokenizer import tokenizer_fingerprint
from pod_job.run_folder.accepted import check_acceptable
from pod_job.run_folder.architecture import arch_record
from pod_job.run_folder.differences import differences
from pod_job.run_folder.identity import read_run
from pod_job.run_folder.layout import RUN
from pod_job.storage.open import open_folder
from tools.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny") / "model", "mistral")
    (folder / "special_tokens_map.json").write_text("{}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture
def start(tiny: Path, tmp_path: Path) -> Callable[..., Inputs]:
    """Returns a function that reads the inputs of a start, all with one run folder and a model of the test's own."""
    shutil.copytree(tiny, tmp_path / "model")
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"text": "prompt {i}"}}\n' for i in range(3)))

    def read(*overrides: str) -> Inputs:
        basic = [f"model.path={tmp_path}/model", "tasks.format=jsonl", f"tasks.path={tmp_path}/prompts.jsonl"]
        return read_inputs(load([*basic, "extract.seq_len=64", f"storage.run_dir={tmp_path}/run", *overrides]))

    return read


def other(value: Any) -> Any:
    """Returns another value of the same kind."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value * 2 + 1
        case str():
            return f"{value}_2"
        case None:
            return 17.0
        case tuple():
            return (*value, 2.0)
    return value


DELTA = DeltaNet(2, 4, 8, 8, 4)
ROPE = Rope(theta=10_000.0, kind="yarn", factor=4.0)
PARTS = [
    *((field.name, {}) for field in fields(Arch) if field.name not in ("attention", "delta")),
    ("attention", {"window": 5}),
    ("attention", {"delta": True}),
    *(("delta", {field.name: other(getattr(DELTA, field.name))}) for field in fields(DeltaNet)),
    *(
        ("attention", {"rope": replace(ROPE, **{field.name: other(getattr(ROPE, field.name))})})
        for field in fields(Rope)
    ),
]


@pytest.mark.parametrize(("field", "change"), PARTS, ids=lambda value: value if isinstance(value, str) else None)
def test_every_part_of_the_architecture_is_in_the_identity(tiny: Path, field: str, change: dict[str, Any]) -> None:
    attention = LayerAttention(None, ROPE)
    arch = replace(read_arch_file(tiny / "config.json"), attention=(attention,) * 3, delta=DELTA)
    if field == "attention":
        changed = replace(arch, attention=(attention, replace(attention, **change), attention))
    elif field == "delta":
        changed = replace(arch, delta=replace(DELTA, **change))
    else:
        changed = replace(arch, **{field: 4 if field == "rotated" else other(getattr(arch, field))})
    same, differing = arch_record(replace(arch)), arch_record(changed)
    before = msgspec.to_builtins(arch_record(arch))
    assert not differences(before, msgspec.to_builtins(same))
    assert field in {re.split(r"[.\[]", path)[0] for path, _, _ in differences(before, msgspec.to_builtins(differing))}


EDITS = {
    "rope_parameters": (
        {"rope_type": "default", "rope_theta": 5e5},
        "attention[0].rope.theta is 10000.0 there, 500000.0",
    ),
    "sliding_window": (4, "attention[0].window is 8 there, 4 here"),
    "rms_norm_eps": (1e-5, "norm_eps is 1e-06 there, 1e-05 here"),
    "hidden_act": ("gelu_pytorch_tanh", "activation is silu there, gelu_pytorch_tanh here"),
}


def test_an_edited_configuration_is_another_run(start: Callable[..., Inputs], tmp_path: Path) -> None:
    claim_run(start())
    start()
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value for key, (value, _) in EDITS.items()}))
    with pytest.raises(JobError) as refused:
        start()
    for _, says in EDITS.values():
        assert f"model.architecture.{says}" in str(refused.value)


def test_an_edited_weight_is_another_run(start: Callable[..., Inputs], tmp_path: Path) -> None:
    claim_run(start())
    flip(tmp_path / "model" / "model.safetensors", -1)
    with pytest.raises(JobError, match=r"model\.weights\.model\.safetensors is crc32c:\S+ of \d+ bytes there, crc32c:"):
        start()


@pytest.mark.parametrize("place", [0.3, 0.5, 0.8, 0.99])
def test_an_edited_weight_shows_wherever_it_lies_and_however_old_its_file_seems(
    tiny: Path, tmp_path: Path, place: float
) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    path = model / "model.safetensors"
    times, before = path.stat(), weights_content(read_checkpoint(model))
    flip(path, int(times.st_size * place))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert weights_content(read_checkpoint(model)) != before


def flip(path: Path, place: int) -> None:
    """Changes one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_changed_tokenizer_file_is_another_run(start: Callable[..., Inputs], tmp_path: Path) -> None:
    claim_run(start())
    (tmp_path / "model" / "special_tokens_map.json").write_text('{"pad_token": "<|im_end|>"}')
    with pytest.raises(JobError, match=r"tokenizer_files\.special_tokens_map\.json is [0-9a-f]{64} there"):
        start()


def test_every_file_of_the_tokenizer_is_in_the_identity(tiny: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    names = [
        "vocab.json",
        "merges.txt",
        "added_tokens.json",
        "spiece.model",
        "chat_template.jinja",
        *tokenizer_files(tiny),
    ]
    assert {"tokenizer.json", "tokenizer_config.json", "additional_chat_templates/tools.jinja"} <= set(names)
    for name in names:
        before = tokenizer_files(model)
        with (model / name).open("a") as file:
            file.write(" ")
        after = tokenizer_files(model)
        assert {path for path, _, _ in differences(before, after)} == {name}


def test_the_patterns_match_every_file_that_a_tokenizer_of_transformers_is_made_from() -> None:
    import transformers
    from transformers import tokenization_utils_base as base
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES
    from transformers.utils.hub import CHAT_TEMPLATE_DIR, CHAT_TEMPLATE_FILE

    names = {base.ADDED_TOKENS_FILE, CHAT_TEMPLATE_FILE, f"{CHAT_TEMPLATE_DIR}/any.jinja"}
    names |= {base.FULL_TOKENIZER_FILE, base.SPECIAL_TOKENS_MAP_FILE, base.TOKENIZER_CONFIG_FILE}
    for classes in TOKENIZER_MAPPING_NAMES.values():
        for name in classes if isinstance(classes, tuple) else [classes]:
            with contextlib.suppress(ImportError):  # those that need a package which is not installed
                names |= set(getattr(getattr(transformers, name or "", None), "vocab_files_names", {}).values())
    assert len(names) > 15
    assert sorted(small_files(names, TOKENIZER_FILES)) == sorted(names)
    assert not small_files(["model.safetensors", "README.md", "model.safetensors.index.json"], TOKENIZER_FILES)


def test_an_upgrade_that_makes_the_same_tokens_goes_on_and_one_that_does_not_is_refused(
    start: Callable[..., Inputs], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    claim_run(start())
    monkeypatch.setattr(inputs_module, "package_versions", lambda: {"transformers": "99.0"})
    with caplog.at_level("INFO", "pod_job"):
        claim_run(start())
    assert "transformers is " in caplog.text
    monkeypatch.setattr(
        identifying, "special_ids", lambda tokenizer: {5}
    )  # as a version would that reads them otherwise
    with pytest.raises(
        JobError, match=r"token_probe is .*\(with .*transformers \S+ there, 99\.0 here.*--accept-identity"
    ):
        start()


def test_what_the_installed_packages_make_of_a_prompt_is_in_the_probe(
    start: Callable[..., Inputs], tmp_path: Path
) -> None:
    probes = {start().identity.token_probe}
    for prompt in ("prompt 1!", "<|im_end|>"):
        (tmp_path / "prompts.jsonl").write_text(json.dumps({"text": prompt}) + "\n")
        probes.add(start().identity.token_probe)
    assert len(probes) == 3
    (tmp_path / "prompts.jsonl").write_text('{"text": [1, 2, 3]}\n')
    assert start().identity.token_probe is None


def test_an_accepted_difference_is_recorded_and_no_other_is_accepted(
    start: Callable[..., Inputs], tmp_path: Path
) -> None:
    from pod_job.finishing.merge import merge

    claim_run(start())
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    accept = "storage.accept_identity=[model.weights]"
    claim_run(start(accept))
    [accepted] = merge(open_folder(tmp_path / "run")).accepted or []
    assert accepted.field == "model.weights.model.safetensors"
    assert accepted.run != accepted.start
    for others in ((), ("storage.accept_identity=[tokenizer_files]",)):
        with pytest.raises(
            JobError, match=r"model\.weights.*or, if its vectors may be of both, --accept-identity model\.w"
        ):
            start(*others)
    with pytest.raises(JobError, match=r"seq_len is 64 there, 32 here; use another storage\.run_dir$"):
        start(accept, "extract.seq_len=32")


@pytest.mark.parametrize("field", ["taps", "seq_len", "model.hidden_dim", "weights", "model.architecture.layers", ""])
def test_what_shapes_the_dataset_cannot_be_accepted(field: str) -> None:
    with pytest.raises(JobError, match=rf"storage\.accept_identity={field} cannot be accepted; only model, "):
        check_acceptable([field])


def test_a_run_of_0_1_0_is_held_to_what_it_recorded(start: Callable[..., Inputs], tmp_path: Path) -> None:
    """It has the starts of tensors, some of the tokenizer's files, and nothing of the architecture."""
    inputs, folder, model = start(), open_folder(tmp_path / "run"), tmp_path / "model"
    claim_run(inputs)
    record = json.loads(folder.read(RUN))
    for name in ("packages", "unread"):
        del record[name]
    identity = record["identity"]
    for name in ("weights", "architecture"):
        del identity["model"][name]
    for name in ("tokenizer_files", "token_probe"):
        del identity[name]
    shutil.rmtree(model / "additional_chat_templates")
    identity["model"]["weights_fingerprint"] = fingerprint(read_checkpoint(model))
    identity["tokenizer"] = tokenizer_fingerprint(model)
    folder.replace(RUN, json.dumps(record).encode())
    claim_run(start())
    content = (model / "tokenizer_config.json").read_text()
    (model / "tokenizer_config.json").write_text(f"{content} ")
    with pytest.raises(JobError, match=r"tokenizer is [0-9a-f]{64} there"):
        start()
    (model / "tokenizer_config.json").write_text(content)
    other_model = write_tiny_model(tmp_path / "other", "mistral", seed=1)
    shutil.copy(other_model / "model.safetensors", model / "model.safetensors")
    with pytest.raises(JobError, match=r"model\.weights_fingerprint is [0-9a-f]{64} there"):
        start()


def test_run_json_names_versions_and_what_was_left_unread(start: Callable[..., Inputs], tmp_path: Path) -> None:
    claim_run(start())
    record = read_run(open_folder(tmp_path / "run"))
    assert record.unread == ["lm_head.weight"]
    assert {"transformers", "tokenizers"} <= record.packages.keys()
    assert msgspec.json.decode(encode(record), type=type(record)) == record


def test_a_converted_copy_is_the_same_model_until_it_is_changed(start: Callable[..., Inputs], tmp_path: Path) -> None:
    claim_run(start())
    convert(str(tmp_path / "model"), tmp_path / "converted")
    start(f"model.path={tmp_path}/converted").identity  # noqa: B018
    weights = max((tmp_path / "converted").glob("weights-*/**/d/*"), key=lambda path: path.stat().st_size)
    flip(weights, weights.stat().st_size // 2)
    with pytest.raises(
        JobError, match=r"weights-\S+ is crc32c:.*converted\.json says crc32c:.*; convert the model again"
    ):
        start(f"model.path={tmp_path}/converted")
