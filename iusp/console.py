"""What the command line and a cluster's pods show people: progress, and errors in one line."""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iusp.errors import InputError
from iusp.progress import Progress

if TYPE_CHECKING:
    from iusp.config import Augmentations, Student, StudentTraining, Teacher
    from iusp.device.runtime import DeviceModel
    from iusp.device.tagging import Window
    from iusp.records import Row
    from iusp.tracking import Tracker


@contextmanager
def readable_failures() -> Iterator[None]:
    """Turn what went wrong for the user into one line and exit status 2."""
    try:
        yield
        return
    except InputError as error:
        reason = str(error)
    except BrokenProcessPool:
        reason = "a worker process was killed, perhaps for want of memory; run again, it goes on where it was"
    except BrokenPipeError:  # the reader of our output has gone: click ends quietly
        raise
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        reason = f"{error.filename or 'disk'}: {error.strerror}"
    click.echo(f"iusp: {reason}", err=True)
    sys.exit(2)


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """Draw bars on a terminal; elsewhere print the lines that are worth keeping, and each tenth of a task."""
    if not sys.stdout.isatty():
        tenths: dict[str, int] = {}

        def line(task: str, done: int, total: int, message: str = "") -> None:
            tenth = 10 * done // max(total, 1)
            if message or tenth != tenths.get(task, 0):
                tenths[task] = tenth
                click.echo(f"{task}: {done}/{total}{f', {message}' if message else ''}")

        yield line
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
        identifiers: dict[str, Any] = {}

        def bar(task: str, done: int, total: int, message: str = "") -> None:
            if task not in identifiers:
                identifiers[task] = bars.add_task(task, total=total, message="")
            bars.update(identifiers[task], completed=done, total=total, message=message)

        yield bar


def _described(row: "Row") -> str:
    losses = ", ".join(f"{name.removeprefix('loss_')} {row[name]:.4f}" for name in row if name.startswith("loss_"))
    return f"loss {losses}; validate micro AUPRC {row['validate_micro_auprc']:.3f}"


def train_teacher(
    config: "Teacher", augmentation: "Augmentations", tracker: "Tracker", dataset: Path, features: Path, output: Path
) -> dict[str, Any]:
    """Run the teacher step; each epoch is shown, and logged to MLflow, when it ends."""
    from iusp.steps.teacher import run
    from iusp.tracking import readable_errors

    with shown_progress() as progress, readable_errors(), tracker.step("teacher") as tracked:

        def on_epoch(row: "Row") -> None:
            progress("teacher", int(row["epoch"]), config.training.epochs, _described(row))
            tracked.row(row)

        return run(config, augmentation, dataset, features, output, progress, on_epoch)


def train_student(
    name: str,
    student: "Student",
    common: "StudentTraining",
    tracker: "Tracker",
    dataset: Path,
    features: Path,
    teacher: Path,
    output: Path,
) -> dict[int, dict[str, Any]]:
    """Run the student step; each epoch of each seed is shown, and logged to MLflow, when it ends."""
    from iusp.steps.student import run
    from iusp.tracking import readable_errors

    with ExitStack() as stack:
        progress = stack.enter_context(shown_progress())
        stack.enter_context(readable_errors())
        tracked = {seed: stack.enter_context(tracker.step(f"{name}-seed-{seed}")) for seed in student.seeds}

        def on_epoch(seed: int, row: "Row") -> None:
            task = f"{name} ({student.method}), seed {seed}"
            progress(task, int(row["epoch"]), common.training.epochs, _described(row))
            tracked[seed].row(row)

        return run(name, student, common, dataset, features, teacher, output, on_epoch)


def show_results(evaluation: Path, registration: Path) -> None:
    """Print what the pipeline computed as a table.

    Args:
        evaluation: folder that the evaluation step wrote.
        registration: file that the registration step wrote.

    Raises:
        InputError: there is none.
    """
    from rich.console import Console
    from rich.table import Table

    from iusp.files import read_json

    metrics = read_json(evaluation / "metrics.json", "split", "clips", "teacher", "students")
    latency = read_json(evaluation / "latency.json", "teacher", *metrics["students"])
    registered = read_json(registration, "versions", "challenger")
    table = Table(title=f"Coarse tags of {metrics['clips']} {metrics['split']} clips, 95 % intervals over clips")
    table.add_column("network")
    table.add_column("method")
    for column in ("parameters", "MACs", "ms/clip", "micro AUPRC", "macro AUPRC", "seeds", "version"):
        table.add_column(column, justify="right")
    for name, network in {"teacher": metrics["teacher"], **metrics["students"]}.items():
        coarse = network["coarse"]
        version = registered["versions"].get(name, "")
        several = len(network.get("seeds", ())) > 1
        table.add_row(
            name,
            network.get("method", "labels"),
            f"{network['parameters']:,}",
            f"{network['macs'] / 1e6:.1f} M",
            f"{latency[name]['torch']['network']['p50']:.2f}",
            *(
                f"{coarse[kind]:.3f} [{coarse[f'{kind}_low']:.3f}, {coarse[f'{kind}_high']:.3f}]"
                for kind in ("micro_auprc", "macro_auprc")
            ),
            f"{network['seeds_mean']:.3f} ± {network['seeds_std']:.3f}" if several else "",
            f"{version}{' (challenger)' if name == registered['challenger'] else ''}",
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table, markup=False)
    click.echo("ms/clip: the network alone, one thread. seeds: micro AUPRC, mean ± standard deviation over all seeds.")
    click.echo(f"Report: {evaluation / 'report.html'}")


def show_tags(recordings: Path, model: "DeviceModel", window: float, hop: float, as_json: bool) -> bool:
    """Tag recordings and print what is in each window, as soon as it is known.

    Args:
        recordings: a file, a folder of them, or `-` for standard input.
        model: the network.
        window: seconds.
        hop: seconds from one window's start to the next one's.
        as_json: print a JSON object for each window.

    Returns:
        Whether every recording could be tagged; those that cannot get a line on standard error each.

    Raises:
        InputError: there is no recording, or window and hop do not fit.
    """
    from iusp.audio import BadAudio
    from iusp.device.tagging import tag

    good = True
    with _found(recordings) as found:
        for name, path in found:
            shown = name if name.isprintable() else ascii(name)
            try:
                for number, one in enumerate(tag(path, model, window, hop)):
                    if not as_json and not number:
                        click.echo(shown)
                    click.echo(json.dumps({"recording": shown, **vars(one)}) if as_json else _line(one))
            except BadAudio as reason:
                click.echo(f"iusp: {shown}: {reason}", err=True)
                good = False
    return good


@contextmanager
def _found(recordings: Path) -> Iterator[list[tuple[str, Path]]]:
    """Yield names and paths of the recordings."""
    from iusp.audio import SUFFIXES

    if str(recordings) == "-":
        # Decoding must move about in a file, which a pipe does not allow.
        with tempfile.NamedTemporaryFile() as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
            copy.flush()
            yield [("-", Path(copy.name))]
        return
    if not recordings.is_dir():
        yield [(str(recordings), recordings)]
        return
    paths = sorted(path for path in recordings.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(f"{recordings}: holds no recording; name a folder with {', '.join(SUFFIXES)} files")
    yield [(str(path), path) for path in paths]


def _line(window: "Window") -> str:
    tags = ", ".join(f"{name} {window.probabilities[name]:.2f}" for name in window.tags)
    return f"{window.start:9.1f} – {window.end:.1f} s  {tags or '–'}"
