"""How much the fault suite tries: a fixed sample, or everything with `make faults FULL=1`."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

FULL = os.environ.get("FULL") == "1"
Item = TypeVar("Item")


def often(full: int, sample: int) -> int:
    """Return how often to try something."""
    return full if FULL else sample


def sampled(items: Iterable[Item], step: int) -> Iterator[Item]:
    """Yield every item, or the first and every `step`-th after it."""
    return islice(items, 0, None, 1 if FULL else step)
