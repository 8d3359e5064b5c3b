"""The steps of the pipeline, their settings and their results."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from iusp.cli.console import print_table, shown_progress
from iusp.cli.context import load_config

if TYPE_CHECKING:
    from iusp.config.params import Config
    from iusp.registry.tracking import Tracker

DATASET, RECORDINGS, FEATURES = Path("data/dataset"), Path("data/recordings"), Path("data/features")
TEACHER, RECIPES, STUDENTS = Path("models/teacher"), Path("models/recipes"), Path("models/students")
EVALUATION, REGISTRATION = Path("reports/evaluation"), Path("reports/registration.json")


def _open_tracker(config: "Config") -> "Callable[[], Tracker]":
    """Return a function that opens the MLflow runs of this execution."""
    from iusp.registry.tracking import Tracker

    return partial(Tracker.of, config, DATASET)


@click.command()
@click.pass_context
def dataset(ctx: click.Context) -> None:
    """Collect, check, index and label the recordings.

    `dataset.source` in params.yaml chooses the source: `embedded` generates city scenes; `sonyc-ust` downloads the
    published data set; `folder` reads a folder in the format of SONYC-UST, `s3` such a folder in a bucket, and `dvc`
    one in a DVC repository at a revision. Bad clips are listed with their reasons in data/dataset/quarantine.csv.

    \b
    Reads:   params.yaml (dataset)
    Writes:  data/dataset, data/recordings (the audio alone)
    Example: iusp dataset
    """
    from iusp.steps.dataset import run

    with shown_progress() as reporter:
        run(load_config(ctx).dataset, DATASET, RECORDINGS, reporter)


@click.command()
@click.pass_context
def features(ctx: click.Context) -> None:
    """Compute log-mel features, packed per split.

    \b
    Reads:   params.yaml (features), data/dataset, data/recordings
    Writes:  data/features
    Example: iusp features
    """
    from iusp.steps.features import Inputs, run

    with shown_progress() as reporter:
        run(load_config(ctx).features, Inputs(DATASET, RECORDINGS), FEATURES, reporter)


@click.command()
@click.pass_context
def teacher(ctx: click.Context) -> None:
    """Train the teacher and store its knowledge.

    The knowledge is what the distillation losses need of the teacher for every training clip. Losses and AUPRC go to
    MLflow after each epoch. Under torchrun, several processes share the work.

    \b
    Reads:   params.yaml (teacher, augmentation), data/dataset, data/features
    Writes:  models/teacher
    Example: iusp teacher
             torchrun --nproc-per-node 2 -m iusp teacher
    """
    from iusp.registry.tracking import tracked
    from iusp.reporter import Reporter
    from iusp.steps.teacher import run
    from iusp.training import distributed
    from iusp.training.data import TrainingFolders

    config = load_config(ctx)
    inputs = TrainingFolders(DATASET, FEATURES)
    with distributed.group():
        if distributed.rank():
            # The first process reports for all.
            run(config.teacher, config.augmentation, inputs, TEACHER, Reporter())
            return
        outage = config.registration.outage
        with shown_progress() as shown, tracked(shown, _open_tracker(config), ["teacher"], outage) as reporter:
            run(config.teacher, config.augmentation, inputs, TEACHER, reporter)


@click.command()
@click.pass_context
def recipes(ctx: click.Context) -> None:
    """Write the recipe of each student.

    `dvc repro` compares these files to train only the students that a change affects.

    \b
    Reads:   params.yaml (distillation, students), the code of the methods
    Writes:  models/recipes
    Example: iusp recipes
    """
    from iusp.artifacts.recipes import write_recipes

    config = load_config(ctx)
    write_recipes([config.recipe(name) for name in config.students], RECIPES)


@click.command()
@click.argument("name")
@click.pass_context
def student(ctx: click.Context, name: str) -> None:
    """Train the student NAME, once for each of its seeds.

    NAME is an entry of `students` in params.yaml. Losses and AUPRC go to MLflow after each epoch.

    \b
    Reads:   params.yaml (distillation, students.NAME), data/dataset, data/features, models/teacher
    Writes:  models/students/NAME
    Example: iusp student small
    """
    from iusp.artifacts.base import seed_name
    from iusp.artifacts.networks import TeacherFolder
    from iusp.registry.tracking import tracked
    from iusp.steps.student import StudentInputs, run
    from iusp.training.data import TrainingFolders

    config = load_config(ctx)
    recipe = config.recipe(name)
    inputs = StudentInputs(TrainingFolders(DATASET, FEATURES), TeacherFolder(TEACHER))
    networks, outage = [seed_name(name, seed) for seed in recipe.student.seeds], config.registration.outage
    with shown_progress() as shown, tracked(shown, _open_tracker(config), networks, outage) as reporter:
        run(recipe, inputs, STUDENTS / name, reporter)


@click.command()
@click.pass_context
def evaluation(ctx: click.Context) -> None:
    """Measure the quality and the cost of every network.

    Writes metrics.json, latency.json, predictions in the format of DCASE 2019 Task 5, pictures, report.html, and every
    student as files for devices.

    \b
    Reads:   params.yaml (evaluation), data, models
    Writes:  reports/evaluation
    Example: iusp evaluation
    """
    from iusp.steps.evaluation import Inputs, run

    config = load_config(ctx)
    inputs = Inputs(DATASET, RECORDINGS, FEATURES, TEACHER, {name: [STUDENTS / name] for name in config.students})
    with shown_progress() as reporter:
        run(config.evaluation, inputs, EVALUATION, reporter)


@click.command()
@click.pass_context
def registration(ctx: click.Context) -> None:
    """Register every student in MLflow.

    Completes the MLflow runs of this execution and makes each student a version of one registered model. The student
    that is best on validate gets the alias `challenger`. MLFLOW_TRACKING_URI names the server; without it, MLflow
    writes to sqlite:///mlflow.db.

    \b
    Reads:   params.yaml (all sections), data/dataset, reports/evaluation
    Writes:  reports/registration.json, runs and versions in MLflow
    Example: iusp registration
    """
    from iusp.registry.tracking import Tracker, readable_errors
    from iusp.steps.registration import run

    config = load_config(ctx)
    with shown_progress() as reporter, readable_errors():
        tracker = Tracker.of(config, DATASET)
        with tracker.ended_badly(tracker.parent):
            run(config, tracker, DATASET, EVALUATION, REGISTRATION, reporter)
        tracker.finish("SUCCEEDED")


@click.command()
@click.option("--schema", is_flag=True, help="Print the JSON Schema of params.yaml instead.")
@click.pass_context
def config(ctx: click.Context, schema: bool) -> None:
    """Check params.yaml and print it as the pipeline reads it.

    \b
    Reads:   params.yaml
    Prints:  JSON: every setting; with --schema, what each setting means and which values it takes
    Example: iusp config --schema
    """
    from iusp.config.params import Config

    document = Config.model_json_schema() if schema else load_config(ctx).model_dump(mode="json", by_alias=True)
    click.echo(json.dumps(document, indent=2))


@click.command()
def results() -> None:
    """Show quality and cost of every network.

    The figures are those of the last `dvc repro`.

    \b
    Reads:   reports/evaluation, reports/registration.json
    Prints:  a table with a row for each network
    Example: iusp results
    """
    show_results(EVALUATION, REGISTRATION)
    click.echo("MLflow: make mlflow   Compare: dvc metrics diff, dvc plots diff")


def show_results(evaluation: Path, registration: Path) -> None:
    """Print quality and cost of every network as a table.

    Args:
        evaluation: folder that the evaluation step wrote.
        registration: file that the registration step wrote.

    Raises:
        InputError: a file is missing or damaged.
    """
    from iusp.artifacts.evaluation import EvaluationFolder
    from iusp.artifacts.registration import Registration
    from iusp.evaluation.table import LEFT, network_rows, notes, title

    folder = EvaluationFolder(evaluation)
    metrics = folder.metrics
    registered = Registration.read(registration)
    rows = list(network_rows(metrics, folder.latencies(*metrics.networks)))
    for name, row in zip(metrics.networks, rows, strict=True):
        challenger = " (challenger)" if name == registered.challenger else ""
        row["version"] = f"{registered.versions.get(name, '')}{challenger}"
    headings = list(rows[0])
    numbers = [heading for heading in headings if heading not in LEFT]
    print_table(title(metrics), headings, [list(row.values()) for row in rows], numbers=numbers)
    for note in notes(metrics):
        click.echo(note)
    click.echo("ms/clip: the network alone, one thread. seeds: micro AUPRC, mean ± standard deviation over all seeds.")
    click.echo(f"Report: {folder.report}")
