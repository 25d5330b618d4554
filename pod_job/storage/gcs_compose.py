"""Many Cloud Storage objects into one: a tree of compose requests, each of which takes 32 objects at most.

https://cloud.google.com/storage/docs/composite-objects; no content passes through this machine.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

MOST_JOINED = 32
REQUESTS_IN_FLIGHT = 16


def compose_in_tree(
    compose: Callable[[str, Sequence[str]], None], names: Sequence[str], scratch: str
) -> tuple[list[str], list[str]]:
    """Composes what is too many for one request, in order; `compose(target, sources)` makes one request.

    Returns the names of at most 32 objects that are the whole one after the other, and of all that were made below
    `scratch` on the way.
    """
    made: list[str] = []
    with ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as pool:
        while len(names) > MOST_JOINED:
            groups = [names[start : start + MOST_JOINED] for start in range(0, len(names), MOST_JOINED)]
            names = [f"{scratch}{len(made) + number}" for number in range(len(groups))]
            list(pool.map(compose, names, groups))
            made += names
    return list(names), made
