"""Log probability and entropy beside the vectors are Hugging Face's, packed and on meshes, in chunks of positions."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from local_run import run_here

from pod_job.checking.consent import Consent
from pod_job.checking.recompute import recompute
from pod_job.checking.verify import verify
from pod_job.config.load import load
from pod_job.errors import JobError
from pod_job.finishing.shuffle import shuffle
from pod_job.formats.rows_table import Rows
from pod_job.models import token_facts
from pod_job.models.layer_attention import Tokens
from pod_job.models.placement import Placement
from pod_job.reading.dataset import ActivationDataset
from tools.tiny_model import write_tiny_model

pytestmark = pytest.mark.slow

LENGTHS = (20, 3, 33, 11, 1)
MESHES: dict[str, tuple[str, dict[str, Any]]] = {
    "replicated, tied, last rows": ("qwen2", {"mesh.data": 2, "extract.positions": "last"}),
    "fsdp, capped logits": ("gemma2", {"mesh.model": 2, "sharding": "fsdp"}),
    "tensor": ("llama", {"mesh.data": 2, "mesh.model": 2, "sharding": "tensor", "extract.positions": "every=2"}),
}


@pytest.mark.parametrize("name", MESHES)
def test_facts_are_hugging_faces(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, torch_there: None) -> None:
    from pod_job.checking.hf_reference import load_reference, run_reference

    family, changes = MESHES[name]
    model = write_tiny_model(tmp_path / "model", family, layers=2)
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 256, length).tolist() for length in LENGTHS]
    tasks = tmp_path / "tasks.jsonl"
    lines = [json.dumps({"task_id": f"t{i}", "text": ids}) + "\n" for i, ids in enumerate(documents)]
    tasks.write_text("".join(lines))
    monkeypatch.setattr(token_facts, "CHUNK_BYTES", 4 * 320 * 7)  # seven positions of a row, which do not divide it
    changes = {"extract.columns": "[entropy,logprob]", "extract.seq_len": 40, "extract.layers": "[0]"} | changes
    run_here(model, tmp_path / "run", tasks, changes)
    data = ActivationDataset(tmp_path / "run", 0)
    rows = data.rows(slice(None))
    assert rows["logprob"].dtype == rows["entropy"].dtype == np.float32
    reference = load_reference(model)
    logits = {
        f"t{i}": run_reference(reference, np.array([ids]), ["logits"])["logits"][0] for i, ids in enumerate(documents)
    }
    assert len(data) >= len(documents)
    for i in range(len(data)):
        of_sample = logits[rows["task_id"][i]].astype(np.float64)
        log_p = of_sample - np.log(np.exp(of_sample).sum(axis=-1, keepdims=True))
        at, token = rows["position"][i], rows["token_id"][i]
        assert rows["entropy"][i] == pytest.approx(-(np.exp(log_p[at]) * log_p[at]).sum(), abs=1e-4)
        if at == 0:
            assert np.isnan(rows["logprob"][i])
        else:
            assert rows["logprob"][i] == pytest.approx(log_p[at - 1, token], abs=1e-4)
    assert verify(tmp_path / "run").sound


def test_facts_and_roles_are_shuffled_with_their_rows(tmp_path: Path, torch_there: None) -> None:
    tasks = tmp_path / "tasks.jsonl"
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    tasks.write_text("".join(json.dumps({"text": messages}) + "\n" for messages in (chat, chat[:1] * 2, chat * 2)))
    model = write_tiny_model(tmp_path / "model", layers=1)
    changes = {"extract.columns": "[logprob]", "extract.layers": "[0]", "extract.roles": "[assistant,user]"}
    run_here(model, tmp_path / "run", tasks, changes | {"tasks.system": "be brief"})
    rows = ActivationDataset(tmp_path / "run", 0).rows(slice(None))
    assert (
        rows["role"].tolist()
        == ["user"] * 5 + ["assistant"] * 3 + ["user"] * 10 + (["user"] * 5 + ["assistant"] * 3) * 2
    )
    assert recompute(tmp_path / "run", 20, consent=Consent(follow_recorded=True))["layer_0"].largest < 1e-5
    shuffle(tmp_path / "run", tmp_path / "out", seed=1)
    before, after = (ActivationDataset(tmp_path / name, 0).rows(slice(None)) for name in ("run", "out"))

    def facts(rows: dict[str, np.ndarray]) -> list[tuple]:
        names = ("task_id", "position", "role", "logprob")
        return sorted(zip(*(np.nan_to_num(rows[n], nan=1) if n == "logprob" else rows[n] for n in names), strict=True))

    assert facts(before) == facts(after)
    assert before["position"].tolist() != after["position"].tolist()


def test_logits_of_all_positions_are_never_held() -> None:
    S, V, D = 4096, 50_000, 8
    shapes = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in (((1, S, D), jnp.float32), ((D, V), jnp.float32))]
    ids = jax.ShapeDtypeStruct((1, S), jnp.int32)

    def facts(normed: jax.Array, unembed: jax.Array, ids: jax.Array) -> token_facts.TokenFacts:
        tokens = Tokens(ids, ids, ids)
        return token_facts.token_facts(normed, tokens, V, Placement(), lambda x: jnp.einsum("bsd,dv->bsv", x, unembed))

    used = jax.jit(facts).lower(*shapes, ids).compile().memory_analysis()
    assert used.temp_size_in_bytes < 3 * token_facts.CHUNK_BYTES < 4 * S * V / 4


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["extract.positions=mean"], "extract.columns=[logprob] are of single tokens; leave them out"),
        (["mode=generate"], "extract.columns=[logprob] need mode=prefill; leave them out"),
    ],
)
def test_facts_that_cannot_be_are_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(JobError) as refused:
        load(["experiment=demo", "storage.run_dir=x", "extract.columns=[logprob]", *overrides])
    assert str(refused.value).startswith(says)


def test_rows_that_differ_in_facts_alone_describe_the_same() -> None:
    columns = {
        "task_id": np.array(["a"], object),
        **{name: np.array([1]) for name in ("sample_idx", "position", "token_id")},
    }
    flags = {name: np.array([False]) for name in ("special", "sink", "nonfinite")}
    rows = [Rows(**columns, **flags, timestamp="t", logprob=np.array([x], np.float32)) for x in (-1.0, -1.0001)]
    assert rows[0].describes_same(rows[1])
