"""Reads the text of a program that XLA has compiled for TPU: its operations, how often each runs, and their cost.

XLA states `estimated_cycles` for every operation it made itself; custom kernels and transfers carry none. The body of a
loop stands once in the text, so everything in it counts as often as the loop turns.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import ml_dtypes
import msgspec
import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")

HEADER = re.compile(r"^(ENTRY )?%([\w.\-]+) .*\{$")
OPERATION = re.compile(r"^\s*(ROOT )?%([\w.\-]+) = (.+?) ([a-z][a-z0-9\-]*)\((.*)$")
ARRAY = re.compile(r"\b([a-z]+[0-9]*(?:e[0-9]m[0-9]\w*)?)\[([0-9,]*)\]")
PLUMBING = ("while", "tuple", "get-tuple-element", "parameter", "constant", "copy", "bitcast")
SELDOM = re.compile(r'op_name="[^"]*\bseldom\b')
"""A loop or a branch in `jax.named_scope("seldom")`, which ordinary data do not enter."""
HOISTED = re.compile(r'op_name="[^"]*\bseldom\b[^"]*/while/body/')
"""A loop that stood in the body of such a loop. Those bodies are not read, so one that is met runs each time."""
SCOPED = re.compile(r'op_name="[^"]*/')
"""An operation that has the scopes it was made in: not those that the compiler has given a name of its own."""
BESIDE_A_COLLECTIVE = "async_collective_fusion"
"""Name of a computation with an operation and a collective that has been started, which goes on meanwhile."""
CHANNEL = re.compile(r"channel_id=(\d+)")
REFERENCE = re.compile(r"%([\w.\-]+)")


@dataclass(frozen=True)
class Operation:
    """One line of the program.

    Attributes:
        rest: text after the opening parenthesis.
        times: how often it runs.
        beside: the collective that goes on while it computes, as its operation; None: there is none.
    """

    name: str
    shape: str
    kind: str
    rest: str
    root: bool = field(repr=False)
    times: int = 1
    beside: "Operation | None" = field(default=None, repr=False)

    @property
    def cycles(self) -> int:
        """Estimated cycles of one run; 0 where the compiler states none."""
        match = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(match[1]) if match else 0

    @property
    def operands(self) -> list[str]:
        return REFERENCE.findall(self.rest.partition(")")[0])

    @property
    def bytes(self) -> int:
        """Size of the result, all arrays of a tuple together."""
        return sum(array_bytes(dtype, sizes) for dtype, sizes in ARRAY.findall(self.shape))

    def attribute(self, name: str) -> str:
        """Returns the name of the computation in the attribute `name=%...`."""
        match = re.search(rf"\b{name}=%([\w.\-]+)", self.rest)
        assert match is not None, (name, self.name)
        return match[1]


Program = dict[str, list[Operation]]
"""Operations by the name of their computation."""


class Collective(msgspec.Struct, frozen=True):
    """All collectives of one kind and size: `bytes` is the size of one result, `count` how many a step runs."""

    kind: str
    count: int
    bytes: int


def read_program(text: str) -> list[Operation]:
    """Returns the operations of one run of the program, in order, loops unrolled into `times`.

    Raises:
        ValueError: the text has no entry, or a loop whose number of turns cannot be read.
    """
    program: Program = {}
    entry, current = None, None
    for line in text.splitlines():
        if header := HEADER.match(line):
            current = program.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None and (match := OPERATION.match(line)):
            current.append(Operation(match[2], match[3], match[4], match[5], root=bool(match[1])))
    if entry is None:
        raise ValueError("no ENTRY computation in the compiled program")
    return list(walk(program, entry, 1))


def walk(program: Program, computation: str, times: int) -> Iterator[Operation]:
    for operation in program[computation]:
        match operation.kind:
            case "while" if SELDOM.search(operation.rest) and not HOISTED.search(operation.rest):
                yield replace(operation, times=0)
            case "while":
                turns = loop_turns(program, computation, operation)
                yield from walk(program, operation.attribute("body"), times * turns)
            case "call":
                yield from walk(program, operation.attribute("to_apply"), times)
            case "conditional":
                names = branch_names(operation)
                ordinary = [name for name in names if not is_seldom(program[name])]
                yield from max((list(walk(program, name, times)) for name in ordinary or names), key=total_cycles)
            case "fusion" if starts_collective(program, operation):
                yield replace(operation, times=times)
                yield from walk(program, operation.attribute("calls"), times)
            case "fusion" if operation.attribute("calls").startswith(BESIDE_A_COLLECTIVE):
                called = program[operation.attribute("calls")]
                yield replace(operation, times=times, beside=next(filter(is_collective, called), None))
            case _:
                yield replace(operation, times=times)


def is_seldom(branch: Sequence[Operation]) -> bool:
    """Returns whether a branch as a whole is in the scope; one with a loop in it that is may well be ordinary."""
    computing = [operation for operation in branch if operation.kind not in PLUMBING and SCOPED.search(operation.rest)]
    return bool(computing) and all(SELDOM.search(operation.rest) for operation in computing)


def branch_names(operation: Operation) -> list[str]:
    """Returns the computations of a conditional: a list, or those for true and for false."""
    if listed := re.search(r"branch_computations=\{([^}]*)\}", operation.rest):
        return REFERENCE.findall(listed[1])
    return [operation.attribute("true_computation"), operation.attribute("false_computation")]


def starts_collective(program: Program, fusion: Operation) -> bool:
    """Returns whether a fusion is a collective, or starts one that goes on while later operations compute.

    The operations in between and the one that waits for its end name the collective again; only its start counts. An
    all-reduce of which each device takes a part is a fusion of its own.
    """
    called = fusion.attribute("calls")
    asynchronous = any('custom_call_target="AsyncCollectiveStart"' in op.rest for op in program[called])
    return asynchronous or called.startswith("all-reduce-scatter")


def loop_turns(program: Program, computation: str, loop: Operation) -> int:
    """Returns the turns of a loop that counts up by one between two constants, as fori_loop makes them."""
    condition = {op.name: op for op in program[loop.attribute("condition")]}
    test = next(op for op in condition.values() if op.root)
    enclosing = {op.name: op for op in program[computation]}
    try:
        counter, bound = test.operands
        index = re.search(r"index=(\d+)", condition[counter].rest)
        assert index is not None
        start = enclosing[loop.operands[0]].operands[int(index[1])]
        return constant(condition, bound) - constant(enclosing, start)
    except (KeyError, ValueError, AssertionError) as error:
        raise ValueError(f"the number of turns of loop {loop.name} cannot be read: {test.rest[:100]}") from error


def constant(operations: dict[str, Operation], name: str) -> int:
    operation = operations[name]
    while operation.kind in ("copy", "bitcast"):
        operation = operations[operation.operands[0]]
    if operation.kind != "constant":
        raise ValueError(f"{operation.name} is not a constant")
    return int(operation.rest.partition(")")[0])


def total_cycles(operations: list[Operation]) -> int:
    return sum(op.cycles * op.times for op in operations)


def is_collective(operation: Operation) -> bool:
    return operation.kind.removesuffix("-start") in COLLECTIVES


def hidden_bytes(operations: list[Operation], bytes_per_cycle: float) -> float:
    """Returns the bytes of collectives that move while operations beside them compute, at most those that count."""
    counted, cycles = dict[str, int](), Counter[str]()
    for op in operations:
        collective = op if is_collective(op) else op.beside
        channel = None if collective is None else CHANNEL.search(collective.rest)
        if channel is None:
            continue
        if op.beside is None:
            counted[channel[1]] = op.bytes * op.times
        else:
            cycles[channel[1]] += op.cycles * op.times
    return sum((min(size, cycles[channel] * bytes_per_cycle) for channel, size in counted.items()), 0.0)


def collectives(operations: list[Operation]) -> list[Collective]:
    """Returns the collectives of a run by kind and size, most bytes first."""
    counts: dict[tuple[str, int], int] = {}
    for op in operations:
        kind = op.kind.removesuffix("-start")
        if is_collective(op):
            counts[kind, op.bytes] = counts.get((kind, op.bytes), 0) + op.times
    totals = [Collective(kind, count, size) for (kind, size), count in counts.items()]
    return sorted(totals, key=lambda total: (-total.count * total.bytes, total.kind))


def array_bytes(dtype: str, sizes: str) -> int:
    """Returns the size of an array written as `bf16[8,1024]`; types narrower than a byte count as one byte each."""
    names = {"pred": "bool", "bf16": "bfloat16", "s": "int", "u": "uint", "f": "float"}
    name = names.get(dtype) or re.sub(r"^(s|u|f)(?=\d+$)", lambda m: names[m[1]], dtype)
    try:
        width = np.dtype(getattr(ml_dtypes, name, name)).itemsize
    except TypeError:
        return 0  # a token or an opaque handle
    return width * math.prod(int(size) for size in sizes.split(",") if size)
