"""The report's page is complete and self-contained, and its statements about a run are true."""

import importlib.util
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, opened, rendered
from sample_runs import finished_run, folders
from text_runs import OUTLIER_DIMENSION, SINK, text_run

from pod_job.commands.report import main
from pod_job.commands.verify import main as verify
from pod_job.report.sample import Measures, Sample, TapMeasures, choose_rows, similarity, spectrum
from pod_job.report.work import speed
from pod_job.run_folder.timeline import Timeline
from pod_job.storage.open import open_folder

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def matplotlib_there(require: Callable[[bool, str], None]) -> None:
    require(importlib.util.find_spec("matplotlib") is not None, "matplotlib")


def made(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[str, dict[str, Any]]:
    """Returns the page in the run folder, and its facts."""
    capsys.readouterr()
    assert main([*argv, "--json"]) == 0, capsys.readouterr().err
    return open_folder(argv[0]).read("report/index.html").decode(), json.loads(capsys.readouterr().out)


def test_the_page_opens_in_a_browser(
    tmp_path: Path, require: Callable[[bool, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    require(CHROMIUM is not None, "chromium")
    run = tmp_path / "run"
    text_run(open_folder(run), tmp_path / "model")
    verify([str(run)])
    page, facts = made(capsys, str(run))
    pictures = {path.stem for path in (run / "report").glob("*.png")}
    assert pictures >= {"norms_by_position", "norm_quantiles", "dimension_sizes", "variance_spectrum"}
    assert pictures >= {"tap_similarity", "coverage", "throughput"}
    with opened(run / "report" / "index.html", tmp_path / "profile") as (browser, session):
        widths = "Object.fromEntries([...document.images].map(i => [i.id, i.complete ? i.naturalWidth : 0]))"
        shown = browser.call("Runtime.evaluate", session, expression=widths, returnByValue=True)["result"]["value"]
        asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
        for width, scheme in itertools.product((390, 1280), ("light", "dark")):
            overflow, brightness = rendered(browser, session, width, scheme)
            assert (overflow, brightness > 128) == (0, scheme == "light"), (width, scheme)
        messages = [e for e in browser.events if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
        messages += [e for e in browser.events if e["method"] == "Runtime.consoleAPICalled"]
    assert set(shown) == pictures
    assert min(shown.values()) > 200
    assert {url.split(":")[0] for url in asked} == {"file", "data"}
    assert messages == []
    assert facts["verified"] is True
    assert "Every file was read from end to end" in page


def test_sinks_their_tokens_and_large_dimensions_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text_run(open_folder(tmp_path / "run"), tmp_path / "model")
    page, facts = made(capsys, str(tmp_path / "run"))
    [row] = re.findall(
        r"First token: .*?</tr>\n<tr><td class=\"text\"><mark>(\w)</mark></td><td class=\"n\">(\d+)", page
    )
    assert row == ("I", "12")  # each of the 12 prompts begins with "Input"
    times = float(re.findall(r"<mark>I</mark></td><td class=\"n\">12</td><td class=\"n\">([\d.]+)", page)[0])
    assert times == pytest.approx(SINK, rel=0.2)
    assert f'<td class="n">{OUTLIER_DIMENSION}</td>' in page
    # Sinks are left out of the spectrum: normal noise in 32 dimensions fills them evenly.
    assert facts["taps"]["layer_1"]["effective_dimensions"] > 25
    assert (facts["tokens"], facts["padding"], facts["waited"]) == (1200, 0.25, 0.5)
    assert "50% of the steps waited for prompts to be read and tokenized" in page
    assert facts["hours"] == pytest.approx(100 / 3600)


@pytest.mark.parametrize(("kind", "taps"), [("local", ("layer_6",)), ("bucket", ("layer_6", "layer_30_norm"))])
def test_any_run_has_a_page(
    kind: str, taps: tuple[str, ...], tmp_path: Path, require: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    with folders(kind, tmp_path, require) as new_folder:
        folder = new_folder()
        finished_run(folder, [5, 0, 1], taps)
        page, facts = made(capsys, folder.url)
        assert facts["rows"] == facts["rows_sampled"] == 6
        assert ('id="tap_similarity"' in page) == (len(taps) > 1)
        assert "not verified yet" in page


@pytest.mark.parametrize(("positions", "mode"), [("last", "prefill"), ("all", "generate")])
def test_every_kind_of_positions_has_a_page(
    positions: str, mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text_run(open_folder(tmp_path / "run"), tmp_path / "model", positions, mode=mode)
    page, _ = made(capsys, str(tmp_path / "run"))
    assert f"positions stored: {positions}" in page


def test_the_page_does_not_tell_where_the_folder_lay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    text_run(open_folder(run), tmp_path / "model")
    (run / "tokenizer" / "tokenizer.json").write_text("{")  # whose error names the file
    page, facts = made(capsys, str(run))
    assert facts["run"] == str(run)
    assert "RUN_DIR/tokenizer/tokenizer.json" in page
    assert str(tmp_path) not in page


def test_an_unfinished_run_says_so_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text_run(open_folder(tmp_path / "run"), tmp_path / "model", skip=[2])
    page, facts = made(capsys, str(tmp_path / "run"))
    assert facts["findings"][0]["level"] == "bad"
    assert facts["findings"][0]["text"].startswith("Unfinished: 1 of 3 batches are missing")
    assert "UNFINISHED" in page
    text_run(open_folder(tmp_path / "none"), tmp_path / "model", skip=[1, 2, 3])
    assert made(capsys, str(tmp_path / "none"))[1]["rows"] == 0


def test_the_page_goes_to_the_path_of_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_run(open_folder(tmp_path / "run"), [5, 7])
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 0
    pictures = len(list(tmp_path.glob("page_*.png")))
    assert f"{tmp_path}/page_*.png: {pictures} figures" in capsys.readouterr().out
    assert (tmp_path / "page_coverage.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "run" / "report").exists()
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "page.pdf")]) == 2
    assert "must end in .html" in capsys.readouterr().err


def test_text_of_a_run_cannot_become_html(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = open_folder(tmp_path / "<script>alert(1)<")
    finished_run(folder, [5])
    assert "<script" not in made(capsys, folder.url)[0]


@pytest.mark.parametrize("total", [10, 8192, 8193, 1_000_003])
def test_sampled_rows_are_spread_bounded_and_distinct(total: int) -> None:
    index = choose_rows(total, 8192)
    assert len(index) == len(set(index.tolist())) <= 8192
    assert len(index) >= min(total, 8192) * 0.9
    assert 0 <= index.min() <= index.max() < total
    assert np.histogram(index, 4, (0, total))[0].min() >= len(index) // 5


@pytest.mark.parametrize("norms", [[0.0] * 4, [np.inf] * 4, [np.nan] * 4, [0.0, np.inf, np.nan, 3.0]], ids=str)
def test_norms_that_no_logarithm_can_show_are_left_out(norms: list[float]) -> None:
    from pod_job.report.figures import norms_by_position
    from pod_job.report.page import encoded

    rows = {"position": np.array([0, 0, 1, 1])}
    tap = TapMeasures("layer_1", np.array(norms), np.zeros(0), np.zeros((0, 0)))
    assert encoded(norms_by_position(Measures(Sample(np.arange(4), rows, 4), [tap], None)), "svg").endswith(b"</svg>\n")


def test_similarity_is_one_for_rotations_and_none_for_noise() -> None:
    from pod_job.report.sample import TapMeasures

    rng = np.random.default_rng(0)
    a, noise = rng.standard_normal((2, 400, 64))
    rotation = np.linalg.qr(rng.standard_normal((64, 64)))[0]
    centered = [rows - rows.mean(0) for rows in (a, 3 * a @ rotation, noise)]
    alike = similarity([TapMeasures("t", np.ones(400), np.ones(1), rows @ rows.T) for rows in centered])
    assert alike[0, 1] == pytest.approx(1, abs=1e-6)
    assert alike[0, 2] < 0.02  # with the biased estimator it would be above 0.1


def test_the_spectrum_is_that_of_the_covariance() -> None:
    rng = np.random.default_rng(0)
    for rows, width in ((500, 20), (20, 500)):
        values = rng.standard_normal((rows, width)) * np.linspace(1, 5, width)
        values -= values.mean(0)
        expected = np.sort(np.linalg.svd(values, compute_uv=False) ** 2)[::-1]
        np.testing.assert_allclose(spectrum(values), expected / expected.sum(), atol=1e-9)


def test_rates_add_up_to_the_tokens() -> None:
    points = [[0.0, 0], [10.0, 100], [60.0, 400]]
    timeline = Timeline(host=3, attempt="a", counters=("tokens",), points=points, phases={"checking": 0.0})
    moments, rates = speed([timeline], 0.0, 60.0)
    assert rates["3"].sum() * 60 / len(moments) == pytest.approx(400)
