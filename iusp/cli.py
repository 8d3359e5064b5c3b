"""The command line; every step imports what it needs when it is called."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iusp import __version__
from iusp.errors import InputError

if TYPE_CHECKING:
    from iusp.config import Config

DATASET, RECORDINGS, FEATURES = Path("data/dataset"), Path("data/recordings"), Path("data/features")
TEACHER, STUDENTS = Path("models/teacher"), Path("models/students")
EVALUATION, REGISTRATION = Path("reports/evaluation"), Path("reports/registration.json")


class Commands(click.Group):
    """Turns what went wrong for the user into one line and exit status 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        from iusp.console import readable_failures

        with readable_failures():
            return super().invoke(ctx)


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
    if "TORCHELASTIC_RUN_ID" in os.environ and ctx.invoked_subcommand != "teacher":
        raise InputError(f"iusp {ctx.invoked_subcommand} runs in one process; only iusp teacher runs under torchrun")


def _config(ctx: click.Context) -> "Config":
    from iusp.config import load

    return load(ctx.obj)


@main.command()
@click.pass_context
def dataset(ctx: click.Context) -> None:
    """Collect, check, index and label the recordings.

    Reads params.yaml's `dataset`; writes data/dataset and, the audio alone, data/recordings. Source `embedded`
    generates city scenes; `folder` takes over a folder in SONYC-UST's format, `s3` one in a bucket, `dvc` one in a
    DVC repository at a revision. Bad clips go to data/dataset/quarantine.csv with their reasons.
    """
    from iusp.console import shown_progress
    from iusp.steps.dataset import run

    with shown_progress() as progress:
        run(_config(ctx).dataset, DATASET, RECORDINGS, progress)


@main.command()
@click.pass_context
def features(ctx: click.Context) -> None:
    """Compute log-mel features, packed per split.

    Reads params.yaml's `features`, data/dataset and data/recordings; writes data/features.
    """
    from iusp.console import shown_progress
    from iusp.steps.features import run

    with shown_progress() as progress:
        run(_config(ctx).features, DATASET, RECORDINGS, FEATURES, progress)


@main.command()
@click.pass_context
def teacher(ctx: click.Context) -> None:
    """Train the teacher and store its knowledge of every training clip.

    Reads params.yaml's `teacher` and `augmentation`, data/dataset and data/features; writes models/teacher. Losses and
    AUPRC go to MLflow after each epoch. Several processes share the work under torchrun:

        torchrun --nproc-per-node 2 -m iusp teacher
    """
    from iusp import distributed
    from iusp.console import train_teacher
    from iusp.progress import silent
    from iusp.steps.teacher import run
    from iusp.tracking import Tracker, readable_errors

    config = _config(ctx)
    with distributed.group():
        if distributed.rank():
            # The first process speaks for all.
            run(config.teacher, config.augmentation, DATASET, FEATURES, TEACHER, silent, lambda row: None)
            return
        with readable_errors():
            tracker = Tracker.of(config, DATASET)
        train_teacher(config.teacher, config.augmentation, tracker, DATASET, FEATURES, TEACHER)


@main.command()
@click.argument("name")
@click.pass_context
def student(ctx: click.Context, name: str) -> None:
    """Train the student NAME, once for each of its seeds.

    Reads params.yaml's `student` and `students.NAME`, data and models/teacher; writes models/students/NAME. Losses and
    AUPRC go to MLflow after each epoch.
    """
    from iusp.console import train_student
    from iusp.tracking import Tracker, readable_errors

    config = _config(ctx)
    if name not in config.students:
        raise InputError(f"{ctx.obj}: there is no students.{name}, only {', '.join(config.students)}")
    with readable_errors():
        tracker = Tracker.of(config, DATASET)
    entry = config.students[name]
    train_student(name, entry, config.student, tracker, DATASET, FEATURES, TEACHER, STUDENTS / name)


@main.command()
@click.pass_context
def evaluation(ctx: click.Context) -> None:
    """Measure how good every network is, and what it costs.

    Reads params.yaml's `evaluation`, data and models; writes reports/evaluation: metrics.json, latency.json,
    predictions in the challenge's format, pictures, report.html, and every student as devices get it.
    """
    from iusp.console import shown_progress
    from iusp.steps.evaluation import Inputs, run

    config = _config(ctx)
    inputs = Inputs(DATASET, RECORDINGS, FEATURES, TEACHER, {name: [STUDENTS / name] for name in config.students})
    with shown_progress() as progress:
        run(config.evaluation, inputs, EVALUATION, progress)


@main.command()
@click.pass_context
def registration(ctx: click.Context) -> None:
    """Register every student in MLflow.

    Completes the MLflow runs of this execution and makes each student a version of one registered model, with the alias
    `challenger` for the best on validate. MLFLOW_TRACKING_URI names the server; sqlite:///mlflow.db without it.
    """
    from iusp.steps.registration import run
    from iusp.tracking import Tracker, readable_errors

    config = _config(ctx)
    with readable_errors():
        tracker = Tracker.of(config, DATASET)
        run(config, tracker, DATASET, EVALUATION, REGISTRATION)
        tracker.finish("SUCCEEDED")


@main.command()
def results() -> None:
    """Show what the last `dvc repro` computed, as a table."""
    from iusp.console import show_results

    show_results(EVALUATION, REGISTRATION)
    click.echo("MLflow: make mlflow   Compare: dvc metrics diff, dvc plots diff")


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


@main.command()
@click.argument("recordings", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--model",
    help="A student's float32.onnx or int8.onnx, or models:/NAME@ALIAS.  [default: the champion of params.yaml's]",
)
@click.option("--window", type=float, default=10, show_default=True, help="Seconds that are tagged at once.")
@click.option("--hop", type=float, default=5, show_default=True, help="Seconds from one window to the next.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object per window, with all probabilities.")
@click.pass_context
def tag(ctx: click.Context, recordings: Path, model: str | None, window: float, hop: float, as_json: bool) -> None:
    """Say what is in RECORDINGS, and when: a file, a folder, or - for standard input.

    WAV, FLAC or OGG of any length, rate and number of channels. Printed are the tags whose probability reaches the
    threshold that was chosen on validate. A file that cannot be read gets a line on standard error; the others go on,
    and the exit status is 2. With an ONNX file (device.json lies beside it), neither torch nor MLflow is needed.
    """
    import tempfile

    from iusp.console import show_tags
    from iusp.device.runtime import load

    model = model or f"models:/{_config(ctx).registration.model_name}@champion"
    with tempfile.TemporaryDirectory() as temporary:
        if model.startswith("models:/"):
            from iusp.registry import fetch_device
            from iusp.tracking import readable_errors

            with readable_errors():
                network = load(fetch_device(model, Path(temporary)) / "float32.onnx")
        else:
            network = load(Path(model))
    if not show_tags(recordings, network, window, hop, as_json):
        ctx.exit(2)
