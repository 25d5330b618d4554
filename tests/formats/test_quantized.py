"""Vectors of eight bits agree with the originals: from the device, in the files, and through every reader."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from job_processes import finish, start
from sample_runs import batch, identity

from pod_job.checking.consent import Consent
from pod_job.checking.recompute import recompute
from pod_job.checking.verify import verify
from pod_job.errors import JobError
from pod_job.extraction.quantize import as_stored
from pod_job.finishing.merge import merge
from pod_job.finishing.shuffle import shuffle
from pod_job.formats import statistics
from pod_job.formats.quantized import EightBit, from_rows, transfer_layout
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.interop.pickle_export import export_pickles
from pod_job.interop.pickle_reader import read_pickle
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.run_folder.commit import Batch, commit_batch
from pod_job.run_folder.entries import read_vectors
from pod_job.run_folder.identity import claim
from pod_job.run_folder.metadata import read_any
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder
from tools.tiny_model import write_tiny_model

DTYPES = ["int8", "float8_e4m3fn"]
BOUND = {"int8": 0.035, "float8_e4m3fn": 0.065}
"""Largest relative error of any row."""
WIDTHS = [1, 16, 64, 100, 192]


def outlying(rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Vectors like a residual stream's: two massive dimensions, and rows a thousand times the others."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((rows, width)).astype(np.float32)
    vectors[:, :: max(1, width // 2)] *= 300
    vectors[::7] *= 1000
    return vectors


def quantize(vectors: np.ndarray, dtype: str) -> EightBit:
    rows = np.asarray(as_stored(jnp.asarray(vectors), DTYPE_OF[dtype]))
    assert (rows.shape[-1], rows.dtype) == transfer_layout(vectors.shape[-1], DTYPE_OF[dtype])
    quantized = from_rows(rows, vectors.shape[-1], DTYPE_OF[dtype])
    assert isinstance(quantized, EightBit)
    return quantized


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_within_the_bound_and_carry_their_error(dtype: str, width: int) -> None:
    vectors = outlying(40, width)
    quantized = quantize(vectors, dtype)
    assert quantized.dtype == DTYPE_OF[dtype]
    errors = np.linalg.norm(np.asarray(quantized) - vectors, axis=1) / np.linalg.norm(vectors, axis=1)
    assert errors.max() < BOUND[dtype]
    assert quantized.errors is not None
    np.testing.assert_allclose(quantized.errors, errors, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_value_is_the_nearest_for_the_scale_that_is_stored_with_it(dtype: str, width: int) -> None:
    """Values divided by a scale before its rounding to bfloat16 are off by up to 0.2%, which the row's error hides."""
    vectors = outlying(300, width, seed=2)
    quantized = quantize(vectors, dtype)
    scales = np.repeat(quantized.scales.astype(np.float64), 64, axis=1)[:, :width]
    exact = vectors / scales
    spacing = np.ones_like(exact)
    if dtype != "int8":  # three bits after the first one; below 2^-6 the spacing stays
        spacing = 2.0 ** np.maximum(np.floor(np.log2(np.abs(exact))) - 3, -9)
    assert (np.abs(quantized.values.astype(np.float64) - exact) <= spacing / 2 * 1.0001).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_outliers_leave_the_other_columns_and_rows_alone(dtype: str) -> None:
    vectors = np.random.default_rng(1).standard_normal((50, 256)).astype(np.float32)
    quiet = np.asarray(quantize(vectors, dtype))
    vectors[3] *= 1000  # a row
    vectors[:, 200] = 5000  # a dimension
    loud = np.asarray(quantize(vectors, dtype))
    others = np.delete(np.arange(50), 3)
    np.testing.assert_array_equal(loud[others, :192], quiet[others, :192])
    np.testing.assert_allclose(loud[3, :192], 1000 * quiet[3, :192], rtol=0.2, atol=1000 * BOUND[dtype])
    assert np.abs(loud[:, 200] / vectors[:, 200] - 1).max() < 0.005 if dtype == "int8" else 0.04


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_stay_zeros_and_rows_that_are_not_finite_are_counted(dtype: str) -> None:
    vectors = np.zeros((4, 100), np.float32)
    vectors[1, 70], vectors[2, 3], vectors[3, 99] = np.inf, np.nan, 1.0
    quantized = quantize(vectors, dtype)
    with np.errstate(invalid="ignore"):
        assert np.isfinite(np.asarray(quantized)).all(axis=1).tolist() == [True, False, False, True]
    assert not np.asarray(quantized)[0].any()
    assert statistics.compute(quantized).nonfinite == 2


@pytest.fixture(scope="module")
def run(new_folder: Callable[[], Folder]) -> tuple[Folder, list[Batch]]:
    """Three batches of two taps in int8; the second tap is narrower than a group."""
    folder = new_folder()
    claim(folder, identity(24, dtype="int8"))
    batches = []
    for number, rows in enumerate((30, 0, 25), 1):
        vectors = {"layer_6": outlying(rows, 100, number), "layer_30_norm": outlying(rows, 16, number)}
        taps = {name: quantize(values, "int8") for name, values in vectors.items()}
        batches.append(replace(batch(number, rows), taps=taps))
        commit_batch(folder, batches[-1], host=0)
    merge(folder)
    return folder, batches


def test_readers_return_the_vectors(run: tuple[Folder, list[Batch]], tmp_path: Path) -> None:
    folder, batches = run
    for tap in ("layer_6", "layer_30_norm"):
        full = np.concatenate([np.asarray(committed.taps[tap]) for committed in batches])
        data = ActivationDataset(folder.url, tap)
        assert (data.dtype, data.shape) == (np.float32, full.shape)
        np.testing.assert_array_equal(data[:], full)
        np.testing.assert_array_equal(data[[54, 3, 30]], full[[54, 3, 30]])
        np.testing.assert_array_equal(data[-1], full[-1])
        for vectors, index in data.batches(16, with_index=True):
            np.testing.assert_array_equal(vectors, full[index])
        narrow = ActivationDataset(folder.url, tap, dtype="bfloat16")[5:9]
        np.testing.assert_array_equal(narrow, full[5:9].astype(DTYPE_OF["bfloat16"]))
        raw = data.raw([40, 2])
        assert isinstance(raw, EightBit)
        np.testing.assert_array_equal(np.asarray(raw), full[[40, 2]])
        exact = full.astype(np.float64)
        np.testing.assert_allclose(data.statistics["mean"], exact.mean(0), rtol=1e-9, atol=1e-9)
    export_pickles(folder.url, tmp_path, save_every_n_samples=1000)
    before = sum(len(each.rows) for each in batches[:2])
    item = read_pickle(tmp_path / "layer_6_batch_000001.pkl").activations[before + 24]
    np.testing.assert_array_equal(item.activation, np.asarray(batches[2].taps["layer_6"])[24])


def test_metadata_has_the_rounding_errors(run: tuple[Folder, list[Batch]]) -> None:
    folder, batches = run
    for tap, rounding in merge(folder).rounding.items():
        errors = np.concatenate([committed.taps[tap].errors for committed in batches])  # type: ignore[union-attr]
        assert rounding.rms == pytest.approx(np.sqrt((errors.astype(np.float64) ** 2).mean()), rel=1e-9)
        assert rounding.largest == pytest.approx(errors.max(), rel=1e-9)


def test_a_quantized_run_is_verified_and_shuffled(run: tuple[Folder, list[Batch]], tmp_path: Path) -> None:
    folder, _ = run
    assert verify(folder.url).sound
    described = shuffle(folder.url, tmp_path / "shuffled", part_bytes=3000)
    assert described.rounding == merge(folder).rounding
    assert verify(tmp_path / "shuffled").sound
    before, after = (ActivationDataset(url, 6)[:] for url in (folder.url, tmp_path / "shuffled"))
    np.testing.assert_array_equal(np.sort(after.view("V400"), axis=0), np.sort(before.view("V400"), axis=0))


def test_a_second_writer_adopts_the_file_and_its_scales(run: tuple[Folder, list[Batch]]) -> None:
    folder, batches = run
    late = replace(batches[0], taps={n: quantize(np.asarray(v) * 1.001, "int8") for n, v in batches[0].taps.items()})
    folder.remove(layout.commit_file(1))
    record = commit_batch(folder, late, host=1)
    assert record.files[0].statistics == statistics.to_record(statistics.compute(batches[0].taps["layer_6"]))
    merge(folder)


def test_a_file_without_its_scales_and_another_dtype_are_refused(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    claim(folder, identity(8, ("layer_6",), dtype="int8"))
    vectors = quantize(outlying(9, 100), "int8")
    commit_batch(folder, replace(batch(1, 9), taps={"layer_6": vectors.values}), host=0)
    [entry] = merge(folder).batches
    with pytest.raises(JobError, match=r"layer_6_batch_000001\.safetensors: holds int8 without its scales"):
        read_vectors(folder, entry)
    with pytest.raises(JobError, match="dtype=int4: not one that vectors are read in; use bfloat16, float16, float32"):
        ActivationDataset(tmp_path, 6, dtype="int4")


@pytest.mark.pod
@pytest.mark.parametrize("dtype", ["int8", "float8"])
def test_a_job_stores_eight_bits_that_agree_with_the_reference(dtype: str, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    overrides = [
        *("mesh=2x2", "tasks=arc_sample", "tasks.limit=6", "extract=all_tokens"),
        *(f"model.path={model}", "model.dtype=float32", "extract.taps=[layer_1,layer_2.q]", f"extract.dtype={dtype}"),
        *("extract.seq_len=512", "extract.save_every_n_samples=3", f"storage.run_dir={tmp_path / 'run'}"),
    ]
    finish(start(overrides, hosts=1, devices=4))
    metadata = read_any(open_folder(tmp_path / "run"))
    bound = BOUND[metadata.dtype]
    for tap in metadata.taps:
        [parity] = metadata.parity
        assert 0 < metadata.rounding[tap].rms < metadata.rounding[tap].largest < bound
        assert 0 < parity.errors[tap].largest < bound
        assert parity.limits is not None
        assert parity.errors[tap].largest <= parity.limits[tap].largest
    for deviation in recompute(tmp_path / "run", 20, consent=Consent(follow_recorded=True)).values():
        assert not deviation.too_far
