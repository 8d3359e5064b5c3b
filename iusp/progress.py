"""How a step tells how far it is: the command line draws it, the library never prints."""

from typing import Protocol


class Progress(Protocol):
    """Called with a task's name, the units done and the total; `message` is a line worth keeping in a log."""

    def __call__(self, task: str, done: int, total: int, message: str = "") -> None:
        """Take notice."""


def silent(task: str, done: int, total: int, message: str = "") -> None:
    """Show nothing."""
