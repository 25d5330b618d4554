"""The page of a training run has its numbers, curves and texts of latents, no scripts, and a browser shows it."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, opened
from sae_samples import LATENTS, random_sae, sae_shape
from sample_runs import identity

from pod_job.checkpoints.random_model import byte_tokenizer
from pod_job.commands.report import main
from pod_job.formats.records import encode
from pod_job.run_folder.identity import claim
from pod_job.run_folder.layout import EVALUATION, TOKENIZER, sae_prefix
from pod_job.run_folder.training import MetricsPoint, MetricsRecord, SaeMetrics, write_metrics
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder
from pod_job.training.contexts import AFTER, BEFORE, Contexts, write_contexts
from pod_job.training.evaluation import CrossEntropy, EvaluationRecord, SaeEvaluation
from pod_job.training.layouts.sae_lens import write_sae

WORDS = "the cat <b>sat</b> on the mat and looked at me"


@pytest.fixture(autouse=True)
def matplotlib_there(require: Callable[[bool, str], None]) -> None:
    require(importlib.util.find_spec("matplotlib") is not None, "matplotlib")


def trained_run(folder: Folder) -> None:
    """Makes a training run of one SAE, half of whose latents were active, on the letters of WORDS."""
    claim(folder, identity(10))
    write_sae(folder, sae_prefix("one"), random_sae(sae_shape("topk")))
    points = [MetricsPoint(step, 64 * step, 1.0 * step, [SaeMetrics(2.0 / step, 5.0, 0.5, 0.1)]) for step in (1, 2, 3)]
    write_metrics(folder, MetricsRecord(1, ["one"], points))
    tokenizer = byte_tokenizer()
    folder.replace(TOKENIZER, tokenizer.to_str().encode())
    ids = np.array(tokenizer.encode(WORDS, add_special_tokens=False).ids, np.int32)[: BEFORE + AFTER + 1]
    values = np.where(np.arange(LATENTS)[:, None] % 2 == 0, [[3.5, 1.25]], 0.0).astype(np.float32)
    tokens = np.broadcast_to(ids, (LATENTS, 2, BEFORE + AFTER + 1)).copy()
    write_contexts(folder, "one", Contexts(values, tokens, np.full(LATENTS, 0.25, np.float32)))
    loss = CrossEntropy(90, 3.0, 3.25, 8.0)
    measured = SaeEvaluation(
        name="one", rows=100, latents=LATENTS, l0=5.0, mse=1.0, explained_variance=0.875, cosine=0.9, dead=0.5,
        densities=[20, *[0] * 11, 20], cross_entropy=loss, recovered=loss.recovered,
    )  # fmt: skip
    record = EvaluationRecord(
        format=1, model="m", documents="held-out.jsonl", skipped=0, seq_len=32, dtype="float32", saes=[measured],
        versions={}, measured="now",
    )  # fmt: skip
    folder.replace(EVALUATION, encode(record))


def test_a_training_run_has_a_page_with_the_texts_of_its_latents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = open_folder(tmp_path / "run")
    trained_run(folder)
    assert main([folder.url, "--latents", "10", "--json"]) == 0, capsys.readouterr().err
    facts = json.loads(capsys.readouterr().out)
    page = folder.read("report/index.html").decode()
    assert {path.stem for path in (tmp_path / "run" / "report").glob("*.png")} == {"curves", "densities"}
    assert (facts["steps"], facts["saes"][0]["shown"]) == (3, 10)
    assert page.count('class="latent"') == 10
    assert WORDS[BEFORE] in page
    assert "<b>sat" not in page
    assert "<script" not in page
    assert "95.00%" in page  # recovered
    assert str(tmp_path) not in page
    assert main([folder.url, "--latents", "1000"]) == 0
    assert folder.read("report/index.html").decode().count('class="latent"') == LATENTS // 2


def test_a_browser_shows_a_latent_that_an_address_names(tmp_path: Path, require: Callable[[bool, str], None]) -> None:
    require(CHROMIUM is not None, "chromium")
    folder = open_folder(tmp_path / "run")
    trained_run(folder)
    assert main([folder.url]) == 0
    with opened(tmp_path / "run" / "report" / "index.html", tmp_path / "profile") as (browser, session):

        def value_of(expression: str) -> object:
            answer = browser.call("Runtime.evaluate", session, expression=expression, returnByValue=True)
            return answer["result"]["value"]

        value_of("location.hash = 'sae-0-6'")
        assert value_of("document.querySelector('.latent:target b').textContent") == "latent 6"
        links = "[...document.querySelectorAll('.words a')].every(a => document.querySelector(a.getAttribute('href')))"
        assert value_of(links) is True
        assert value_of("document.images.length") == 2
        assert value_of("window.find('looked')") is (len(WORDS) <= BEFORE + AFTER + 1)
        asked = {e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"}
    assert {url.split(":")[0] for url in asked} == {"file", "data"}


def test_values_of_any_size_are_drawn() -> None:
    from pod_job.report.training_page import curves

    extreme = (1e308, -1e308, float("inf"), float("nan"), 5e-324, 2.0)
    points = [MetricsPoint(step, step, 1.0, [SaeMetrics(*[x] * 4)]) for step, x in enumerate(extreme, 1)]
    figure = curves(MetricsRecord(1, ["$\\frac{$"], points))
    figure.canvas.draw()
    assert [line.get_ydata()[-1] for axes in figure.axes for line in axes.get_lines()] == [2.0] * 4


@pytest.mark.parametrize("losses", [(264.0, 258.0, 251.5), (2.0, 0.5, 0.02), (0.0317, 0.0311, 0.0308), (9e4, 3e3, 7.0)])
def test_ticks_of_curves_are_plain_numbers_and_no_two_are_alike(losses: tuple[float, ...]) -> None:
    from pod_job.report.training_page import curves

    points = [
        MetricsPoint(step, step, 1.0, [SaeMetrics(loss, 16.0 + step / 9, 0.5, 0.1)])
        for step, loss in enumerate(losses, 1)
    ]
    figure = curves(MetricsRecord(1, ["one"], points))
    figure.canvas.draw()
    for axes in figure.axes:
        low, high = axes.get_ylim()
        shown = [
            label.get_text()
            for label in axes.get_yticklabels(which="both")
            if label.get_text() and low <= label.get_position()[1] <= high
        ]
        assert len(shown) > 1
        assert len(set(shown)) == len(shown)
        for text in shown:
            float(text.replace(",", "").replace("\N{MINUS SIGN}", "-"))
