"""Parts of a run's identity from its inputs: model, tokenizer, generation.

Versions of packages are not part of it, but what they make of config.json (the architecture) and of texts (the token
probe) is: an upgrade that changes neither does not end a run.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from pod_job.checkpoints.checkpoint import Checkpoint, fingerprint, model_name, weights_content
from pod_job.checkpoints.locate import TOKENIZER_FILES, local_small_files
from pod_job.config.extract import ExtractConfig, Positions
from pod_job.config.generate import Mode
from pod_job.config.schema import JobConfig
from pod_job.config.tasks import OnBroken
from pod_job.models.arch import Arch
from pod_job.prompts.prompt import PromptRules
from pod_job.prompts.sources.sample import Sample
from pod_job.prompts.special import special_ids
from pod_job.prompts.tasks import Samples, Tasks
from pod_job.prompts.tokenizer import TokenizerFolder, end_tokens, has_vocabulary
from pod_job.prompts.tokens import usable_prompts
from pod_job.run_folder.architecture import arch_record
from pod_job.run_folder.identity import GenerateIdentity, ModelIdentity, TasksIdentity, TemplateIdentity

PACKAGES = ("transformers", "tokenizers", "jinja2", "sentencepiece")
"""Packages that make token ids of prompts, and an architecture of config.json."""
PROBES = (
    "The quick brown fox jumps over 13 lazy dogs.",
    "  two  spaces,\ttabs\r\nand\n\n\nline ends  ",
    "1234567890 3.14159 -42 1e-5 0xFF 12,345,678",
    "def f(x):\n    return {'a': [x**2 for _ in range(10)]}  # comment",
    "na\u00efve caf\u00e9 cafe\u0301 \u00df \u0130 \ufb01 \u2126 \u2460",
    "\u4f60\u597d\uff0c\u4e16\u754c \u3053\u3093\u306b\u3061\u306f \uc548\ub155 \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u0928\u092e\u0938\u094d\u0924\u0947",  # noqa: E501
    "\U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467 \u200b\ufeff\u00a0\u2028",
    "<s> </s> <|endoftext|> <|im_start|>user\nhi<|im_end|> <bos><eos> [INST] <unk>",
    "e.g. don't WE'LL I've ... --- ===== aaaaaaaaaaaaaaaa supercalifragilisticexpialidocious",
)
"""Texts in which versions of tokenizers have differed: spaces, digits, scripts, normal forms, control tokens."""
PROBED_SAMPLES = 32


def model_identity(
    dtype: str, arch: Arch, checkpoint: Checkpoint, name: str, recorded: ModelIdentity | None
) -> ModelIdentity:
    """Returns the part of the model that the vectors depend on.

    Args:
        recorded: that of the run, if there is one: of 0.1.0 it has the starts of tensors in place of checksums of
            files, and so has the result.
    """
    older = recorded is not None and recorded.weights is None and recorded.weights_fingerprint is not None
    weights = {} if older else weights_content(checkpoint)
    return ModelIdentity(
        name=model_name(name, checkpoint),
        family=arch.family,
        layers=arch.layers,
        hidden_dim=arch.hidden,
        dtype=dtype,
        weights=weights or None,
        weights_fingerprint=None if weights else fingerprint(checkpoint),
        architecture=arch_record(arch),
    )


def tasks_identity(config: JobConfig, tasks: Tasks, recorded: TasksIdentity | None) -> TasksIdentity:
    """Returns what of the tasks the vectors depend on; `recorded`: that of the run, which in 0.1.0 has no reasons."""
    by_reason = tasks.skipped and (recorded is None or recorded.skipped_by_reason is not None)
    return TasksIdentity(
        format=tasks.format.value,
        fingerprint=tasks.fingerprint,
        samples=len(tasks.samples),
        skipped=tasks.skipped,
        skipped_by_reason=dict(sorted(tasks.skipped_by_reason.items())) if by_reason else None,
    )


def recorded_positions(extract: ExtractConfig) -> str:
    """Returns the positions that are stored, as an override writes them."""
    number = extract.every if extract.positions is Positions.every else extract.sample
    return extract.positions.value if number is None else f"{extract.positions.value}={number}"


def generate_identity(config: JobConfig, directory: Path) -> GenerateIdentity | None:
    """Returns the settings by which completions are made; None where none are."""
    if config.mode is not Mode.generate:
        return None
    settings = asdict(config.generate)
    del settings["share_prefix"]  # tokens and vectors do not depend on it
    return GenerateIdentity(**settings, end_tokens=list(end_tokens(directory)))


def template_identity(config: JobConfig) -> TemplateIdentity | None:
    """Returns what chat templates get of the configuration; None where that is nothing."""
    system, values = config.tasks.system, config.tasks.template_values
    return TemplateIdentity(system, dict(values)) if system is not None or values else None


def tokenizer_files(directory: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file that the tokenizer and its chat template are made from, by name."""
    names = local_small_files(directory, TOKENIZER_FILES)
    return {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in names}


def token_probe(config: JobConfig, samples: Samples, folder: TokenizerFolder, template_date: date) -> str | None:
    """Returns the SHA-256 of what the installed packages make of PROBES and of prompts from all over the run.

    None where the run's prompts are token ids and nothing else asks for a tokenizer.
    """
    # The first ones of an indexed source: others may cost the reading of much that lies before them.
    last = len(samples) - 1 if samples.contents is not None else min(len(samples), PROBED_SAMPLES) - 1
    chosen = np.unique(np.linspace(0, last, PROBED_SAMPLES).astype(int)).tolist()
    probed = [sample for sample in samples.load(chosen) if isinstance(sample, Sample)]
    needed = config.mode is Mode.generate or config.extract.exclude or any(map(is_text, probed))
    if not needed or not has_vocabulary(folder.path):
        return None
    tokenizer, digest = folder.tokenizer, hashlib.sha256()
    for text in PROBES:
        ids = tokenizer(text, verbose=False)["input_ids"]
        digest.update(repr((list(ids), tokenizer.decode(ids))).encode(errors="surrogatepass"))
    digest.update(repr(sorted(special_ids(tokenizer))).encode())
    # A prompt that cannot be used is named, or skipped, by the host that needs it.
    rules = replace(PromptRules.of(config, template_date=template_date), on_broken=OnBroken.skip)
    for prompt in usable_prompts(tokenizer, probed, rules).prompts:
        digest.update(f"{prompt.sample.task_id} {prompt.sample.sample_idx} {prompt.token_ids.tolist()}".encode())
    return digest.hexdigest()


def is_text(sample: Sample) -> bool:
    return not isinstance(sample.prompt, np.ndarray)


def package_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Returns the versions of those packages that are installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
