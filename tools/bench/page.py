"""Results as tables, and those beside other programs as the page docs/benchmarks.md."""

import statistics
from collections.abc import Sequence

from tools.bench.cases import CASES, Case
from tools.bench.results import Results

HEAD = """# Benchmarks

Extraction, reading, text and training compared with other programs.

Made by `make bench` on {date}: {machine}, {versions}.

Every way runs in a process of its own that has loaded the model (and, for ours, compiled its step); rounds go through
all of them in turn, and figures are medians (rounds: {rounds}). Other programs may share the machine: CPU seconds say
more than wall seconds, and ratios more than either. *Spread* is that of wall times, largest less smallest, as a share.
"""
EXTRACTION = """
## Extraction, into files

SmolLM2-135M-Instruct in float32, ARC prompts. *Tokens* are those whose vectors are asked for; for `last`, all that must
be read for them. *Apart* is the largest relative distance (L2) of a stored vector from the one that Hugging Face's
hooks store: bfloat16 rounds each number by up to 0.4%. *Lines* is what a user writes, without imports: for ours one
command. *MB on disk* is for all tokens. *Filled* is the share of computed positions that are tokens.
"""
NOTES = """
- Ours also writes what the others do not: a table of task, position and token of each row, checksums, statistics and a
  commit record for each batch.
- SAELens cuts contexts of 128 tokens from the concatenated prompts, so that its vectors differ near a prompt's start
  (only the first context is compared), and it has no last position of a prompt; it makes one run for each tap, and
  stores float32.
- The document's way is that of the [extraction document](document.md) that this program began with: a full pass and
  logits for each position (timed on every 64th); its pickles hold float32.
{failures}- {behind}
- {memory}
"""
READING = """
## Reading: a shuffled epoch

A million vectors of width 896 in bfloat16, one tap, in batches of 4,096 from the page cache; of slow readers 8 batches.

{table}
- A memory map gathers single rows: in the page cache that is fast, from a cold disk or a bucket it is one request for
  each row. Ours reads blocks of 1,024 rows and shuffles windows of 65,536 rows in memory, wherever the run is stored.
- Hugging Face datasets has no bfloat16: its column is float16. SAELens has float32 alone and shuffles 32,768 rows.
- {behind}
"""
OTHERS = """
## {heading}

{about}

{table}
{figures}"""
ABOUT = {
    "input": (
        "Text: read, tokenized and packed",
        "English words in documents with the lengths of web text, SmolLM2's tokenizer, rows of 1,024 tokens; no device "
        "computes. *datasets* reads the same files as a stream and tokenizes in batches.",
    ),
    "train": (
        "Training: text to a trained SAE",
        "One TopK SAE of 4,096 latents (k=32) on layer 12 of SmolLM2-135M, contexts of 256 tokens, batches of 1,024 "
        "rows: `mode=train train.source=stream` and SAELens' `LanguageModelSAETrainingRunner`, in float32, its "
        "default, and in bfloat16, ours (the SAE's weights are float32 in both). Loading and compilation are left out. "
        "That the SAEs are as good is in [training.md](training.md).",
    ),
}
"""Heading and introduction of cases that are neither extraction nor reading."""
TITLES = {
    "hugging_face": "Hugging Face hooks, torch.save",
    "transformer_lens": "TransformerLens",
    "sae_lens": "SAELens",
    "ours bfloat16": "ours in bfloat16",
    "sae_lens bfloat16": "SAELens in bfloat16 (autocast)",
    "document": "the document's own way",
    "memory_map": "plain memory map",
    "datasets": "Hugging Face datasets",
    "safe_open": "safetensors.safe_open",
}
RATED = ("token", "batch")
"""Units of which the number in a second is shown; of others, the seconds for one."""
PERCENT = ("apart", "filled", "of_vectors", "mfu")
HEADINGS = {"peak_bytes": "peak MB", "bytes": "MB on disk"}


def title(name: str) -> str:
    return TITLES.get(name, name)


def shown(case: Case, results: Results) -> str:
    """Returns a case's table with all metrics, and its figures beside what is wanted of them."""
    columns = [metric for metric in results.metrics(case.name) if metric not in ("wall_s", "cpu_s", "amount")]
    lines = [f"{case.name}: {case.question}", table(case, results, columns), *figure_lines(case, results)]
    return "\n".join(lines) + "\n" + failures([case], results)


def figure_lines(case: Case, results: Results) -> list[str]:
    """Returns the figures of a case beside what is wanted of them."""
    values = [(figure, figure.value(case.name, results)) for figure in case.figures]
    return [
        f"{figure.name}: {'not measured' if value is None else f'{value:.4g}'}{figure.wanted}"
        for figure, value in values
    ]


def table(case: Case, results: Results, columns: Sequence[str]) -> str:
    """Returns costs, their ratios to the first variant's and medians of the metrics `columns`."""
    rated, plural = case.unit in RATED, f"{case.unit}{'es' if case.unit == 'batch' else 's'}"
    costs = (f"{plural}/s", f"{plural} per CPU s") if rated else (f"s/{case.unit}", f"CPU s/{case.unit}")
    columns = [metric for metric in columns if metric in results.metrics(case.name)]
    headings = [HEADINGS.get(metric, metric.replace("_bytes", " MB").replace("_", " ")) for metric in columns]
    head = ["way", *costs, f"{case.variants[0]} / this, per CPU s", "spread", *headings]
    rows = [head, ["---"] * len(head)]
    first = results.median(case.name, case.variants[0], "cpu_s")
    for name in results.variants(case.name):
        wall, cpu = (results.median(case.name, name, metric) for metric in ("wall_s", "cpu_s"))
        if not wall or cpu is None:
            rows.append([title(name), *["-"] * (len(head) - 1)])
            continue
        walls = results.costs(case.name, name, "wall_s")
        cells = [written(1 / cost if rated and cost else cost) for cost in (wall, cpu)]
        cells += [f"{cpu / first:.2f}" if first else "", f"{(max(walls) - min(walls)) / wall:.0%}"]
        rows.append(
            [title(name), *cells, *(cell(results.values(case.name, name, metric), metric) for metric in columns)]
        )
    return "".join("| " + " | ".join(cells) + " |\n" for cells in rows)


def cell(values: Sequence[float], metric: str) -> str:
    """Returns the median; of distances and peaks, the largest."""
    if not values:
        return ""
    value = max(values) if metric in ("peak_bytes", "apart") else statistics.median(values)
    if metric in PERCENT:
        return f"{value:.2%}"
    return f"{value / 1e6:,.2f}" if metric.endswith("bytes") else written(value)


def written(value: float) -> str:
    """Returns three digits, or a whole number from 100 on."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def page(results: Results) -> str:
    """Returns docs/benchmarks.md, of the cases on it that were measured."""
    cases = [case for case in CASES if case.on_page and results.values(case.name, case.variants[0], "wall_s")]
    extractions = [case for case in cases if case.workload == "extraction"]
    records = [record for record in results.records if record.case in {case.name for case in cases}]
    versions = dict.fromkeys(f"{name} {version}" for record in records for name, version in record.versions.items())
    head = HEAD.format(
        date=max(record.date for record in records),
        machine="; ".join(dict.fromkeys(record.machine for record in records if record.machine)),
        versions=", ".join(versions),
        rounds=max(len(record.values) for record in records),
    )
    columns = ("peak_bytes", "bytes", "apart", "lines", "filled")
    parts = [head, EXTRACTION * bool(extractions)]
    parts += [f"\n### {case.question}\n\n{table(case, results, columns)}" for case in extractions]
    if extractions:
        notes = {"failures": failures(extractions, results), "behind": behind(extractions, results)}
        parts.append(NOTES.format(memory=memory(extractions, results), **notes))
    for case in cases[len(extractions) :]:
        if case.name not in ABOUT:
            parts.append(READING.format(table=table(case, results, ("bytes",)), behind=behind([case], results)))
            continue
        heading, about = ABOUT[case.name]
        figures = "".join(f"- {line}\n" for line in figure_lines(case, results))
        parts.append(OTHERS.format(heading=heading, about=about, table=table(case, results, ()), figures=figures))
    return "".join(parts)


def failures(cases: Sequence[Case], results: Results) -> str:
    """Returns lines that say why a variant has no figures."""
    reasons = {(name, case.question): results.failure(case.name, name) for case in cases for name in case.variants}
    return "".join(f"- No figures: {title(name)} ({case}): {why}.\n" for (name, case), why in reasons.items() if why)


def others(case: Case, results: Results) -> list[str]:
    """Returns the alternatives that have figures."""
    return [name for name in case.variants[1:] if name != "document" and results.values(case.name, name, "amount")]


def behind(cases: Sequence[Case], results: Results) -> str:
    """Returns where another way takes less CPU time than ours, in words."""
    faster = []
    for case in cases:
        ours = results.median(case.name, "ours", "cpu_s") or 0.0
        for name in others(case, results):
            theirs = results.median(case.name, name, "cpu_s")
            if theirs and theirs < ours:
                faster.append(f"{title(name)} ({case.question}: {ours / theirs:.2f} times as fast)")
    if not faster:
        return f"No way takes less CPU time for a {cases[0].unit} than ours."
    return f"Ours is behind {'; '.join(faster)}."


def memory(cases: Sequence[Case], results: Results) -> str:
    """Returns where ours has the higher peak, in words."""

    def peak(case: Case, name: str) -> float:
        return max(results.values(case.name, name, "peak_bytes"))

    most = max((peak(case, "ours") / peak(case, name) for case in cases for name in others(case, results)), default=0.0)
    if most <= 1:
        return "Ours has the lowest peak of memory in all of these tables."
    return (
        f"Ours takes more memory than the others, up to {most:.1f} times as much: it holds the weights of all layers, "
        "where torch maps the file and does not touch what lies behind the last tap, and the compiled step."
    )
