"""What the command line and a cluster's pods show people: progress, and errors in one line."""

import sys
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iusp.config import Augmentations, Student, StudentTraining, Teacher
from iusp.errors import InputError
from iusp.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from iusp.drift import Drift
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
    config: Teacher, augmentation: Augmentations, tracker: "Tracker", dataset: Path, features: Path, output: Path
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
    student: Student,
    common: StudentTraining,
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
            f"{latency[name]['network']:.2f}",
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


def show_drift(drifts: "Sequence[Drift]") -> None:
    """Print how each column was distributed then, and is now, as a table."""
    from rich.console import Console
    from rich.table import Table

    clips = drifts[0]
    table = Table(title=f"{clips.new.count:,} new clips against {clips.reference.count:,} of the reference")
    table.add_column("column")
    for column in ("mean", "10 %", "50 %", "90 %", "above threshold", "PSI", "KS", "p (Holm)"):
        table.add_column(column, justify="right")
    table.add_column("")
    for drift in drifts:
        then, now = drift.reference, drift.new
        pairs = ((then.mean, now.mean), *zip(then.quantiles, now.quantiles, strict=True))
        above = "" if then.above is None else f"{then.above:.1%} → {now.above:.1%}"
        table.add_row(
            drift.column,
            *(f"{before:.3g} → {after:.3g}" for before, after in pairs),
            above,
            f"{drift.psi:.3f}",
            f"{drift.ks:.3f}",
            f"{drift.p_value:.2g}",
            "drifted" if drift.drifted else "",
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table, markup=False)
