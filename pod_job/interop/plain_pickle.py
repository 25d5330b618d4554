"""Unpickles containers, numbers, texts, bytes and what a table of names stands for: the few operations that they need.

Python's own unpickler takes the memory that a file claims to need (a memo of 2^31 places is seven bytes), and a key
made of tuples in tuples keeps it hashing for years. Here every value is counted when it is made, keys are texts or
whole numbers, and operations that such files have no use for are refused. Operations and their arguments are described
in `pickletools` of the standard library; protocols 3 to 5 are read, as older ones have no bytes.
"""

import pickle
import struct
from collections.abc import Callable, Mapping
from typing import Any

FREE_BYTES, PER_BYTE = 64 << 20, 32
"""Memory that the values of a pickle may take: these bytes, and so many for each of its own."""
CONTAINER_BYTES, PLACE_BYTES = 64, 100
"""Memory of an empty container, and of a place in the memo."""

Names = Mapping[str, Any]
"""The function, type or value that stands for each name that a pickle may use."""


def most_bytes(size: int) -> int:
    """Returns the memory that the values of a pickle of this size may take."""
    return FREE_BYTES + PER_BYTE * size


def load(data: bytes, names: Names) -> Any:
    """Returns the value that a pickle holds.

    Raises:
        pickle.UnpicklingError: it is cut, needs more memory than `most_bytes`, or has an operation, a name or a key
            that is not for such files.
        Exception: what the functions in `names` raise, or a damaged pickle makes Python raise.
    """
    machine = _Machine(data, names)
    while True:
        operation = machine.number(1)
        if operation == ord(pickle.STOP):
            return machine.stack.pop()
        try:
            perform = OPERATIONS[operation]
        except KeyError:
            raise pickle.UnpicklingError(f"it has the operation {operation:#04x} at byte {machine.at - 1}") from None
        perform(machine)


class _Machine:
    """The state: the values on the stack, stacks set aside by marks, and values by their place in the memo."""

    def __init__(self, data: bytes, names: Names) -> None:
        self.data, self.names = data, names
        self.at = 0
        self.left = most_bytes(len(data))
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def spend(self, size: int) -> None:
        """Counts memory that is taken."""
        self.left -= size
        if self.left < 0:
            raise pickle.UnpicklingError(f"it needs more than {most_bytes(len(self.data)) >> 20} MiB")

    def take(self, size: int) -> bytes:
        """Returns the next bytes of the pickle."""
        if size > len(self.data) - self.at:
            raise pickle.UnpicklingError(f"it is cut: {size} bytes are wanted at byte {self.at} of {len(self.data)}")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int) -> int:
        """Returns the next bytes as a number without a sign."""
        return int.from_bytes(self.take(size), "little")

    def line(self) -> str:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise pickle.UnpicklingError("it is cut in a name")
        line = self.take(end - self.at)
        self.at += 1
        return line.decode()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_container(self, value: Any) -> None:
        self.spend(CONTAINER_BYTES)
        self.stack.append(value)

    def push_tuple(self, size: int) -> None:
        values = [self.stack.pop() for _ in range(size)]
        self.push_container(tuple(reversed(values)))

    def set_aside(self) -> None:
        self.spend(CONTAINER_BYTES)
        self.marked.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        """Returns the values above the last mark, and goes back to those below."""
        values, self.stack = self.stack, self.marked.pop()
        return values

    def remember(self, place: int) -> None:
        self.spend(PLACE_BYTES)
        self.memo[place] = self.stack[-1]

    def recall(self, place: int) -> None:
        self.stack.append(self.memo[place])

    def append(self, values: list[Any]) -> None:
        _of_type(self.stack[-1], list).extend(values)

    def set_items(self, values: list[Any]) -> None:
        table = _of_type(self.stack[-1], dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (str, int):
                raise pickle.UnpicklingError(f"it has a key of {type(key).__name__}")
            self.spend(PLACE_BYTES)
            table[key] = value

    def find(self, module: Any, name: Any) -> None:
        module, name = _of_type(module, str), _of_type(name, str)
        plain = f"{module.replace('numpy.core.', 'numpy._core.')}.{name}"  # NumPy 1's name of numpy._core
        if plain not in self.names:
            raise pickle.UnpicklingError(f"it names {module[:60]}.{name[:60]}, which such a file has no use for")
        self.stack.append(self.names[plain])

    def call(self) -> None:
        arguments, function = _of_type(self.stack.pop(), tuple), self.stack.pop()
        if not callable(function):
            raise pickle.UnpicklingError("it calls what is no function")
        self.push_container(function(*arguments))

    def build(self) -> None:
        state = _of_type(self.stack.pop(), tuple)
        set_state = getattr(self.stack[-1], "__setstate__", None)
        if set_state is None:
            raise pickle.UnpicklingError(f"it gives a state to {type(self.stack[-1]).__name__}")
        set_state(state)


def _of_type(value: Any, kind: type) -> Any:
    """Returns the value; UnpicklingError where it is of another type."""
    if type(value) is not kind:
        raise pickle.UnpicklingError(f"it has {type(value).__name__} in place of {kind.__name__}")
    return value


def _ignore(machine: _Machine) -> None:
    """Skips the version, which tells nothing that the operations do not."""
    machine.number(1)


def _frame(machine: _Machine) -> None:
    if machine.number(8) > len(machine.data) - machine.at:
        raise pickle.UnpicklingError("it is cut in a frame")


def _integer(machine: _Machine, size: int) -> None:
    machine.push(int.from_bytes(machine.take(size), "little", signed=True))


def _text(machine: _Machine, size: int) -> None:
    machine.spend(CONTAINER_BYTES)
    machine.push(machine.take(size).decode("utf-8", "surrogatepass"))


def _bytes(machine: _Machine, size: int) -> None:
    machine.spend(CONTAINER_BYTES)
    machine.push(machine.take(size))


def _global_on_stack(machine: _Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.find(module, name)


def _one_item(machine: _Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.set_items([key, value])


_OPERATIONS: dict[bytes, Callable[[_Machine], Any]] = {
    pickle.PROTO: _ignore,
    pickle.FRAME: _frame,
    pickle.MARK: _Machine.set_aside,
    pickle.POP: lambda machine: machine.stack.pop(),
    pickle.POP_MARK: _Machine.since_mark,
    pickle.NONE: lambda machine: machine.push(None),
    pickle.NEWTRUE: lambda machine: machine.push(True),
    pickle.NEWFALSE: lambda machine: machine.push(False),
    pickle.BININT: lambda machine: _integer(machine, 4),
    pickle.BININT1: lambda machine: machine.push(machine.number(1)),
    pickle.BININT2: lambda machine: machine.push(machine.number(2)),
    pickle.LONG1: lambda machine: _integer(machine, machine.number(1)),
    pickle.LONG4: lambda machine: _integer(machine, machine.number(4)),
    pickle.BINFLOAT: lambda machine: machine.push(struct.unpack(">d", machine.take(8))[0]),
    pickle.SHORT_BINUNICODE: lambda machine: _text(machine, machine.number(1)),
    pickle.BINUNICODE: lambda machine: _text(machine, machine.number(4)),
    pickle.BINUNICODE8: lambda machine: _text(machine, machine.number(8)),
    pickle.SHORT_BINBYTES: lambda machine: _bytes(machine, machine.number(1)),
    pickle.BINBYTES: lambda machine: _bytes(machine, machine.number(4)),
    pickle.BINBYTES8: lambda machine: _bytes(machine, machine.number(8)),
    pickle.BYTEARRAY8: lambda machine: _bytes(machine, machine.number(8)),
    pickle.EMPTY_LIST: lambda machine: machine.push_container([]),
    pickle.EMPTY_DICT: lambda machine: machine.push_container({}),
    pickle.EMPTY_TUPLE: lambda machine: machine.push_tuple(0),
    pickle.TUPLE1: lambda machine: machine.push_tuple(1),
    pickle.TUPLE2: lambda machine: machine.push_tuple(2),
    pickle.TUPLE3: lambda machine: machine.push_tuple(3),
    pickle.TUPLE: lambda machine: machine.push_container(tuple(machine.since_mark())),
    pickle.APPEND: lambda machine: machine.append([machine.stack.pop()]),
    pickle.APPENDS: lambda machine: machine.append(machine.since_mark()),
    pickle.SETITEM: _one_item,
    pickle.SETITEMS: lambda machine: machine.set_items(machine.since_mark()),
    pickle.MEMOIZE: lambda machine: machine.remember(len(machine.memo)),
    pickle.BINPUT: lambda machine: machine.remember(machine.number(1)),
    pickle.LONG_BINPUT: lambda machine: machine.remember(machine.number(4)),
    pickle.BINGET: lambda machine: machine.recall(machine.number(1)),
    pickle.LONG_BINGET: lambda machine: machine.recall(machine.number(4)),
    pickle.GLOBAL: lambda machine: machine.find(machine.line(), machine.line()),
    pickle.STACK_GLOBAL: _global_on_stack,
    pickle.REDUCE: _Machine.call,
    pickle.BUILD: _Machine.build,
}
OPERATIONS = {code[0]: perform for code, perform in _OPERATIONS.items()}
