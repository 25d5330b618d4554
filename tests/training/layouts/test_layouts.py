"""SAEs come back from every layout as they were, and a damaged file is refused in one line."""

import contextlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sae_samples import KINDS, finish_training, outputs, random_rows, random_sae, sae_shape

from pod_job.commands import export
from pod_job.errors import JobError
from pod_job.formats.safetensors import map_tensors, write_parts
from pod_job.run_folder.layout import sae_prefix
from pod_job.storage.open import open_folder
from pod_job.training.layouts import sae_lens
from pod_job.training.layouts.circuit_tracer import write_transcoders
from pod_job.training.layouts.dictionary_learning import write_dictionary
from pod_job.training.layouts.read import read_saes
from pod_job.training.saes import TrainedSae, folded

FORMS = {
    "sae": {},
    "transcoder": {"transcoder": True},
    "skip": {"transcoder": True, "skip": True},
    "cross": {"taps": 2},
}


def assert_alike(sae: TrainedSae, other: TrainedSae) -> None:
    rows = random_rows(sae.shape)
    for values, others in zip(outputs(sae, rows), outputs(other, rows), strict=True):
        assert np.any(values)
        np.testing.assert_allclose(others, values, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_the_native_layout_keeps_every_sae(kind: str, form: str, tmp_path: Path) -> None:
    sae = random_sae(sae_shape(kind, **FORMS[form]))
    folder = open_folder(tmp_path)
    sae_lens.write_sae(folder, sae_prefix("one"), sae)
    saes = read_saes(tmp_path)
    assert list(saes) == ["one"]
    assert saes["one"].shape == sae.shape
    assert saes["one"].origin.taps == sae.origin.taps
    assert_alike(sae, saes["one"])


NAMED = {"relu": "standard", "gated": "gated", "topk": "topk"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_native_layout_is_what_sae_lens_reads(kind: str, tmp_path: Path) -> None:
    # `python -m tools.sae_peers.layouts` has SAELens itself read it.
    sae_lens.write_sae(open_folder(tmp_path), "", random_sae(sae_shape(kind)))
    config = json.loads((tmp_path / "cfg.json").read_text())
    stated = {name: config[name] for name in ("architecture", "d_in", "d_sae", "dtype", "apply_b_dec_to_input")}
    assert stated == {
        "architecture": NAMED.get(kind, "jumprelu"),
        "d_in": 12,
        "d_sae": 40,
        "dtype": "float32",
        "apply_b_dec_to_input": True,
    }
    assert config.get("k") == (5 if kind == "topk" else None)
    assert config["metadata"]["hook_name"] == "blocks.0.hook_resid_post"
    tensors = map_tensors(tmp_path / "sae_weights.safetensors")
    biases = {"b_gate", "b_mag", "r_mag"} if kind == "gated" else {"b_enc"}
    assert tensors.keys() == {"W_enc", "W_dec", "b_dec"} | biases | ({"threshold"} if kind not in NAMED else set())
    assert (tensors["W_enc"].shape, tensors["W_dec"].shape) == ((12, 40), (40, 12))


@pytest.mark.parametrize("kind", KINDS)
def test_dictionaries_keep_every_sae(kind: str, tmp_path: Path, torch_there: None) -> None:
    sae = random_sae(sae_shape(kind))
    write_dictionary(open_folder(tmp_path), "", sae)
    assert_alike(sae, read_saes(tmp_path)["one"])


@pytest.mark.parametrize("form", ["transcoder", "skip"])
@pytest.mark.parametrize("kind", ["relu", "topk", "jump_relu"])
def test_circuit_tracer_keeps_transcoders(kind: str, form: str, tmp_path: Path) -> None:
    sae = random_sae(sae_shape(kind, **FORMS[form]))
    assert write_transcoders(open_folder(tmp_path), [sae]) == [0, 1, 2]
    tensors = map_tensors(tmp_path / "layer_3.safetensors")
    assert tensors["W_enc"].shape == (40, 12)  # latents first, unlike SAELens'
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (config["feature_input_hook"], config["feature_output_hook"]) == ("mlp.hook_in", "hook_mlp_out")
    [back] = read_saes(tmp_path).values()
    assert (back.origin.taps, back.origin.target) == (sae.origin.taps, sae.origin.target)
    assert_alike(sae, back)


@pytest.mark.parametrize(("to", "form"), [("sae-lens", "cross"), ("circuit-tracer", "skip")])
def test_the_command_line_writes_saes_in_other_layouts(
    to: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sae = random_sae(sae_shape("topk", **FORMS[form]))
    sae_lens.write_sae(open_folder(tmp_path / "run"), sae_prefix("one"), sae)
    assert export.main([str(tmp_path / "run"), str(tmp_path / "out"), "--to", to]) == 0
    printed = capsys.readouterr().out
    assert ("TopK" in printed) == ("layers 0, 1, 2 are missing" in printed) == (to == "circuit-tracer")
    [back] = read_saes(tmp_path / "out" / ("one" if to == "sae-lens" else "")).values()
    assert_alike(sae, back)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("run out", "run: is a training run; add --to, one of sae-lens"),
        ("run out --sae one", "--sae one is of SAEs; add --to"),
        ("run out --to circuit-tracer", "one is no transcoder"),
        ("run out --to sae-lens --sae other", "has no SAE 'other'; it has one"),
        ("run out --to sae-lens --layers 3", "--layers is of --to pickle"),
        ("run run --to sae-lens", "is where the SAEs are read"),
        ("gone out --to sae-lens", "no SAE is there"),
    ],
)
def test_an_export_that_cannot_be_is_refused_in_one_line(
    words: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sae_lens.write_sae(open_folder("run"), sae_prefix("one"), random_sae(sae_shape("topk")))
    assert export.main(words.split()) == 2
    shown = capsys.readouterr().err
    assert says in shown
    assert shown.count("\n") == 1
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_gemma_scope_is_read_without_centering(kind: str, tmp_path: Path) -> None:
    sae = random_sae(sae_shape("jump_relu", transcoder=True))
    tensors = sae_lens.tensors_of(sae)
    if kind == "npz":
        np.savez(tmp_path / "params.npz", **tensors)  # pyright: ignore[reportArgumentType]
    else:
        lower = {name.replace("W_", "w_"): values for name, values in tensors.items()}
        (tmp_path / "params.safetensors").write_bytes(b"".join(write_parts(lower)))
    [back] = read_saes(tmp_path).values()
    assert_alike(sae, back)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_folding_takes_the_scale_of_training_into_the_weights(kind: str, form: str) -> None:
    sae = random_sae(sae_shape(kind, **FORMS[form]))
    rows, scale, target_scale = random_rows(sae.shape), 0.3, 0.3 if form in ("sae", "cross") else 5.0
    latents, output = outputs(sae, rows * np.float32(scale))
    raw = TrainedSae(sae.shape, folded(sae.shape, sae.parameters, scale, target_scale))
    np.testing.assert_array_equal(raw.parameters["decoder"], sae.parameters["decoder"])
    found = outputs(raw, rows)
    np.testing.assert_allclose(found[0], latents / target_scale, atol=1e-5)
    np.testing.assert_allclose(found[1], output / target_scale, atol=1e-5)


def test_pre_activations_that_were_scaled_by_decoder_norms_are_folded(tmp_path: Path) -> None:
    sae, rows = random_sae(sae_shape("topk")), random_rows(sae_shape("topk"))
    sae_lens.write_sae(open_folder(tmp_path), "", sae)
    config = json.loads((tmp_path / "cfg.json").read_text()) | {"rescale_acts_by_decoder_norm": True}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    found, _ = outputs(next(iter(read_saes(tmp_path).values())), rows)
    centered = (rows - sae.parameters["decoder_bias"]) @ sae.parameters["encoder"] + sae.parameters["encoder_bias"]
    scaled = centered * np.linalg.norm(sae.parameters["decoder"], axis=1)
    expected = np.where(scaled >= np.sort(scaled)[:, -5:-4], np.maximum(scaled, 0), 0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def spoil_config(folder: Path, **fields: object) -> None:
    path = folder / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "architecture": (lambda f: spoil_config(f, architecture="temporal"), "architecture=temporal is not known"),
    "size": (lambda f: spoil_config(f, metadata={}, d_sae=41), "encoder is [12, 40], and the others are of [12, 41]"),
    "huge": (lambda f: spoil_config(f, metadata={}, d_sae=1 << 60), "and the others are of"),
    "type": (lambda f: spoil_config(f, d_in="12"), "d_in: expected `int`, got `str`"),
    "norm": (lambda f: spoil_config(f, normalize_activations="layer_norm"), "normalize_activations=layer_norm"),
    "tap": (lambda f: spoil_config(f, metadata={"pod_job": {"taps": 1}}), "taps: expected `array`"),
    "cut": (lambda f: (f / "sae_weights.safetensors").write_bytes(b"123"), "only 3 bytes long"),
    "gone": (lambda f: (f / "cfg.json").unlink(), "no SAE is there"),
    "text": (lambda f: (f / "cfg.json").write_text("{" * 100), "cfg.json"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_sae_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    spoil, message = SPOILED[case]
    sae_lens.write_sae(open_folder(tmp_path), "", random_sae(sae_shape("relu")))
    spoil(tmp_path)
    with pytest.raises(JobError) as caught:
        read_saes(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("k", ["NaN", "Infinity", "-1", "1e300", "0", "null", "41"])
@pytest.mark.parametrize("before_6", [False, True])
def test_a_k_that_is_no_number_of_latents_is_refused(k: str, before_6: bool, tmp_path: Path) -> None:
    sae_lens.write_sae(open_folder(tmp_path), "", random_sae(sae_shape("topk")))
    fields = {"activation_fn": "topk", "activation_fn_kwargs": {"k": "K"}} if before_6 else {"k": "K"}
    spoil_config(tmp_path, metadata={}, **fields)
    (tmp_path / "cfg.json").write_text((tmp_path / "cfg.json").read_text().replace('"K"', k))
    with pytest.raises(JobError, match=r"cfg\.json: (k=|architecture=topk needs k)") as caught:
        read_saes(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["k", "group_sizes"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), [[1, 2]], 1j, [1.5, 38.5], 2**62, []])
def test_numbers_of_a_state_dict_that_are_none_are_refused(
    name: str, value: Any, tmp_path: Path, torch_there: None
) -> None:
    import torch

    write_dictionary(open_folder(tmp_path), "", random_sae(sae_shape("matryoshka")))
    state = torch.load(tmp_path / "ae.pt")
    torch.save(state | {name: torch.tensor(value)}, tmp_path / "ae.pt")
    with contextlib.suppress(JobError) if name == "k" and value == [] else pytest.raises(JobError) as caught:
        read_saes(tmp_path)
    assert caught is None or "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_a_byte_of_a_finished_training_that_changed_is_noticed(name: str, tmp_path: Path) -> None:
    folder, prefix = open_folder(tmp_path), sae_prefix("one")
    finish_training(folder, {"one": sae_lens.write_sae(folder, prefix, random_sae(sae_shape("topk")))})
    assert read_saes(tmp_path)
    content = folder.read(prefix + name)
    for at in (len(content) // 2, len(content) - 2):
        folder.replace(prefix + name, content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(JobError, match=rf"one/{name}: its content is not what was stored"):
            read_saes(tmp_path)


@pytest.mark.parametrize("case", ["pickled", "bomb", "nan", "shape"])
def test_a_spoiled_npz_is_refused(case: str, tmp_path: Path) -> None:
    tensors = sae_lens.tensors_of(random_sae(sae_shape("jump_relu")))
    path = tmp_path / "params.npz"
    if case == "pickled":
        np.savez(path, W_enc=np.array([{}]), **{k: v for k, v in tensors.items() if k != "W_enc"})  # pyright: ignore[reportArgumentType]
    elif case == "bomb":
        np.savez_compressed(path, **tensors | {"W_enc": np.zeros((1 << 12, 1 << 10))})  # pyright: ignore[reportArgumentType]
    else:
        tensors["b_enc"] = np.full(40, np.nan, np.float32) if case == "nan" else np.zeros((), np.float32)
        np.savez(path, **tensors)  # pyright: ignore[reportArgumentType]
    with pytest.raises(JobError, match=r"params\.npz"):
        read_saes(tmp_path)


HEADERS = [b"{'descr': '<f4', 'shape': (", b"(" * 60, b"'''", b"9" * 60, b"\0", b"{1: 2}", b"1L"]


@pytest.mark.parametrize("header", HEADERS)
def test_an_array_whose_header_is_none_is_refused(header: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "params.npz", "w") as archive:
        text = header + b" " * (117 - len(header)) + b"\n"
        archive.writestr("W_enc.npy", b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text + bytes(64))
    with pytest.raises(JobError, match=r"params\.npz: not a usable \.npz file: .*; copy it again") as caught:
        read_saes(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["!!int ''", "!!timestamp x", "!!float x", "{[]: 1}", "&a [*a]", "9999-99-99"])
def test_a_config_that_is_no_yaml_is_refused_in_one_line(value: str, tmp_path: Path) -> None:
    write_transcoders(open_folder(tmp_path), [random_sae(sae_shape("relu", transcoder=True))])
    (tmp_path / "config.yaml").write_text(f"model_kind: {value}\n")
    with pytest.raises(JobError, match=r"config\.yaml") as caught:
        read_saes(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["W_enc", "W_dec"])
@pytest.mark.parametrize("size", [(), (40,), (1, 1, 1)])
def test_weights_without_two_axes_are_refused_in_one_line(name: str, size: tuple[int, ...], tmp_path: Path) -> None:
    write_transcoders(open_folder(tmp_path), [random_sae(sae_shape("relu", transcoder=True))])
    path = tmp_path / "layer_3.safetensors"
    tensors = {key: np.array(values) for key, values in map_tensors(path).items()} | {name: np.ones(size, np.float32)}
    path.write_bytes(b"".join(write_parts(tensors)))
    with pytest.raises(JobError, match=r"both must have two axes"):
        read_saes(tmp_path)


def test_a_pickle_in_place_of_torch_weights_runs_nothing(tmp_path: Path, torch_there: None) -> None:
    import torch

    class Runs:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    write_dictionary(open_folder(tmp_path), "", random_sae(sae_shape("relu")))
    torch.save({"encoder.weight": Runs()}, tmp_path / "ae.pt")
    with pytest.raises(JobError, match=r"ae\.pt: not a usable file of torch"):
        read_saes(tmp_path)
    assert not (tmp_path / "ran").exists()
