"""Processes that share the work of a step."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

JOBS_PER_WORKER = 2  # submitted and not yet collected
Result = TypeVar("Result")


def worker_pool(
    workers: int, initializer: Callable[..., object] | None = None, arguments: tuple[Any, ...] = ()
) -> ProcessPoolExecutor:
    """Return a pool of fresh processes (no threads or locks are inherited) that end with this one, even if killed.

    Args:
        workers: at most.
        initializer: called in each process first.
        arguments: its arguments.
    """
    return ProcessPoolExecutor(workers, get_context("spawn"), _begin, (initializer, arguments))


def in_order(pool: ProcessPoolExecutor, jobs: Iterable[Callable[[], Result]], workers: int) -> Iterator[Result]:
    """Yield the jobs' results in order; only a few jobs for each worker exist at a time, which bounds the memory."""
    pending: deque[Future[Result]] = deque()
    for job in jobs:
        pending.append(pool.submit(job))
        if len(pending) == JOBS_PER_WORKER * workers:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _begin(initializer: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
    # Workers of a killed process would wait for work for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer:
        initializer(*arguments)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
