"""A stranger's model runs no code here, and nobody is asked whether it may; pickled weights are not opened.

They were seen to fail: with `trust_remote_code=True`, or without the argument, in `prompts/tokenizer.py`; with it in
`checking/hf_reference.py`; and, of pickled weights, pytorch_model.bin with `use_safetensors=None` there, and all three
where `checkpoints/huggingface.py` gives files of these endings to pickle.
"""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pod_job.checkpoints.checkpoint import read_checkpoint
from pod_job.checkpoints.convert import convert
from pod_job.errors import JobError
from pod_job.models.arch import read_arch_file
from pod_job.prompts.tokenizer import load_tokenizer
from tools.tiny_model import write_tiny_model

CODE = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nPath({ran!r}).touch()\nclass Own: pass\n"
AUTO_MAP = {
    "AutoConfig": "own.Own",
    "AutoModelForCausalLM": "own.Own",
    "AutoTokenizer": ["own.Own", "own.Own"],
}


class Terminal(io.StringIO):
    """A terminal at which somebody would say yes; `asked` counts how often."""

    asked = 0

    def readline(self, *_: object) -> str:
        self.asked += 1
        return "y\n"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    stdin = Terminal()
    monkeypatch.setattr(sys, "stdin", stdin)
    return stdin


@pytest.fixture
def hostile(tmp_path: Path, terminal: Terminal) -> Callable[..., Path]:
    """Returns the tiny model with code of its own, under a model type that transformers does not know, or does."""

    def make(*, known: bool) -> Path:
        model = write_tiny_model(tmp_path / "model")
        (model / "own.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
        for name, changes in (
            ("config.json", {"model_type": "own"}),
            ("tokenizer_config.json", {"tokenizer_class": "Own"}),
        ):
            content = json.loads((model / name).read_text()) | {"auto_map": AUTO_MAP} | ({} if known else changes)
            (model / name).write_text(json.dumps(content))
        return model

    return make


@pytest.mark.parametrize("known", [True, False])
def test_nothing_of_a_model_runs_and_nobody_is_asked(
    hostile: Callable[..., Path], known: bool, tmp_path: Path, terminal: Terminal
) -> None:
    model = hostile(known=known)
    for read in (
        lambda: read_arch_file(model / "config.json"),
        lambda: load_tokenizer(model),
        lambda: convert(str(model), str(tmp_path / "out")),
    ):
        try:
            read()
        except JobError as error:
            assert "\n" not in str(error)  # noqa: PT017  # it may load, too: what counts is what has not run
    assert terminal.asked == 0
    assert not (tmp_path / "ran").exists()
    assert not (model / "ran").exists()


def test_the_reference_runs_no_code_either(
    hostile: Callable[..., Path], tmp_path: Path, terminal: Terminal, torch_there: None
) -> None:
    from pod_job.checking.hf_reference import load_reference

    with pytest.raises(ValueError, match=r"trust_remote_code|does not recognize"):
        load_reference(hostile(known=False))
    assert terminal.asked == 0
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_refused(name: str, tmp_path: Path, torch_there: None) -> None:
    from pod_job.checking.hf_reference import load_reference

    model = write_tiny_model(tmp_path / "model")
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % bytes(tmp_path / "ran"))
    with pytest.raises(JobError, match=r"has neither model\.safetensors nor .*convert it to safetensors"):
        read_checkpoint(model)
    with pytest.raises(OSError, match="safetensors"):
        load_reference(model)
    assert not (tmp_path / "ran").exists()
