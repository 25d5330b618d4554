"""Composes many Cloud Storage objects into one: a tree of requests, each of which takes 32 objects at most.

https://cloud.google.com/storage/docs/composite-objects; no content passes through this machine.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

MOST_JOINED = 32
REQUESTS_IN_FLIGHT = 16


def compose_in_tree(
    compose: Callable[[str, Sequence[str]], None], names: Sequence[str], scratch: str
) -> tuple[list[str], list[str]]:
    """Composes objects, in order, until one more request can join the rest.

    Args:
        compose: `compose(target, sources)` makes one request.
        scratch: prefix of the objects made on the way.
    Returns:
        Names of at most 32 objects that joined are the content of all `names`, and of all objects made.
    """
    made: list[str] = []
    with ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as pool:
        while len(names) > MOST_JOINED:
            groups = [names[start : start + MOST_JOINED] for start in range(0, len(names), MOST_JOINED)]
            names = [f"{scratch}{len(made) + number}" for number in range(len(groups))]
            list(pool.map(compose, names, groups))
            made += names
    return list(names), made
