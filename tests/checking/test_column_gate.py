"""The gate holds `logprob` and `entropy` against the reference: right columns pass, and each fault is refused."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from pod_job.checking import reference
from pod_job.checking.gate_prompts import gate_prompts
from pod_job.checking.parity import compare, refusal
from pod_job.checking.shipping import ship_reference
from pod_job.checking.trial import Trial, try_program
from pod_job.config.load import load
from pod_job.extraction.feeding import feeding, step_rows
from pod_job.host.rendezvous import Host
from pod_job.models import decoder
from pod_job.models.mesh import make_mesh
from pod_job.models.token_facts import TokenFacts, token_facts
from pod_job.planning.inputs import Inputs, claim_run, read_inputs
from pod_job.programs import compile_program, load_model
from tools.tiny_model import write_tiny_model

HOST = Host(0, 1, "by-hand", None)
Facts = Callable[..., TokenFacts]


def of_logits(change: Callable[[jax.Array], jax.Array]) -> Facts:
    """Returns facts of changed logits."""

    def facts(normed: Any, tokens: Any, vocab: int, placement: Any, logits_of: Any) -> TokenFacts:
        return token_facts(normed, tokens, vocab, placement, lambda x: change(logits_of(x)))

    return facts


def of_facts(change: Callable[[TokenFacts], TokenFacts]) -> Facts:
    return lambda *arguments: change(token_facts(*arguments))


def cap_again(logits: jax.Array) -> jax.Array:
    return 6.0 * jnp.tanh(logits / 6.0)


def no_cap(logits: jax.Array) -> jax.Array:
    return 6.0 * jnp.arctanh(logits / 6.0)


FAULTS: dict[str, Facts] = {
    "no cap of logits": of_logits(no_cap),
    "logits capped twice": of_logits(cap_again),
    "logits 1% larger": of_logits(lambda logits: 1.01 * logits),
    "logits in bfloat16": of_logits(lambda logits: logits.astype(jnp.bfloat16).astype(jnp.float32)),
    "logs to base 2": of_facts(lambda facts: TokenFacts(*(fact / jnp.log(2.0) for fact in facts))),
    "one position late": of_facts(lambda facts: TokenFacts(*(jnp.roll(fact, 1, axis=1) for fact in facts))),
    "entropy of the token before": of_facts(lambda facts: facts._replace(entropy=jnp.roll(facts.entropy, 1, axis=1))),
    "across the border of prompts": of_facts(lambda facts: facts._replace(logprob=jnp.nan_to_num(facts.logprob))),
}


@contextmanager
def computed_by(facts: Facts) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "token_facts", facts)
        yield


def inputs_of(folder: Path, *more: str, family: str = "gemma2") -> Inputs:
    model = write_tiny_model(folder / family, family=family, layers=1)
    values = ["model.dtype=float32", "extract.layers=[0]", "extract.positions=all", "extract.dtype=float32"]
    values += ["extract.columns=[logprob,entropy]", "tasks=arc_sample", "tasks.limit=3", "extract.seq_len=128"]
    places = [f"model.path={model}", f"storage.run_dir={folder / f'run_{family}'}"]
    return read_inputs(load([*places, *values, "extract.too_long=head", *more]))


def try_out(inputs: Inputs) -> list[Trial]:
    """Returns the gate's trials by a program that is compiled here."""
    mesh = make_mesh(inputs.config.mesh, jax.devices()[:1])
    model, params = load_model(inputs, mesh)
    program = compile_program(inputs, model, params, feeding(step_rows(inputs.config, mesh), 0))
    return try_program(program, inputs.config.extract, gate_prompts(inputs))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    inputs = inputs_of(tmp_path_factory.mktemp("columns"))
    claim_run(inputs)
    return inputs


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("gemma2", []),
        ("granite", ["extract.positions=last"]),
        pytest.param("gpt_neox", ["extract.positions=every=2"], marks=pytest.mark.pod),
        ("qwen2", ["model.dtype=bfloat16"]),
    ],
    ids=str,
)
def test_right_columns_pass_by_every_reference(
    tmp_path: Path, family: str, more: list[str], monkeypatch: pytest.MonkeyPatch, torch_there: None
) -> None:
    inputs = inputs_of(tmp_path, *more, family=family)
    claim_run(inputs)
    trials = try_out(inputs)
    records = [compare(inputs, HOST, trials)]
    monkeypatch.setattr(reference, "torch_installed", lambda: False)
    if family in reference.COVERED:
        records.append(compare(inputs, HOST, trials))
    ship_reference(inputs)
    records.append(compare(inputs, HOST, trials))
    expected = [reference.TORCH, reference.BUILT_IN, reference.SHIPPED]
    assert [record.reference for record in records] == [expected[i] for i in (0, 2)] if len(records) == 2 else expected
    for record in records:
        assert record.passed, refusal(record)
        assert record.errors.keys() == {"layer_0", "logprob", "entropy"}
        limit = 1e-5 if inputs.config.model.dtype.value == "float32" else 0.1
        assert all(record.errors[column].largest < limit for column in ("logprob", "entropy"))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_refused_by_name(gemma: Inputs, fault: str, torch_there: None) -> None:
    with computed_by(FAULTS[fault]):
        trials = try_out(gemma)
    record = compare(gemma, HOST, trials)
    assert not record.passed
    assert refusal(record).startswith(("parity: logprob is ", "parity: entropy is "))
    assert " nats off the reference" in refusal(record) or "inf nats" in refusal(record)
    assert record.errors["layer_0"].largest < 1e-5
