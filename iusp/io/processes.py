"""Worker processes that share the work of a step."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

JOBS_PER_WORKER = 2  # jobs that are submitted and whose results are not collected yet
Result = TypeVar("Result")


def worker_pool(
    workers: int, initializer: Callable[..., object] | None = None, arguments: tuple[Any, ...] = ()
) -> ProcessPoolExecutor:
    """Return a pool of spawned processes, which inherit no locks and end when this process ends or is killed.

    Args:
        workers: largest number of processes.
        initializer: function that each process calls first.
        arguments: arguments of `initializer`.
    """
    return ProcessPoolExecutor(workers, get_context("spawn"), _begin, (initializer, arguments))


def in_order(pool: ProcessPoolExecutor, jobs: Iterable[Callable[[], Result]], workers: int) -> Iterator[Result]:
    """Yield the results of jobs in order; only a few jobs per worker exist at a time, which bounds the memory."""
    pending: deque[Future[Result]] = deque()
    for job in jobs:
        pending.append(pool.submit(job))
        if len(pending) == JOBS_PER_WORKER * workers:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _begin(initializer: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
    # Without this thread, the workers of a killed process would wait for work forever.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer:
        initializer(*arguments)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
