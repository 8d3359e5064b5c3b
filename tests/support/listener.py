"""A reporter that hands what a step reports to functions of a test."""

from collections.abc import Callable, Mapping
from typing import Any

from iusp.reporter import Reporter


def ignore(*_: Any) -> None:
    """Do nothing."""


class Listener(Reporter):
    """Calls `on_progress(task, done, total, message)` and `on_epoch(network, row)`."""

    def __init__(
        self,
        on_progress: Callable[..., Any] = ignore,
        on_epoch: Callable[[str, Mapping[str, float]], Any] = ignore,
    ) -> None:
        self._on_progress = on_progress
        self._on_epoch = on_epoch

    def progress(self, task: str, done: int, total: int, message: str = "") -> None:
        self._on_progress(task, done, total, message)

    def epoch(self, network: str, row: Mapping[str, float], epochs: int) -> None:
        self._on_epoch(network, row)
