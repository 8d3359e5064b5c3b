"""Releases for devices, tags of recordings, and drift of what devices report."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from iusp.cli.console import print_json, print_table, shown_progress, warn
from iusp.cli.context import load_registry_settings
from iusp.errors import InputError

if TYPE_CHECKING:
    from iusp.device.drift import Drift
    from iusp.device.runtime import DeviceModel, Window

Form = Literal["json", "csv"]


def _champion(ctx: click.Context) -> str:
    """Return the address of the champion of the registered model in params.yaml."""
    return f"models:/{load_registry_settings(ctx).registration.model_name}@champion"


@click.command()
@click.option("--to", required=True, metavar="s3://BUCKET/PREFIX", help="Bucket and prefix that devices fetch from.")
@click.option(
    "--sign-with",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="IUSP_SIGNING_KEY",
    show_envvar=True,
    help="Private Ed25519 key (PEM) that signs the release.",
)
@click.pass_context
def release(ctx: click.Context, to: str, sign_with: Path | None) -> None:
    """Publish the champion for devices.

    Uploads the champion's networks (ONNX), tags and thresholds to a new folder in the bucket, which never changes
    afterwards. latest.json, which names the files with their SHA-256, is written last. boto3 finds the credentials;
    AWS_ENDPOINT_URL names a server other than AWS.

    \b
    Reads:   params.yaml (registration.model_name), MLflow's registry
    Writes:  s3://BUCKET/PREFIX
    Example: iusp release --to s3://models/street --sign-with key.pem
    """
    import tempfile

    from iusp.device.release import publish
    from iusp.registry.promotion import CHAMPION, read_history, unsettled
    from iusp.registry.tracking import readable_errors
    from iusp.registry.versions import Registry, fetch_artifacts

    name = load_registry_settings(ctx).registration.model_name
    with tempfile.TemporaryDirectory() as folder:
        with readable_errors():
            registry = Registry(name)
            history = read_history(registry)
            if CHAMPION in unsettled(registry, history):
                raise InputError(
                    f"{name}: the alias {CHAMPION} does not point to version {history.champion}, as the history says; "
                    "see iusp history, then promote or roll back"
                )
            version = fetch_artifacts(registry.client, name, CHAMPION, "device", Path(folder))
        with shown_progress() as reporter:
            manifest = publish(Path(folder) / "device", name, version, to, sign_with, reporter)
    click.echo(f"{to}: latest is {name} version {version}, {len(manifest.files)} files in {manifest.folder}")


@click.command()
@click.argument("source", metavar="s3://BUCKET/PREFIX")
@click.option(
    "--to", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder that keeps the releases."
)
@click.option(
    "--public-key",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="IUSP_PUBLIC_KEY",
    show_envvar=True,
    help="Public Ed25519 key (PEM); a release without its signature is refused.",
)
def fetch(source: str, to: Path, public_key: Path | None) -> None:
    """Fetch the latest release and verify it.

    The release becomes the current one if its checksums, and with --public-key its signature, are right. FOLDER/current
    is a link to the release in use, FOLDER/previous to the one before. If anything goes wrong, `current` stays usable.
    Exit status 0: `current` is complete, and it is the latest release if the server could be reached. Exit status 2:
    there is no release, or the server's release is refused.

    \b
    Reads:   s3://BUCKET/PREFIX
    Writes:  the folder of --to
    Example: iusp fetch s3://models/street --to street --public-key key.pub
    """
    from iusp.device import release

    with shown_progress() as reporter:
        fetched = release.fetch(source, to, public_key, reporter)
    manifest = fetched.manifest
    if fetched.state == "offline":
        warn(f"{fetched.reason}; the current release stays in use")
    state = {"new": "new", "same": "unchanged", "offline": "not renewed"}[fetched.state]
    click.echo(f"{to / 'current'}: {manifest.model} version {manifest.version} of {manifest.created}, {state}")


@click.command()
@click.argument("recordings", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--model",
    help="float32.onnx or int8.onnx of a student, or models:/NAME@ALIAS.  [default: the champion]",
)
@click.option("--window", type=float, help="Length of a window in seconds.  [default: the length of a training clip]")
@click.option("--hop", type=float, help="Seconds between the starts of two windows.  [default: half of the window]")
@click.option("--json", "form", flag_value="json", help="Print a JSON object for each window, with all probabilities.")
@click.option("--csv", "form", flag_value="csv", help="Print a CSV row for each window, for iusp monitor.")
@click.pass_context
def tag(
    ctx: click.Context, recordings: Path, model: str | None, window: float | None, hop: float | None, form: Form | None
) -> None:
    """Print which sounds occur in RECORDINGS, and when.

    RECORDINGS is a file, a folder, or - for standard input: WAV, FLAC or OGG of any length, sample rate and number of
    channels. Links to folders are followed; hidden files are left out. A tag is printed if its probability reaches the
    threshold that was chosen on validate. A file that cannot be read gets a line on standard error, and so do all audio
    files in other formats together; the other files are tagged, and the exit status is 2. With an ONNX file and the
    device.json beside it, neither torch nor MLflow is needed.

    \b
    Reads:   RECORDINGS; without --model, the champion in MLflow's registry
    Prints:  a line for each window
    Example: iusp tag street.wav
             iusp tag recordings/ --model float32.onnx --json
    """
    from iusp import load

    network = load(model or _champion(ctx))
    if not _print_tags(recordings, network, window, hop, form):
        ctx.exit(2)


def _print_tags(
    recordings: Path, model: "DeviceModel", window: float | None, hop: float | None, form: Form | None
) -> bool:
    """Tag recordings and print each window as soon as its tags are known.

    Returns:
        Whether every recording could be tagged.

    Raises:
        InputError: there is no recording, or window and hop do not fit each other.
    """
    import csv

    from iusp.data.audio import BadAudio

    table = csv.writer(sys.stdout, lineterminator="\n")
    with _found(recordings) as (found, good):
        if form == "csv":
            table.writerow(["audio_filename", *model.tags])
        for name, path in found:
            shown = name if name.isprintable() else ascii(name)
            try:
                for number, tagged in enumerate(model.tag(path, window=window, hop=hop)):
                    if form == "csv":
                        table.writerow([Path(shown).name, *tagged.probabilities.values()])
                    elif form == "json":
                        click.echo(json.dumps({"recording": shown, **vars(tagged)}))
                    else:
                        click.echo(_line(tagged) if number else f"{shown}\n{_line(tagged)}")
            except BadAudio as reason:
                warn(f"{shown}: {reason}")
                good = False
    return good


@contextmanager
def _found(recordings: Path) -> Iterator[tuple[list[tuple[str, Path]], bool]]:
    """Yield names and paths of the recordings, and whether a folder contains no other audio."""
    import shutil
    import tempfile

    if str(recordings) == "-":
        # Decoding needs a file that can be read from any position, which a pipe is not.
        with tempfile.NamedTemporaryFile() as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
            copy.flush()
            yield [("-", Path(copy.name))], True
        return
    if not recordings.exists():
        raise InputError(f"{recordings}: no such file or folder; give a recording, a folder of recordings, or -")
    if recordings.is_dir():
        paths, good = _found_in(recordings)
    else:
        paths, good = [recordings], True
    yield [(str(path), path) for path in paths], good


def _found_in(folder: Path) -> tuple[list[Path], bool]:
    """Return the recordings of a folder, and whether it contains no other audio; warn of what is left out."""
    from iusp.data.audio import SUFFIXES
    from iusp.data.recordings import find_recordings
    from iusp.io.text import first_names

    found = find_recordings(folder)
    for path, reason in found.unreadable.items():
        warn(f"{path}: {reason}")
    if found.others:
        names = first_names(str(path.relative_to(folder)) for path in found.others)
        warn(f"{folder}: skipped {len(found.others)} in other audio formats ({names}); convert to WAV, FLAC or OGG")
    if not found.paths:
        raise InputError(f"{folder}: contains no recording; give a folder with {', '.join(SUFFIXES)} files")
    return found.paths, not found.others and not found.unreadable


def _line(window: "Window") -> str:
    tags = ", ".join(f"{name} {window.probabilities[name]:.2f}" for name in window.tags)
    return f"{window.start:9.1f} – {window.end:.1f} s  {tags or '–'}"


@click.command()
@click.argument("predictions", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="CSV to compare with.  [default: the champion's scores of its test clips]",
)
@click.option(
    "--device",
    type=click.Path(path_type=Path),
    help="device.json with tags and thresholds.  [default: the champion's, unless --reference is given]",
)
@click.option(
    "--psi",
    type=click.FloatRange(0),
    default=0.2,
    show_default=True,
    help="Smallest population stability index that counts as drift.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Significance level: the largest probability of a false alarm.",
)
@click.option("--picture", type=click.Path(path_type=Path), help="PNG to write: both distributions of every column.")
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
    """Test whether the scores of new recordings have drifted.

    PREDICTIONS are CSVs with the column audio_filename and a column of scores in [0, 1] for each tag, such as
    `iusp tag --csv` prints. Other columns of numbers that the reference has too, such as sound levels, are compared as
    well. With --reference and without --device, every column whose values lie in [0, 1] is a tag with the threshold
    0.5.

    A column has drifted if its population stability index is at least --psi and a Kolmogorov-Smirnov test, corrected
    for the number of columns, is significant at --alpha. Exit status 0: no column has drifted; 1: some have; 2: bad
    input.

    \b
    Reads:   PREDICTIONS; without --reference, the champion in MLflow's registry
    Prints:  a table, or JSON
    Example: iusp monitor this-week.csv --picture drift.png
    """
    import tempfile
    from dataclasses import asdict

    from iusp.device.drift import compare
    from iusp.device.release import read_thresholds
    from iusp.evaluation.predictions import read_pair

    with tempfile.TemporaryDirectory() as folder:
        if reference is None:
            reference, thresholds_file = _fetch_reference(ctx, Path(folder))
            device = device or thresholds_file
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
        print_json([asdict(drift) for drift in drifts])
    else:
        _print_drift(drifts)
    ctx.exit(any(drift.drifted for drift in drifts))


def _fetch_reference(ctx: click.Context, folder: Path) -> tuple[Path, Path]:
    """Download the champion's scores of its test clips, and its tags and thresholds."""
    from iusp.registry.tracking import connect, readable_errors
    from iusp.registry.versions import fetch_artifacts

    name = load_registry_settings(ctx).registration.model_name
    scores, thresholds = "evaluation/predictions.csv", "device/device.json"
    with readable_errors():
        client = connect()
        version = fetch_artifacts(client, name, "champion", scores, folder)
        fetch_artifacts(client, name, version, thresholds, folder)
    return folder / scores, folder / thresholds


def _print_drift(drifts: "Sequence[Drift]") -> None:
    """Print how each column was distributed in the reference, and is distributed now."""
    rows = []
    for drift in drifts:
        then, now = drift.reference, drift.new
        pairs = ((then.mean, now.mean), *zip(then.quantiles, now.quantiles, strict=True))
        rows.append(
            [
                drift.column,
                *(f"{before:.3g} → {after:.3g}" for before, after in pairs),
                "" if then.above is None else f"{then.above:.1%} → {now.above:.1%}",
                f"{drift.psi:.3f}",
                f"{drift.ks:.3f}",
                f"{drift.p_value:.2g}",
                "drifted" if drift.drifted else "",
            ]
        )
    clips, numbers = drifts[0], ("mean", "10 %", "50 %", "90 %", "above threshold", "PSI", "KS", "p (Holm)")
    title = f"{clips.new.count:,} new clips against {clips.reference.count:,} of the reference"
    print_table(title, ["column", *numbers, ""], rows, numbers=numbers)


@click.command()
@click.option("--to", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write into.")
@click.option(
    "--model",
    help="models:/NAME@ALIAS, or a student's folder `model` of the evaluation step.  [default: the champion]",
)
@click.pass_context
def executorch(ctx: click.Context, to: Path, model: str | None) -> None:
    """Write a student as ExecuTorch programs for XNNPACK.

    net.pte maps log-mel features to probabilities, float32.pte maps the waveform to probabilities; device.json holds
    tags and thresholds. A program whose output differs from PyTorch's by more than 1e-4 is not written. Needs the extra
    `executorch` (make executorch).

    \b
    Reads:   the model; without --model, the champion in MLflow's registry
    Writes:  the folder of --to
    Example: iusp executorch --to programs
    """
    import tempfile

    from iusp.device.executorch import write_programs

    model = model or _champion(ctx)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(model)
        if model.startswith("models:/"):
            from iusp.registry.versions import fetch_model

            folder = Path(temporary)
            fetch_model(model, folder, "extra_files", "device")
        programs = write_programs(folder, to)
    for name, program in programs.items():
        count = program.delegated + program.remaining
        click.echo(
            f"{to / name}: {(to / name).stat().st_size / 1000:.0f} kB, {program.delegated} of {count} operators run in "
            f"XNNPACK, largest difference from PyTorch {program.max_difference:.1e}"
        )
