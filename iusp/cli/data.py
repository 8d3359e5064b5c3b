"""The commands on recordings and predictions: cut recordings into clips, score and compare any systems."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import click

from iusp.cli.console import shown_progress
from iusp.cli.context import load_config

Level = Literal["coarse", "fine"]
Coarse = Literal["from-fine", "as-published"]


def _truth_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which ground truth the predictions are compared with."""
    path = click.Path(path_type=Path)
    for option in (
        click.option(
            "--coarse",
            type=click.Choice(["from-fine", "as-published"]),
            default="from-fine",
            show_default=True,
            help="Take the coarse truth from the fine tags, or from the CSV's own coarse columns, which are faulty in "
            "the file of 2019.",
        ),
        click.option(
            "--level",
            type=click.Choice(["coarse", "fine"]),
            default="coarse",
            show_default=True,
            help="Level of the taxonomy to score.",
        ),
        click.option("--split", default="validate", show_default=True, help="Split whose clips are scored."),
        click.option("--taxonomy", type=path, required=True, help="Taxonomy of the data set (YAML)."),
        click.option("--annotations", type=path, required=True, help="Annotations in the format of SONYC-UST (CSV)."),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@_truth_options
def score(predictions: Path, annotations: Path, taxonomy: Path, split: str, level: Level, coarse: Coarse) -> None:
    """Score any system as DCASE 2019 Task 5 does.

    PREDICTIONS is a CSV with the column audio_filename and one column of scores in [0, 1] for each tag. A missing
    column counts as 0.

    \b
    Reads:   PREDICTIONS, annotations, taxonomy
    Prints:  JSON: micro and macro AUPRC, micro F1, AUPRC of each tag
    Example: iusp score predictions.csv --annotations annotations.csv \\
                 --taxonomy dcase-ust-taxonomy.yaml
    """
    from iusp.data.taxonomy import read_taxonomy
    from iusp.evaluation.predictions import score_file

    result = score_file(predictions, annotations, read_taxonomy(taxonomy), split, level, coarse)
    click.echo(json.dumps(result, indent=2))


@click.command()
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
    level: Level,
    coarse: Coarse,
) -> None:
    """Compare two systems on the clips that both scored.

    PREDICTIONS and REFERENCE are CSVs in the format of `iusp score`. The difference in micro AUPRC (PREDICTIONS minus
    REFERENCE) comes with its 95 % interval and with the share of resamples in which it is negative, from a paired
    bootstrap over clips.

    \b
    Reads:   PREDICTIONS, REFERENCE, annotations, taxonomy,
             params.yaml (evaluation)
    Prints:  JSON: both scores, and the difference
    Example: iusp compare new.csv old.csv --annotations annotations.csv \\
                 --taxonomy dcase-ust-taxonomy.yaml
    """
    from iusp.data.taxonomy import read_taxonomy
    from iusp.evaluation.predictions import compare_files

    settings = load_config(ctx).evaluation
    files = predictions, reference, annotations, read_taxonomy(taxonomy)
    result = compare_files(*files, split, level, coarse, settings.resamples, settings.seed)
    click.echo(json.dumps(result, indent=2))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--seconds", type=click.FloatRange(0.1), default=10, show_default=True, help="Length of a clip.")
def cut(folder: Path, output: Path, seconds: float) -> None:
    """Cut long recordings into clips.

    FOLDER is a data set in SONYC-UST's format. OUTPUT becomes the same data set with every recording cut into clips of
    equal length; the last clip of a recording overlaps the one before. Each clip gets all labels of its recording,
    although a sound may be in another part of it: listen to the clips of validate and test, and correct their labels.
    Point dataset.path to OUTPUT.

    \b
    Reads:   FOLDER (annotations CSV, taxonomy YAML, audio)
    Writes:  OUTPUT
    Example: iusp cut recordings/hours recordings/clips --seconds 10
    """
    from iusp.sources.cut import cut as cut_recordings

    with shown_progress() as reporter:
        recordings, clips = cut_recordings(folder, output, seconds, reporter)
    click.echo(f"{output}: {clips:,} clips of {recordings:,} recordings")
