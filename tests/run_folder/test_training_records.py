"""A training has ended when all its SAEs are in the folder, and lists that belong together are of one length."""

import json
from pathlib import Path

import pytest
from sae_samples import finish_training, random_sae, sae_shape
from sample_runs import finished_run

from pod_job.config.generate import Mode
from pod_job.errors import JobError
from pod_job.planning.training import is_complete
from pod_job.run_folder.layout import METADATA, METRICS, SAES_METADATA, sae_prefix
from pod_job.run_folder.training import MetricsPoint, MetricsRecord, SaeMetrics, read_metrics, write_metrics
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder
from pod_job.training.layouts.sae_lens import write_sae

MEASURED = SaeMetrics(loss=1.0, l0=2.0, explained_variance=0.5, dead=0.0)


@pytest.fixture
def trained(tmp_path: Path) -> Folder:
    folder = open_folder(tmp_path / "run")
    saes = {name: random_sae(sae_shape("topk")) for name in ("one", "two")}
    finish_training(folder, {name: write_sae(folder, sae_prefix(name), sae) for name, sae in saes.items()})
    return folder


@pytest.mark.parametrize("file", ["cfg.json", "sae_weights.safetensors"])
def test_a_training_that_has_ended_has_its_saes_or_says_which_is_missing(trained: Folder, file: str) -> None:
    assert is_complete(trained, Mode.train)
    trained.remove(sae_prefix("two") + file)
    with pytest.raises(JobError, match=rf"two/{file}: missing, .* remove {SAES_METADATA} to have it written from"):
        is_complete(trained, Mode.train)
    trained.remove(SAES_METADATA)
    assert not is_complete(trained, Mode.train)


def test_the_metadata_of_activations_is_none_of_a_training(trained: Folder, tmp_path: Path) -> None:
    trained.remove(SAES_METADATA)
    finished_run(open_folder(tmp_path / "other"), [5])
    trained.replace(METADATA, open_folder(tmp_path / "other").read(METADATA))
    assert not is_complete(trained, Mode.train)
    assert is_complete(trained, Mode.prefill)


def test_points_of_other_saes_than_are_named_are_refused(trained: Folder) -> None:
    write_metrics(trained, MetricsRecord(1, ["one"], [MetricsPoint(1, 8, 0.5, [MEASURED])]))
    assert read_metrics(trained) is not None
    record = json.loads(trained.read(METRICS))
    for names in ([], ["one", "two"]):
        trained.replace(METRICS, json.dumps(record | {"names": names}).encode())
        with pytest.raises(JobError, match=rf"{METRICS}: points has 1 SAEs at step 1, and names {len(names)}"):
            read_metrics(trained)
    with pytest.raises(ValueError, match="names 2"):
        MetricsRecord(1, ["a", "b"], [MetricsPoint(1, 8, 0.5, [MEASURED])])
