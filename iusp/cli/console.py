"""Output of the command line and of pods: readable failures, progress, tables and JSON."""

import errno
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from iusp.errors import InputError
from iusp.reporter import Reporter

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

ADVICE = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "; free some space and run again, the step resumes")
ADVICE |= dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "; give this user permission to write there")
LONGEST_LINE = 4000  # characters
WIDTH = 160  # characters of a table that is not printed on a terminal


@contextmanager
def readable_failures() -> Iterator[None]:
    """Print an error that the user can correct in one line on standard error, and exit with status 2."""
    # Imported here, because `iusp --help` needs neither.
    import shutil
    from concurrent.futures import BrokenExecutor

    try:
        yield
        return
    except InputError as error:
        reason = str(error)
    except BrokenExecutor:
        reason = "a worker process was killed, perhaps because memory ran out; run again, the step resumes"
    except BrokenPipeError:  # the reader of our output has ended; click then ends without a message
        raise
    except shutil.Error as error:  # from copying a folder: a list of failures
        _, target, why = error.args[0][0]
        reason = f"{target}: {why}"
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        reason = f"{error.filename2 or error.filename or 'disk'}: {error.strerror}{ADVICE.get(error.errno or 0, '')}"
    warn(reason)
    sys.exit(2)


class Commands(click.Group):
    """A group of commands that print errors of the user in one line and exit with status 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        with readable_failures():
            return super().invoke(ctx)


def warn(message: str) -> None:
    """Print one line on standard error."""
    click.echo(f"iusp: {_printable(message)}", err=True)


def _printable(text: str) -> str:
    """Limit the length of a text and escape control characters: file names from outside must not steer a terminal."""
    shown = f"{text[:LONGEST_LINE]} …" if len(text) > LONGEST_LINE else text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in shown)


class _ConsoleReporter(Reporter):
    """Shows each epoch as progress of its network, and prints warnings on standard error."""

    def warning(self, message: str) -> None:
        warn(message)

    def epoch(self, network: str, row: Mapping[str, float], epochs: int) -> None:
        losses = ", ".join(f"{name.removeprefix('loss_')} {row[name]:.4f}" for name in row if name.startswith("loss_"))
        message = f"loss {losses}; validate micro AUPRC {row['validate_micro_auprc']:.3f}"
        self.progress(network, int(row["epoch"]), epochs, message)


class _LineReporter(_ConsoleReporter):
    """Prints every message, and a line for each tenth of a task."""

    def __init__(self) -> None:
        self._tenths: dict[str, int] = {}

    def progress(self, task: str, done: int, total: int, message: str = "") -> None:
        tenth = 10 * done // max(total, 1)
        if message or tenth != self._tenths.get(task, 0):
            self._tenths[task] = tenth
            click.echo(f"{task}: {done}/{total}{f', {_printable(message)}' if message else ''}")


class _BarReporter(_ConsoleReporter):
    """Draws a progress bar for each task."""

    def __init__(self, bars: "Bars") -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def progress(self, task: str, done: int, total: int, message: str = "") -> None:
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total, message="")
        self._bars.update(self._tasks[task], completed=done, total=total, message=_printable(message))


@contextmanager
def shown_progress() -> Iterator[Reporter]:
    """Draw progress bars on a terminal; print lines elsewhere."""
    if not sys.stdout.isatty():
        yield _LineReporter()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[message]}"),
    )
    with Bars(*columns) as bars:
        yield _BarReporter(bars)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[str] = (),
    width: int = WIDTH,
) -> None:
    """Print a table.

    Args:
        title: text above the table.
        columns: headings.
        rows: one text for each column.
        numbers: headings of the columns that are aligned to the right.
        width: number of characters of a line, except on a terminal, which has its own.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else width).print(table, markup=False)
