"""The table of cases: what each answers, the workload and its variants, and the values that are wanted."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tools.bench.results import Results

EMULATOR, GPU, LIBTPU = "a bucket emulator", "a GPU", "libtpu"
BUCKET = "bench"
"""In the emulator, while a case that needs it is measured."""
FORWARD = " forward"
LARGE_MODEL = "runs/models/random-qwen2.5-0.5b"

Option = str | int | bool | Sequence[int]


@dataclass(frozen=True)
class Figure:
    """A number that a case is measured for: a metric of a variant, or its ratio to another, and the value wanted.

    Attributes:
        variant: "" stands for the variant that has most of the metric.
        over: the variant that the metric is divided by.
        over_metric: the metric that it is divided by, of the same variant where `over` is not given.
    """

    name: str
    variant: str
    metric: str
    over: str = ""
    over_metric: str = ""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def wanted(self) -> str:
        bounds = (("at most", self.at_most), ("at least", self.at_least))
        return "".join(f" (wanted: {word} {bound:g})" for word, bound in bounds if bound is not None)

    def value(self, case: str, results: Results) -> float | None:
        """Returns the median over rounds, whose runs follow each other; None where something was not measured."""
        if not self.variant:
            return max(
                (results.median(case, name, self.metric) or 0.0 for name in results.variants(case)), default=None
            )
        costs = results.costs(case, self.variant, self.metric)
        if self.over or self.over_metric:
            under = results.costs(case, self.over or self.variant, self.over_metric or self.metric)
            costs = [cost / other for cost, other in zip(costs, under, strict=False)]
        return statistics.median(costs) if costs else None


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        workload: the module in tools.bench.workloads.
        unit: of the amount of work; costs are given for one.
        variants: ways to do the work; others are compared with the first.
        options: of the workload, where they differ from its defaults.
        peers: variant -> environment (tools.peers); "inputs" stands for the process that makes the inputs.
        needs: of all variants; those with a bucket in their names need the emulator as well.
        on_page: docs/benchmarks.md shows it.
        limit_s: the longest that an answer may take, preparation included.
    """

    name: str
    question: str
    workload: str
    unit: str
    variants: Sequence[str]
    options: Mapping[str, Option] = field(default_factory=dict)
    figures: Sequence[Figure] = ()
    peers: Mapping[str, str] = field(default_factory=dict)
    needs: Sequence[str] = ()
    rounds: int = 3
    on_page: bool = False
    limit_s: float = 300.0

    def needs_of(self, variant: str) -> list[str]:
        return [*self.needs, *([EMULATOR] if "bucket" in variant else [])]

    @property
    def all_needs(self) -> list[str]:
        """Requirements of a case beside this environment, for people and to serve it."""
        needs = [need for variant in self.variants for need in self.needs_of(variant)]
        return [*dict.fromkeys([*needs, *(f"the environment {peer}" for peer in self.peers.values())])]


WAYS = ("ours", "hugging_face", "transformer_lens", "nnsight", "sae_lens", "document")
WAY_PEERS = {
    **{way: way.replace("_", "-") for way in WAYS[1:4]},
    "sae_lens": "trainers",
    **dict.fromkeys(("document", "inputs"), "hugging-face"),
}
TAPS = {"one-tap": [12], "four-taps": [6, 12, 18, 24]}
BESIDE_TORCH = ("ours", "ours forward", "hugging_face", "hugging_face forward", "jax_products", "torch_products")
BESIDE_TORCH_FIGURES = (
    Figure("ours, times as fast as torch", "hugging_face", "wall_s", "ours", at_least=1.5),
    Figure("the same of forward passes alone", "hugging_face forward", "wall_s", "ours forward"),
    Figure("the same by CPU seconds", "hugging_face", "cpu_s", "ours"),
    Figure("with files / forward pass alone", "ours", "wall_s", "ours forward", at_most=1.05),
    Figure("with files / forward pass alone, CPU seconds", "ours", "cpu_s", "ours forward"),
)
LARGE = {"model": LARGE_MODEL, "layers": [6, 12, 18, 23], "prompts": 44}
BFLOAT16 = {"dtype": "bfloat16", "stored": "bfloat16"}
ON_GPU = {"device": "gpu", "prompts": 2000, "rows": 32, "torch_prompts": 64, "save_prompts": 64, "writers": 8}
READERS = ("ours", "memory_map", "datasets", "safe_open")
SLOW_READERS = tuple(Figure(f"{name} / ours", name, "wall_s", "ours", at_least=10) for name in READERS[2:])
LOADS = [
    f"{source}, {split}"
    for source in ("folder", "bucket", "converted", "converted bucket")
    for split in ("1, replicated", "4, fsdp", "4, tensor")
]
MEMORY_SIZES = {"writer": (4, 8, 16), "reader": (4, 8, 16), "shuffle": (4, 8, 16), "merge": (1_000, 4_000, 100_000)}
MEMORY = [f"{name} {size}" for name, sizes in MEMORY_SIZES.items() for size in sizes]
STEPS = ("Qwen2.5-0.5B, replicated", "Qwen2.5-0.5B, 80 layers", "Qwen2.5-7B, fsdp")
GATES = [f"{way}, {length}" for length in (1024, 8192) for way in ("torch", "NumPy")]
DOCUMENTS = (1_000, 100_000, 10_000_000)
GROWTH = Figure("10 N prompts / N prompts", "10 N", "peak_bytes", "1 N", at_most=1.1)

CASES = [
    *(
        Case(
            *(f"extract-{taps}-{positions}", f"{taps.replace('-', ' ')}, {positions}", "extraction", "token", WAYS),
            {"layers": layers, "positions": positions},
            peers=WAY_PEERS,
            rounds=2,
            on_page=True,
        )
        for positions in ("all", "last")
        for taps, layers in TAPS.items()
    ),
    Case(
        *("read", "a shuffled epoch of a million rows from the page cache, beside other formats", "reading", "GB"),
        [*READERS, "sae_lens"],
        figures=(Figure("ours / memory map", "ours", "wall_s", "memory_map", at_most=1.3), *SLOW_READERS),
        peers={"sae_lens": "trainers"},
        on_page=True,
    ),
    Case(
        *("checks", "an epoch from the page cache with every byte checked, and without", "reading", "GB"),
        ("ours", "unchecked"),
        figures=(
            Figure("checked / unchecked, CPU seconds", "ours", "cpu_s", "unchecked", at_most=1.2),
            Figure("checked / unchecked", "ours", "wall_s", "unchecked"),
        ),
    ),
    *(
        Case(
            *(f"large-{name}", f"a model of Qwen2.5-0.5B's shape in {question}, beside torch", "extraction", "token"),
            *(BESIDE_TORCH, LARGE | options, BESIDE_TORCH_FIGURES),
            needs=needs,
            limit_s=600,
        )
        for name, question, options, needs in (
            ("float32", "float32 on this CPU", {"stored": "float32"}, ()),
            ("bfloat16", "bfloat16 on this CPU", BFLOAT16, ()),
            ("gpu", "bfloat16 on a GPU", BFLOAT16 | ON_GPU, (GPU,)),
        )
    ),
    Case(
        *("gate", "the parity gate of a 0.5B model with 24 taps, from its start to the verdict", "gate", "gate", GATES),
        figures=[
            figure
            for name in GATES
            for figure in (
                Figure(f"{name}: seconds", name, "wall_s", at_most=10),
                Figure(f"{name}: CPU seconds", name, "cpu_s", at_most=20),
                Figure(f"{name}: bytes grown", name, "grown_bytes"),
            )
        ],
        rounds=2,
        limit_s=900,
    ),
    Case(
        *("generate", "generation with a cache beside the document's loop", "generation", "token"),
        ("four taps", "no taps", "loop of ours", "loop of torch", "calls"),
        figures=(
            Figure("token 256 / token 16", "calls", "token_256_s", over_metric="token_16_s", at_most=1.2),
            Figure("document's loop, our model / ours", "loop of ours", "wall_s", "four taps", at_least=10),
            Figure("document's loop, torch / ours", "loop of torch", "wall_s", "four taps", at_least=10),
            Figure("four taps / no taps", "four taps", "wall_s", "no taps", at_most=1.05),
            Figure("four taps / no taps, CPU seconds", "four taps", "cpu_s", "no taps"),
        ),
    ),
    Case(
        *("generate-arc", "answers to ARC prompts of mixed length, beside Hugging Face", "arc_generation", "token"),
        ("four taps", "no taps", "hugging face"),
        figures=(
            Figure("Hugging Face / ours, without taps in both", "hugging face", "wall_s", "no taps", at_least=3),
            Figure("four taps / no taps", "four taps", "wall_s", "no taps", at_most=1.05),
        ),
        limit_s=900,
    ),
    Case(
        *("input", "documents read, tokenized and packed on one core and on two, beside datasets as a stream", "input"),
        *("million tokens", [f"{way}, {cores}" for way in ("ours", "datasets") for cores in ("1 core", "2 cores")]),
        figures=(
            Figure("datasets / ours, CPU seconds of a token", "datasets, 1 core", "cpu_s", "ours, 1 core", at_least=1),
            Figure("one core / two", "ours, 1 core", "wall_s", "ours, 2 cores", at_least=1.7),
            Figure("padding", "ours, 1 core", "padding", at_most=0.02),
        ),
        on_page=True,
    ),
    Case(
        *("train", "text to a trained SAE, beside SAELens' runner; starts are left out", "training", "token"),
        ["ours", "sae_lens", "ours bfloat16", "sae_lens bfloat16"],
        figures=(
            Figure("SAELens / ours by their defaults, CPU seconds", "sae_lens", "cpu_s", "ours bfloat16", at_least=1.5),
            Figure("both in float32", "sae_lens", "cpu_s", "ours", at_least=1.5),
            Figure("both in bfloat16", "sae_lens bfloat16", "cpu_s", "ours bfloat16", at_least=1.5),
        ),
        rounds=2,
        on_page=True,
        limit_s=900,
    ),
    Case(
        *("input-start", "opening a run of few and of many documents, the first time and again", "input", "start"),
        [f"{way} {count:,} documents" for way in ("start", "again") for count in DOCUMENTS],
        figures=(
            Figure("bytes held, 10,000,000 documents", "again 10,000,000 documents", "grown_bytes", at_most=200e6),
            Figure("seconds, 10,000,000 documents again", "again 10,000,000 documents", "wall_s", at_most=5),
        ),
        rounds=1,
        limit_s=900,
    ),
    Case(
        *(
            "input-bytes",
            "bytes that a host reads over its share of the documents' bytes, the worst host",
            "input",
            "GB",
        ),
        *([f"{hosts} hosts" for hosts in (1, 4, 16)], {"documents": 12_000}),
        figures=[Figure(f"of {n} hosts", f"{n} hosts", "of_share", at_most=1.1) for n in (1, 4, 16)],
        rounds=1,
    ),
    Case(
        *("load", "loading 2 GB on one host, and on four that share it; the worst host of each", "loading", "load"),
        LOADS,
        figures=(Figure("peak over share, the worst of all", "", "over_share", at_most=1.3),),
        rounds=1,
    ),
    Case(
        *("job-start", "a whole job on few and on many documents: its start and memory", "documents", "start"),
        [f"{way}{count:,} documents" for way in ("", "again ") for count in DOCUMENTS],
        figures=[
            Figure(f"again: {count:,} / 1,000, {of}", f"again {count:,} documents", metric, "again 1,000 documents")
            for count in DOCUMENTS[1:]
            for of, metric in (("start", "start_s"), ("CPU seconds", "cpu_s"), ("peak", "peak_bytes"))
        ],
        rounds=1,
        limit_s=1800,
    ),
    *(
        Case(
            *(f"memory-{mode}", "whether a job's memory grows with its prompts", "job_memory", "row"),
            *(("1 N", "10 N"), {"mode": mode}, (GROWTH,)),
            rounds=1,
            limit_s=7200,
        )
        for mode in ("prefill", "generate")
    ),
    Case(
        *("step", "the step on a v5e-64 as the TPU compiler sees it, and compiling it", "step", "compilation", STEPS),
        figures=(
            Figure("0.5B: seconds of a step", STEPS[0], "step_s", at_most=0.044),
            Figure("7B: share of the chips' peak", STEPS[2], "mfu", at_least=0.86),
            Figure("compile time, 80 layers / 24", STEPS[1], "compile_s", STEPS[0], at_most=1.1),
            Figure("compile time, 80 layers / 24, CPU seconds", STEPS[1], "cpu_s", STEPS[0]),
        ),
        needs=(LIBTPU,),
        rounds=1,
        limit_s=900,
    ),
    Case(
        *("storage-write", "committed batches of four taps beside plain files, and parts of it", "storage", "GB"),
        [f"write {way}" for way in ("plain", "folder", "bucket", "statistics", "crc32c", "rows")],
        figures=(
            Figure("folder: CPU seconds of a GB", "write folder", "cpu_s", at_most=0.6),
            Figure("bucket / folder, CPU seconds", "write bucket", "cpu_s", "write folder"),
        ),
    ),
    Case(
        *("storage-cold", "a shuffled epoch from a cold disk, beside files read in order", "reading", "GB"),
        *([*READERS, "in_order"], {"cold": True}),
        (Figure("disk / ours", "in_order", "wall_s", "ours", at_least=0.8), *SLOW_READERS),
    ),
    Case(
        *("storage-bucket", "a shuffled epoch from a bucket, beside its objects read whole", "reading", "GB"),
        *(("bucket", "bucket unchecked", "bucket objects"), {"rows": 500_000, "bucket": True}),
        (
            Figure("whole objects / ours", "bucket objects", "wall_s", "bucket", at_least=0.8),
            Figure("checked / unchecked, CPU seconds", "bucket", "cpu_s", "bucket unchecked", at_most=1.1),
        ),
    ),
    Case(
        *("storage-compact", "a cold epoch of small batches, before and after compacting, and compacting"),
        *("storage", "GB"),
        [f"{name} {place}" for place in ("folder", "bucket") for name in ("loose", "compacted", "compacting")],
        figures=[
            Figure(f"loose / compacted, {place}", f"loose {place}", "wall_s", f"compacted {place}")
            for place in ("folder", "bucket")
        ],
    ),
    Case(
        *("storage-memory", "memory of writer, reader, shuffle, merge; time of a merge", "storage", "batch", MEMORY),
        {"sizes": [4, 8, 16]},
        figures=(
            Figure("metadata's share of the vectors", "writer 4", "of_vectors", at_most=0.01),
            Figure("merge of 100,000 batches: seconds for one", "merge 100000", "wall_s", at_most=0.0006),
        ),
        rounds=1,
        limit_s=1800,
    ),
]
