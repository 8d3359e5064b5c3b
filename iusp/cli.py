"""The command line. It alone prints; every step imports what it needs when it is called."""

import json
import sys
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iusp import __version__
from iusp.errors import InputError

if TYPE_CHECKING:
    from iusp.config import Config
    from iusp.progress import Progress
    from iusp.training import Row

DATASET, FEATURES = Path("data/dataset"), Path("data/features")
TEACHER, STUDENTS = Path("models/teacher"), Path("models/students")
EVALUATION, REGISTRATION = Path("reports/evaluation"), Path("reports/registration.json")


class Commands(click.Group):
    """Turns what went wrong for the user into one line and exit status 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
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


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option(
    "--params",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("params.yaml"),
    show_default=True,
    help="Settings of all steps.",
)
@click.pass_context
def main(ctx: click.Context, params: Path) -> None:
    """Distill a large audio tagger into small ones.

    The steps, in order, each of which reads what those before it wrote: dataset, features, teacher, student (one for
    each entry of `students:` in params.yaml), evaluation, registration. `dvc repro` runs those whose code, settings or
    inputs have changed; `iusp results` shows what came out.
    """
    ctx.obj = params


def _config(ctx: click.Context) -> "Config":
    from iusp.config import load

    return load(ctx.obj)


@contextmanager
def _progress() -> Iterator["Progress"]:
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


@main.command()
@click.pass_context
def dataset(ctx: click.Context) -> None:
    """Collect, check, index and label the recordings.

    Reads params.yaml's `dataset`; writes data/dataset. Source `embedded` generates city scenes; source `folder` takes
    over a folder in SONYC-UST's format. Bad clips go to data/dataset/quarantine.csv with their reasons.
    """
    from iusp.steps.dataset import run

    with _progress() as progress:
        run(_config(ctx).dataset, DATASET, progress)


@main.command()
@click.pass_context
def features(ctx: click.Context) -> None:
    """Compute log-mel features, packed per split.

    Reads params.yaml's `features` and data/dataset; writes data/features.
    """
    from iusp.steps.features import run

    with _progress() as progress:
        run(_config(ctx).features, DATASET, FEATURES, progress)


@main.command()
@click.pass_context
def teacher(ctx: click.Context) -> None:
    """Train the teacher and store its knowledge of every training clip.

    Reads params.yaml's `teacher` and `augmentation`, data/dataset and data/features; writes models/teacher. Losses and
    AUPRC go to MLflow after each epoch.
    """
    from iusp.steps.teacher import run
    from iusp.tracking import Tracker, readable_errors

    config = _config(ctx)
    with _progress() as progress, readable_errors(), Tracker(config, DATASET).step("teacher") as tracked:

        def on_epoch(row: "Row") -> None:
            progress("teacher", int(row["epoch"]), config.teacher.training.epochs, _described(row))
            tracked.row(row)

        run(config.teacher, config.augmentation, DATASET, FEATURES, TEACHER, progress, on_epoch)


@main.command()
@click.argument("name")
@click.pass_context
def student(ctx: click.Context, name: str) -> None:
    """Train the student NAME, once for each of its seeds.

    Reads params.yaml's `student` and `students.NAME`, data and models/teacher; writes models/students/NAME. Losses and
    AUPRC go to MLflow after each epoch.
    """
    from contextlib import ExitStack

    from iusp.steps.student import run
    from iusp.tracking import Tracker, readable_errors

    config = _config(ctx)
    if name not in config.students:
        raise InputError(f"{ctx.obj}: there is no students.{name}, only {', '.join(config.students)}")
    entry = config.students[name]
    with ExitStack() as stack:
        progress = stack.enter_context(_progress())
        stack.enter_context(readable_errors())
        tracker = Tracker(config, DATASET)
        tracked = {seed: stack.enter_context(tracker.step(f"{name}-seed-{seed}")) for seed in entry.seeds}

        def on_epoch(seed: int, row: "Row") -> None:
            epochs = config.student.training.epochs
            progress(f"{name} ({entry.method}), seed {seed}", int(row["epoch"]), epochs, _described(row))
            tracked[seed].row(row)

        run(entry, config.student, DATASET, FEATURES, TEACHER, STUDENTS / name, on_epoch)


@main.command()
@click.pass_context
def evaluation(ctx: click.Context) -> None:
    """Measure how good every network is, and what it costs.

    Reads params.yaml's `evaluation`, data and models; writes reports/evaluation: metrics.json, latency.json,
    predictions in the challenge's format, pictures and report.html.
    """
    from iusp.steps.evaluation import Inputs, run

    config = _config(ctx)
    inputs = Inputs(DATASET, FEATURES, TEACHER, {name: STUDENTS / name for name in config.students})
    with _progress() as progress:
        run(config.evaluation, inputs, EVALUATION, progress)


@main.command()
@click.pass_context
def registration(ctx: click.Context) -> None:
    """Register every student in MLflow.

    Completes the MLflow runs of this execution and makes each student a version of one registered model, with the alias
    `challenger` for the best on validate. MLFLOW_TRACKING_URI names the server; sqlite:///mlflow.db without it.
    """
    from iusp.steps.registration import Inputs, run

    config = _config(ctx)
    students = {name: STUDENTS / name for name in config.students}
    run(config, Inputs(DATASET, FEATURES, TEACHER, students, EVALUATION), REGISTRATION)


@main.command()
def results() -> None:
    """Show what the last `dvc repro` computed, as a table."""
    from rich.console import Console
    from rich.table import Table

    from iusp.files import read_json

    metrics = read_json(EVALUATION / "metrics.json", "split", "clips", "teacher", "students")
    latency = read_json(EVALUATION / "latency.json", "teacher", *metrics["students"])
    registered = read_json(REGISTRATION, "versions", "challenger")
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
    click.echo(
        f"Report: {EVALUATION / 'report.html'}   MLflow: make mlflow   Compare: dvc metrics diff, dvc plots diff"
    )


@main.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.option("--annotations", type=click.Path(path_type=Path), required=True, help="CSV in SONYC-UST's format.")
@click.option("--taxonomy", type=click.Path(path_type=Path), required=True, help="The data set's taxonomy YAML.")
@click.option("--split", default="validate", show_default=True, help="Whose clips the predictions are of.")
@click.option("--level", type=click.Choice(["coarse", "fine"]), default="coarse", show_default=True)
@click.option(
    "--coarse",
    type=click.Choice(["from-fine", "as-published"]),
    default="from-fine",
    show_default=True,
    help="Coarse truth derived from the fine tags, or the CSV's own columns (faulty in 2019's file).",
)
def score(predictions: Path, annotations: Path, taxonomy: Path, split: str, level: Any, coarse: Any) -> None:
    """Score any system's PREDICTIONS as DCASE 2019 Task 5 does.

    PREDICTIONS is a CSV with the column audio_filename and one column of scores in [0, 1] per tag; a missing column
    counts as 0. Prints JSON.
    """
    from iusp.predictions import score_file
    from iusp.taxonomy import read_taxonomy

    result = score_file(predictions, annotations, read_taxonomy(taxonomy), split, level, coarse)
    click.echo(json.dumps(result, indent=2))


@main.command()
@click.option("--schema", is_flag=True, help="Print the JSON Schema of params.yaml instead.")
@click.pass_context
def config(ctx: click.Context, schema: bool) -> None:
    """Check params.yaml and print it as the pipeline reads it."""
    from iusp.config import Config

    document = Config.model_json_schema() if schema else _config(ctx).model_dump(mode="json", by_alias=True)
    click.echo(json.dumps(document, indent=2))
