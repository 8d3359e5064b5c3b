"""The command line; every step imports what it needs when it is called."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iusp import __version__
from iusp.errors import InputError

if TYPE_CHECKING:
    from iusp.config.params import Config
    from iusp.registry.tracking import Tracker
    from iusp.registry.versions import Registry

DATASET, RECORDINGS, FEATURES = Path("data/dataset"), Path("data/recordings"), Path("data/features")
TEACHER, RECIPES, STUDENTS = Path("models/teacher"), Path("models/recipes"), Path("models/students")
EVALUATION, REGISTRATION = Path("reports/evaluation"), Path("reports/registration.json")


class Commands(click.Group):
    """Turns what went wrong for the user into one line and exit status 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        from iusp.cli.console import readable_failures

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
    from iusp.config.params import load

    return load(ctx.obj)


def _tracker(config: "Config") -> "Callable[[], Tracker]":
    """Return what opens MLflow's runs of this execution."""
    from iusp.registry.tracking import Tracker

    return partial(Tracker.of, config, DATASET)


@main.command()
@click.pass_context
def dataset(ctx: click.Context) -> None:
    """Collect, check, index and label the recordings.

    Reads params.yaml's `dataset`; writes data/dataset and, the audio alone, data/recordings. Source `embedded`
    generates city scenes; `sonyc-ust` downloads the published data set; `folder` takes over a folder in its format,
    `s3` one in a bucket, `dvc` one in a DVC repository at a revision. Bad clips go to data/dataset/quarantine.csv with
    their reasons.
    """
    from iusp.cli.console import shown_progress
    from iusp.steps.dataset import run

    with shown_progress() as reporter:
        run(_config(ctx).dataset, DATASET, RECORDINGS, reporter)


@main.command()
@click.pass_context
def features(ctx: click.Context) -> None:
    """Compute log-mel features, packed per split.

    Reads params.yaml's `features`, data/dataset and data/recordings; writes data/features.
    """
    from iusp.cli.console import shown_progress
    from iusp.steps.features import run

    with shown_progress() as reporter:
        run(_config(ctx).features, DATASET, RECORDINGS, FEATURES, reporter)


@main.command()
@click.pass_context
def teacher(ctx: click.Context) -> None:
    """Train the teacher and store its knowledge of every training clip.

    Reads params.yaml's `teacher` and `augmentation`, data/dataset and data/features; writes models/teacher. Losses and
    AUPRC go to MLflow after each epoch. Several processes share the work under torchrun:

        torchrun --nproc-per-node 2 -m iusp teacher
    """
    from iusp.cli.console import shown_progress
    from iusp.registry.tracking import tracked
    from iusp.reporter import Reporter
    from iusp.steps.teacher import run
    from iusp.training import distributed
    from iusp.training.data import TrainingFolders

    config = _config(ctx)
    inputs = TrainingFolders(DATASET, FEATURES)
    with distributed.group():
        if distributed.rank():
            # The first process reports for all.
            run(config.teacher, config.augmentation, inputs, TEACHER, Reporter())
            return
        outage = config.registration.outage
        with shown_progress() as shown, tracked(shown, _tracker(config), ["teacher"], outage) as reporter:
            run(config.teacher, config.augmentation, inputs, TEACHER, reporter)


@main.command()
@click.pass_context
def recipes(ctx: click.Context) -> None:
    """Write what shapes each student, so that `dvc repro` trains only the students that a change concerns.

    Reads params.yaml's `distillation` and `students`, and the code of the methods; writes models/recipes.
    """
    from iusp.artifacts.recipes import write_recipes

    config = _config(ctx)
    write_recipes([config.recipe(name) for name in config.students], RECIPES)


@main.command()
@click.argument("name")
@click.pass_context
def student(ctx: click.Context, name: str) -> None:
    """Train the student NAME, once for each of its seeds.

    Reads params.yaml's `distillation` and `students.NAME`, data and models/teacher; writes models/students/NAME. Losses
    and AUPRC go to MLflow after each epoch.
    """
    from iusp.cli.console import shown_progress
    from iusp.registry.tracking import tracked
    from iusp.steps.student import StudentInputs, run, run_name
    from iusp.training.data import TrainingFolders

    config = _config(ctx)
    recipe = config.recipe(name)
    inputs = StudentInputs(TrainingFolders(DATASET, FEATURES), TEACHER)
    networks, outage = [run_name(name, seed) for seed in recipe.student.seeds], config.registration.outage
    with shown_progress() as shown, tracked(shown, _tracker(config), networks, outage) as reporter:
        run(recipe, inputs, STUDENTS / name, reporter)


@main.command()
@click.pass_context
def evaluation(ctx: click.Context) -> None:
    """Measure how good every network is, and what it costs.

    Reads params.yaml's `evaluation`, data and models; writes reports/evaluation: metrics.json, latency.json,
    predictions in the challenge's format, pictures, report.html, and every student as devices get it.
    """
    from iusp.cli.console import shown_progress
    from iusp.steps.evaluation import Inputs, run

    config = _config(ctx)
    inputs = Inputs(DATASET, RECORDINGS, FEATURES, TEACHER, {name: [STUDENTS / name] for name in config.students})
    with shown_progress() as reporter:
        run(config.evaluation, inputs, EVALUATION, reporter)


@main.command()
@click.pass_context
def registration(ctx: click.Context) -> None:
    """Register every student in MLflow.

    Completes the MLflow runs of this execution and makes each student a version of one registered model, with the alias
    `challenger` for the best on validate. MLFLOW_TRACKING_URI names the server; sqlite:///mlflow.db without it.
    """
    from iusp.registry.tracking import Tracker, readable_errors
    from iusp.steps.registration import run

    config = _config(ctx)
    with readable_errors():
        tracker = Tracker.of(config, DATASET)
        run(config, tracker, DATASET, EVALUATION, REGISTRATION)
        tracker.finish("SUCCEEDED")


@main.command()
def results() -> None:
    """Show what the last `dvc repro` computed, as a table."""
    from iusp.cli.console import show_results

    show_results(EVALUATION, REGISTRATION)
    click.echo("MLflow: make mlflow   Compare: dvc metrics diff, dvc plots diff")


def _truth_options(command: Callable[..., None]) -> Callable[..., None]:
    """Say what predictions are held against."""
    path = click.Path(path_type=Path)
    for option in (
        click.option(
            "--coarse",
            type=click.Choice(["from-fine", "as-published"]),
            default="from-fine",
            show_default=True,
            help="Coarse truth derived from the fine tags, or the CSV's own columns (faulty in 2019's file).",
        ),
        click.option("--level", type=click.Choice(["coarse", "fine"]), default="coarse", show_default=True),
        click.option("--split", default="validate", show_default=True, help="Whose clips the predictions are of."),
        click.option("--taxonomy", type=path, required=True, help="The data set's taxonomy YAML."),
        click.option("--annotations", type=path, required=True, help="CSV in SONYC-UST's format."),
    ):
        command = option(command)
    return command


@main.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@_truth_options
def score(predictions: Path, annotations: Path, taxonomy: Path, split: str, level: Any, coarse: Any) -> None:
    """Score any system's PREDICTIONS as DCASE 2019 Task 5 does.

    PREDICTIONS is a CSV with the column audio_filename and one column of scores in [0, 1] per tag; a missing column
    counts as 0. Prints JSON.
    """
    from iusp.data.taxonomy import read_taxonomy
    from iusp.evaluation.predictions import score_file

    result = score_file(predictions, annotations, read_taxonomy(taxonomy), split, level, coarse)
    click.echo(json.dumps(result, indent=2))


@main.command()
@click.option("--schema", is_flag=True, help="Print the JSON Schema of params.yaml instead.")
@click.pass_context
def config(ctx: click.Context, schema: bool) -> None:
    """Check params.yaml and print it as the pipeline reads it."""
    from iusp.config.params import Config

    document = Config.model_json_schema() if schema else _config(ctx).model_dump(mode="json", by_alias=True)
    click.echo(json.dumps(document, indent=2))


def _registry(ctx: click.Context) -> "tuple[Registry, Config]":
    from iusp.registry.versions import Registry

    config = _config(ctx)
    return Registry(config.registration.model_name), config


@main.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with all tags.")
@click.pass_context
def models(ctx: click.Context, as_json: bool) -> None:
    """List the registered versions, the newest first.

    Aliases, quality with its 95 % interval, cost of the files for devices (float32 / int8), digest of the data, age.
    """
    if ctx.invoked_subcommand:
        return
    from iusp.cli.console import show_models
    from iusp.registry.tracking import readable_errors

    with readable_errors():
        show_models(_registry(ctx)[0], as_json)


@models.command()
@click.argument("version", type=click.IntRange(min=1))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def show(ctx: click.Context, version: int, as_json: bool) -> None:
    """Show one VERSION: its tags, what became of it, and what the gate says of it today.

    The gate is asked whether VERSION may succeed today's champion; nothing is changed.
    """
    from iusp.cli.console import show_version
    from iusp.registry.tracking import readable_errors

    with readable_errors():
        registry, config = _registry(ctx)
        show_version(registry, version, config.registration.gate, config.evaluation, as_json)


class _Champion(click.ParamType[int]):
    name = "version|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "none":
            return 0
        return int(click.IntRange(min=1).convert(value, param, ctx))


@main.command()
@click.argument("version", type=click.IntRange(min=1))
@click.option("--expect", type=_Champion(), help="Refuse unless this one is the champion now (`none`: none).")
@click.option("--reason", default="", help="Why; kept in the history.")
@click.option("--force", is_flag=True, help="Promote against the gate's reasons; needs --reason, and is recorded.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def promote(ctx: click.Context, version: int, expect: int | None, reason: str, force: bool, as_json: bool) -> None:
    """Make VERSION the champion, if the gate lets it.

    The gate (params.yaml's `registration.gate`) holds the version's measurements against floors, budgets and limits of
    parity, and compares it with today's champion on the same clips. The alias `champion` moves to it,
    `previous_champion` to the one before. If it is refused, or somebody else was faster, every reason is listed,
    nothing has changed, and the exit status is 1.
    """
    from iusp.cli.console import show_outcome
    from iusp.registry.promotion import promote
    from iusp.registry.tracking import readable_errors

    with readable_errors():
        registry, config = _registry(ctx)
        gate, evaluation = config.registration.gate, config.evaluation
        outcome = promote(registry, version, gate, evaluation, why=reason, force=force, expected=expect)
    show_outcome(outcome, as_json)
    ctx.exit(1 if outcome.reasons else 0)


@main.command()
@click.option("--reason", default="", help="Why; kept in the history.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def rollback(ctx: click.Context, reason: str, as_json: bool) -> None:
    """Make the previous champion the champion again.

    The gate isn't asked. A second rollback goes back one champion further. If somebody else was faster, nothing has
    changed, and the exit status is 1.
    """
    from iusp.cli.console import show_outcome
    from iusp.registry.promotion import rollback
    from iusp.registry.tracking import readable_errors

    with readable_errors():
        outcome = rollback(_registry(ctx)[0], reason)
    show_outcome(outcome, as_json)
    ctx.exit(1 if outcome.reasons else 0)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the gate's verdicts.")
@click.pass_context
def history(ctx: click.Context, as_json: bool) -> None:
    """Show every promotion and rollback, the newest last.

    Who did it, when, from which version to which, why, and what the gate said.
    """
    from iusp.cli.console import show_history
    from iusp.registry.tracking import readable_errors

    with readable_errors():
        show_history(_registry(ctx)[0], as_json)


@main.command()
@click.option("--to", required=True, metavar="s3://BUCKET/PREFIX", help="Where devices fetch it from.")
@click.option(
    "--sign-with",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="IUSP_SIGNING_KEY",
    show_envvar=True,
    help="Private Ed25519 key (PEM) to sign the release with.",
)
@click.pass_context
def release(ctx: click.Context, to: str, sign_with: Path | None) -> None:
    """Publish the champion for devices.

    What a device needs of the registered version with the alias `champion` (the networks as ONNX, tags, thresholds)
    goes to a folder in the bucket that is never changed again; latest.json, which names its files with their SHA-256,
    comes last. boto3 finds the credentials, and AWS_ENDPOINT_URL names a server other than AWS.
    """
    import tempfile

    from iusp.cli.console import shown_progress
    from iusp.device.release import publish
    from iusp.registry.promotion import CHAMPION, read_history, unsettled
    from iusp.registry.tracking import readable_errors
    from iusp.registry.versions import Registry, fetch_artifacts

    name = _config(ctx).registration.model_name
    with tempfile.TemporaryDirectory() as folder:
        with readable_errors():
            registry = Registry(name)
            history = read_history(registry)
            if CHAMPION in unsettled(registry, history):
                raise InputError(
                    f"{name}: the alias {CHAMPION} is not where the history says (version {history.champion}); see "
                    "iusp history, and promote or roll back"
                )
            version = fetch_artifacts(registry.client, name, CHAMPION, "device", Path(folder))
        with shown_progress() as reporter:
            manifest = publish(Path(folder) / "device", name, version, to, sign_with, reporter)
    click.echo(f"{to}: latest is {name} version {version}, {len(manifest.files)} files in {manifest.folder}")


@main.command()
@click.argument("source", metavar="s3://BUCKET/PREFIX")
@click.option(
    "--to", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder that keeps the releases."
)
@click.option(
    "--public-key",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="IUSP_PUBLIC_KEY",
    show_envvar=True,
    help="Public Ed25519 key (PEM); what is not signed with it is refused.",
)
def fetch(source: str, to: Path, public_key: Path | None) -> None:
    """Fetch the latest release, verify it and make it the current one.

    FOLDER/current is a link to the release in use, FOLDER/previous to the one before. Whatever goes wrong, current
    stays. Exit status 0: current is whole, and the latest as far as the server can be reached; 2: there is none, or
    what the server has is refused.
    """
    from iusp.cli.console import shown_progress
    from iusp.device import release

    with shown_progress() as reporter:
        fetched = release.fetch(source, to, public_key, reporter)
    manifest = fetched.manifest
    if fetched.state == "offline":
        click.echo(f"iusp: {fetched.reason}; the current release stays", err=True)
    said = {"new": "new", "same": "unchanged", "offline": "not renewed"}[fetched.state]
    click.echo(f"{to / 'current'}: {manifest.model} version {manifest.version} of {manifest.created}, {said}")


@main.command()
@click.argument("predictions", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--reference", type=click.Path(path_type=Path), help="CSV to compare with, instead of the champion's.")
@click.option("--device", type=click.Path(path_type=Path), help="device.json with tags and thresholds; see below.")
@click.option("--psi", type=click.FloatRange(0), default=0.2, show_default=True, help="Index that matters.")
@click.option(
    "--alpha", type=click.FloatRange(0, 1), default=0.05, show_default=True, help="Largest chance of a false alarm."
)
@click.option("--picture", type=click.Path(path_type=Path), help="PNG to write: distributions then and now.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_context
def monitor(
    ctx: click.Context,
    predictions: tuple[Path, ...],
    reference: Path | None,
    device: Path | None,
    psi: float,
    alpha: float,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Tell whether scores of new recordings, or the recordings, have drifted.

    PREDICTIONS are CSVs with the column audio_filename and a column of scores in [0, 1] per tag; other columns of
    numbers that the reference has, too, such as levels, are compared as well. The reference is what the champion said
    of its test clips, with its tags and thresholds. With --reference and without --device, every column that stays
    within [0, 1] is a tag, with the threshold 0.5.

    A column has drifted if its population stability index is at least --psi, and a Kolmogorov-Smirnov test, corrected
    for the number of columns, is significant at --alpha. Exit status 0: none has; 1: some have; 2: bad input.
    """
    import tempfile
    from dataclasses import asdict

    from iusp.cli.console import show_drift
    from iusp.device.drift import compare
    from iusp.device.release import read_thresholds
    from iusp.evaluation.predictions import read_pair

    with tempfile.TemporaryDirectory() as folder:
        if reference is None:
            from iusp.registry.tracking import connect, readable_errors
            from iusp.registry.versions import fetch_artifacts

            name, stored = _config(ctx).registration.model_name, ("evaluation/predictions.csv", "device/device.json")
            with readable_errors():
                client = connect()
                version = fetch_artifacts(client, name, "champion", stored[0], Path(folder))
                fetch_artifacts(client, name, version, stored[1], Path(folder))
            reference, device = Path(folder) / stored[0], device or Path(folder) / stored[1]
        then, now, thresholds = read_pair(reference, predictions, read_thresholds(device) if device else None)
    drifts = compare(then, now, thresholds, psi, alpha)
    if picture:
        from iusp.evaluation.plots import draw_drift

        panels = []
        for drift in drifts:
            title = f"{drift.column}\nPSI {drift.psi:.2f}, p {drift.p_value:.2g}{', drifted' if drift.drifted else ''}"
            panels.append((title, then[drift.column], now[drift.column], drift.threshold, drift.drifted))
        draw_drift(panels, picture)
    if as_json:
        click.echo(json.dumps([asdict(drift) for drift in drifts], indent=2))
    else:
        show_drift(drifts)
    ctx.exit(any(drift.drifted for drift in drifts))


@main.command()
@click.argument("recordings", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--model",
    help="A student's float32.onnx or int8.onnx, or models:/NAME@ALIAS.  [default: the champion of params.yaml's]",
)
@click.option("--window", type=float, help="Seconds that are tagged at once.  [default: the model's clip]")
@click.option("--hop", type=float, help="Seconds from one window to the next.  [default: half of the window]")
@click.option("--json", "form", flag_value="json", help="Print a JSON object per window, with all probabilities.")
@click.option("--csv", "form", flag_value="csv", help="Print a row of all probabilities per window, for iusp monitor.")
@click.pass_context
def tag(
    ctx: click.Context, recordings: Path, model: str | None, window: float | None, hop: float | None, form: Any
) -> None:
    """Say what is in RECORDINGS, and when: a file, a folder, or - for standard input.

    WAV, FLAC or OGG of any length, rate and number of channels. Printed are the tags whose probability reaches the
    threshold that was chosen on validate. A file that cannot be read gets a line on standard error; the others go on,
    and the exit status is 2. With an ONNX file (device.json lies beside it), neither torch nor MLflow is needed.
    """
    from iusp import load
    from iusp.cli.console import show_tags

    network = load(model or f"models:/{_config(ctx).registration.model_name}@champion")
    if not show_tags(recordings, network, window, hop, form):
        ctx.exit(2)


@main.command()
@click.option("--to", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write into.")
@click.option(
    "--model",
    help="models:/NAME@ALIAS, or a student's folder `model` of evaluation.  [default: the champion of params.yaml's]",
)
@click.pass_context
def executorch(ctx: click.Context, to: Path, model: str | None) -> None:
    """Write a registered student as ExecuTorch programs for XNNPACK.

    net.pte goes from log-mel to probabilities, float32.pte from the waveform; device.json beside them has tags and
    thresholds. A program that differs from PyTorch by more than 1e-4 is not written. Needs the extra `executorch`
    (make executorch).
    """
    import tempfile

    from iusp.device.executorch import write_programs

    model = model or f"models:/{_config(ctx).registration.model_name}@champion"
    with tempfile.TemporaryDirectory() as temporary:
        if model.startswith("models:/"):
            from iusp.registry.versions import fetch_model

            fetch_model(model, Path(temporary), "extra_files", "device")
        programs = write_programs(Path(temporary) if model.startswith("models:/") else Path(model), to)
    for name, program in programs.items():
        count = program.delegated + program.remaining
        click.echo(
            f"{to / name}: {(to / name).stat().st_size / 1000:.0f} kB, {program.delegated} of {count} operators in "
            f"XNNPACK, at most {program.max_difference:.1e} from PyTorch"
        )


@main.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.argument("reference", type=click.Path(path_type=Path))
@_truth_options
@click.pass_context
def compare(
    ctx: click.Context,
    predictions: Path,
    reference: Path,
    annotations: Path,
    taxonomy: Path,
    split: str,
    level: Any,
    coarse: Any,
) -> None:
    """Compare two systems, or versions of the data, on the clips that both were evaluated on.

    PREDICTIONS and REFERENCE are CSVs as `iusp score` takes them. Both are scored on the clips of the split that both
    have, against the truth in the annotations. Prints JSON: the scores, and the difference in micro AUPRC, PREDICTIONS
    minus REFERENCE, with its 95 % interval (low, high) and the share of resamples in which it is negative: a paired
    bootstrap over clips, by params.yaml's `evaluation`.
    """
    from iusp.data.taxonomy import read_taxonomy
    from iusp.evaluation.predictions import compare_files

    settings = _config(ctx).evaluation
    files = predictions, reference, annotations, read_taxonomy(taxonomy)
    result = compare_files(*files, split, level, coarse, settings.resamples, settings.seed)
    click.echo(json.dumps(result, indent=2))
