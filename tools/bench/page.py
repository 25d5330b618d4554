"""The benchmarks as a page: medians over the rounds, ratios to ours, and what the differences come from."""

import os
import platform
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pod_job import __version__
from tools.bench.rounds import WORKLOADS
from tools.bench_extract import ROWS, SEQ_LEN

WAYS = Path(__file__).parent / "ways"
PACKAGES = {
    "transformer-lens": ("transformer-lens",),
    "nnsight": ("nnsight",),
    "sae-lens": ("sae-lens", "transformer-lens"),
    "hugging-face": ("torch", "transformers"),
}
TITLES = {
    "ours": "ours",
    "hugging_face": "Hugging Face hooks, torch.save",
    "transformer_lens": "TransformerLens",
    "nnsight": "nnsight",
    "sae_lens": "SAELens CacheActivationsRunner",
    "document": "the document's own way",
    "memory_map": "plain memory map",
    "hf_datasets": "Hugging Face datasets",
}
REFERENCE = "hugging_face"
READER_TITLES = TITLES | {"sae_lens": "SAELens ActivationsStore"}
HEAD = """# Benchmarks

Made by `make bench` on {date}: {cpus} CPU cores ({machine}), Python {python}, {versions}.

Every way runs in a process of its own that has loaded the model (and, of ours, compiled its step); rounds go through
all of them in turn, and figures are medians (rounds: {rounds}). Other programs may share the machine: CPU seconds say
more than wall seconds, and ratios more than either.
"""
EXTRACTION = """
## Extraction, through to files

SmolLM2-135M-Instruct in float32, {count} ARC prompts with {tokens:,} tokens. *Tokens* are those whose vectors are asked
for, of `last` all that must be read for them. *Apart* is the largest relative distance (L2) of a stored vector from
the one that Hugging Face's hooks stored: bfloat16 rounds each number by up to 0.4%. *Lines* is what a user writes,
without imports: of ours one command.
"""
NOTES = """
- Ours also writes what the others do not: a table of task, position and token of each row, checksums, statistics and a
  commit record for each batch.
- SAELens cuts equal contexts of 128 from all prompts in a row, so that its vectors are others near a prompt's start
  (those of the first context are compared), and has no last position of a prompt; it makes one run for each tap, and
  keeps float32.
- The document's way computes a full pass for each position (timed on every 64th) and computes logits with it; its
  pickles hold float32.
{failures}- {behind}
- {memory}
"""
READING = """
## Reading: shuffled batches

{rows:,} vectors of width {width} in batches of {batch:,}, one tap, from the page cache.
"""
READING_NOTES = """
- A memory map gathers single rows: in the page cache that is quick, from a cold disk or a bucket it is one request for
  each row. Ours reads blocks of 1,024 rows and shuffles windows of 65,536 rows in memory, wherever they lie.
- Hugging Face datasets has no bfloat16: its column is float16. SAELens has float32 alone and shuffles 32,768 rows.
- {behind}
"""


def versions(pythons: dict[str, str]) -> dict[str, str]:
    """What is measured, as installed."""
    found = {"ours": __version__, "jax": version("jax")}
    for name, python in pythons.items():
        program = f"from importlib.metadata import version; print(*map(version, {PACKAGES[name]!r}))"
        shown = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout.split()
        found |= {
            f"{package} (under SAELens)" if (name, package) == ("sae-lens", "transformer-lens") else package: number
            for package, number in zip(PACKAGES[name], shown, strict=True)
        }
    return found


def page(results: dict[str, Any]) -> str:
    parts = [
        HEAD.format(
            date=datetime.now(UTC).date().isoformat(),
            cpus=os.cpu_count(),
            machine=processor(),
            python=sys.version.split()[0],
            versions=", ".join(f"{name} {number}" for name, number in results["versions"].items()),
            rounds=results["settings"]["rounds"],
        )
    ]
    if found := workloads(results):
        parts.append(EXTRACTION.format(**results["prompts"]))
        total = results["prompts"]["tokens"]
        parts += [f"\n### {title}\n\n{extraction_table(ways, total)}" for title, ways in found.items()]
        parts.append(NOTES.format(failures=failures(found), behind=behind(found, total), memory=memory(found)))
    if reading := results.get("reading"):
        parts.append(READING.format(**reading) + "\n" + reading_table(reading))
        parts.append(READING_NOTES.format(behind=reading_behind(reading)))
    return "".join(parts)


def workloads(results: dict[str, Any]) -> dict[str, dict[str, list[Any]]]:
    """Of the results, those of extraction: title -> way -> answers."""
    return {title: results[title] for title in WORKLOADS if title in results}


def failed(answers: list[Any]) -> str | None:
    """Why there is no figure."""
    return next((answer["failed"] for answer in answers if "failed" in answer), None)


def extraction_table(ways: dict[str, list[Any]], total: int) -> str:
    """`total` tokens of the prompts; files of a way that stored fewer vectors are scaled up to those."""
    best = median(ways["ours"], "cpu_s") / ways["ours"][0]["tokens"]
    rows = []
    for name, answers in ways.items():
        if failed(answers):
            rows.append([TITLES[name], *["-"] * 6, str(lines_of(name))])
            continue
        tokens = answers[0]["tokens"]
        per_cpu = tokens / median(answers, "cpu_s")
        peak = max(answer["peak_bytes"] for answer in answers)
        cells = [f"{tokens / median(answers, 'wall_s'):,.0f}", f"{per_cpu:,.0f}", f"{1 / (best * per_cpu):.2f}"]
        cells += [f"{peak / 2**20:,.0f}", f"{median(answers, 'bytes') * total / tokens / 1e6:.2f}"]
        cells.append("" if name == REFERENCE else f"{max(answer['apart'] for answer in answers):.2%}")
        rows.append([TITLES[name], *cells, str(lines_of(name))])
    head = ["way", "tokens/s", "tokens per CPU s", "ours / this, per CPU s", "peak MiB", "MB on disk", "apart", "lines"]
    return table([head, *rows])


def reading_table(reading: dict[str, Any]) -> str:
    speeds = reading_speeds(reading)
    head = ["reader", "batches/s", "batches per CPU s", "ours / this, per CPU s", "MB on disk"]
    rows = [
        [
            READER_TITLES[name],
            f"{wall:.1f}",
            f"{cpu:.1f}",
            f"{speeds['ours'][1] / cpu:.2f}",
            f"{reading['answers'][name][0]['bytes'] / 1e6:.0f}",
        ]
        for name, (wall, cpu) in speeds.items()
    ]
    return table([head, *rows])


def reading_speeds(reading: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """reader -> batches per wall and per CPU second."""
    return {
        name: (answers[0]["batches"] / median(answers, "wall_s"), answers[0]["batches"] / median(answers, "cpu_s"))
        for name, answers in reading["answers"].items()
    }


def failures(found: dict[str, dict[str, list[Any]]]) -> str:
    """Lines of the notes that say why a way has no figures."""
    said = [
        f"{TITLES[name]} ({title}): {reason}"
        for title, ways in found.items()
        for name, answers in ways.items()
        if (reason := failed(answers))
    ]
    return "".join(f"- No figures: {line}.\n" for line in said)


def others(ways: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """What ours is held against: the alternatives that have figures."""
    return {name: found for name, found in ways.items() if name not in ("ours", "document") and not failed(found)}


def behind(found: dict[str, dict[str, list[Any]]], tokens: int) -> str:
    """Where another way takes less CPU time for a token than ours, in words; `tokens` of all prompts."""
    said = []
    for title, ways in found.items():
        ours = median(ways["ours"], "cpu_s") / ways["ours"][0]["tokens"]
        for name, answers in others(ways).items():
            theirs = median(answers, "cpu_s") / answers[0]["tokens"]
            if theirs < ours:
                said.append(f"{TITLES[name]} ({title}: {ours / theirs:.2f} times as fast)")
    verdict = f"Ours is behind {'; '.join(said)}." if said else "No way takes less CPU time for a token than ours."
    step = ROWS * SEQ_LEN
    filled = tokens / (-(-tokens // step) * step)
    return (
        f"{verdict} Ours computes whole steps of {ROWS} rows x {SEQ_LEN} positions, of which these prompts fill at "
        f"most {filled:.0%}, as those of a long run do at 95%, and the others what their batches hold, padding "
        "included; with 16 prompts, which fill 64%, ours was 0.8 to 1.0 times as fast as Hugging Face. A model four "
        "times as large: `python -m tools.bench_extract`, in [preflight.md](preflight.md#on-a-cpu)."
    )


def memory(found: dict[str, dict[str, list[Any]]]) -> str:
    """Where ours has the higher peak, in words."""
    peaks = [
        (max(answer["peak_bytes"] for answer in ways["ours"]), max(answer["peak_bytes"] for answer in answers))
        for ways in found.values()
        for answers in others(ways).values()
    ]
    more = [ours / theirs for ours, theirs in peaks if ours > theirs]
    if not more:
        return "Ours has the lowest peak of memory in all of these tables."
    return (
        f"Ours takes more memory than the others, up to {max(more):.1f} times as much. Of 1,240 MiB for one tap 530 "
        "are programs and libraries, 520 the weights of all layers in float32, where torch maps the file and does not "
        "touch what lies behind the last tap, 110 the compiled step and 60 its first run."
    )


def reading_behind(reading: dict[str, Any]) -> str:
    speeds = reading_speeds(reading)
    faster = [READER_TITLES[name] for name, (_, cpu) in speeds.items() if cpu > speeds["ours"][1]]
    if not faster:
        return "No reader takes less CPU time than ours."
    return f"Less CPU time than ours: {', '.join(faster)}, which copies a row once where ours copies it twice."


def lines_of(name: str) -> int:
    """Lines between the marks in the way's file that are neither empty nor comments; ours says its own number."""
    text = (WAYS / f"{name}.py").read_text()
    if "\nLINES = " in text:
        return int(text.partition("\nLINES = ")[2].split()[0])
    wanted = text.partition("# begin")[2].partition("\n")[2].partition("# end")[0]
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in wanted.splitlines())


def median(answers: list[Any], key: str) -> float:
    return statistics.median(answer[key] for answer in answers)


def table(rows: list[list[str]]) -> str:
    head, *rest = rows
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rest]) + "\n"


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()
