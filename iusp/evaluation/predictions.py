"""Read, write and score predictions in the challenge's CSV format: one row for each clip, one column for each tag.

The agreed ground truth of a split consists of the annotations of the split with `annotator_id` 0.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from iusp.data.labels import Coarse, derive_truth, read_annotations
from iusp.data.taxonomy import Taxonomy
from iusp.errors import InputError
from iusp.evaluation.metrics import Level, level_tags, paired_difference, score
from iusp.io.files import atomic
from iusp.io.tables import csv_format
from iusp.io.text import normalised

CLIP = "audio_filename"


def write_predictions(path: Path, filenames: Sequence[str], scores: NDArray[np.float64], tags: Sequence[str]) -> None:
    """Write predictions atomically. `read_predictions` returns the same float64 values.

    Args:
        path: CSV file to write.
        filenames: names of the N clips.
        scores: scores (N, K) in [0, 1].
        tags: names of the K tags.
    """
    table = pd.DataFrame(scores.astype(np.float64), columns=list(tags))
    table.insert(0, CLIP, list(filenames))
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def read_predictions(path: Path, taxonomy: Taxonomy) -> pd.DataFrame:
    """Read and check predictions.

    Args:
        path: CSV file to read.
        taxonomy: categories and tags.

    Returns:
        One row for each clip in the order of the file, indexed by `audio_filename`. There is one column for each coarse
        tag, then one column for each fine tag; the scores are float64 in [0, 1]. If the file has no column for a tag,
        the score of the tag is 0, as in the challenge.

    Raises:
        InputError: the file cannot be read, is not a CSV file or has no rows; a column is unknown or repeated; a row is
            too short or too long; a clip is repeated; or a score is not a number in [0, 1].
    """
    header, rows = _read_csv(path)
    tags = [*taxonomy.coarse_tags, *taxonomy.all_fine_tags]
    for column in header:
        if column not in (CLIP, *tags):
            raise InputError(f"{path}: column {column!r} is not a tag of the taxonomy; remove it or correct its name")
    lines: dict[str, int] = {}
    scores = np.zeros((len(rows), len(tags)))
    for row, (line, cells) in enumerate(rows):
        named = dict(zip(header, cells, strict=True))
        clip = normalised(named.pop(CLIP))
        if clip in lines:
            raise InputError(f"{path}: line {line} repeats the clip {clip} of line {lines[clip]}; keep one of them")
        lines[clip] = line
        for tag, cell in named.items():
            scores[row, tags.index(tag)] = _probability(path, line, tag, cell)
    return pd.DataFrame(scores, index=pd.Index(lines, name=CLIP), columns=tags)


def read_columns(path: Path, tags: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Read the columns of a predictions file that contain numbers: the scores of tags, and other numbers.

    Args:
        path: CSV file with the column `audio_filename`. If a recording has several windows, its name occurs in several
            rows.
        tags: tags for which the file must have a column with scores in [0, 1].

    Returns:
        For each column, its N numbers in the order of the file. Columns of tags are always returned. Another column is
        returned only if all its values are finite numbers.

    Raises:
        InputError: the file cannot be read, is not a CSV file or has no rows; a tag is missing; a row is too short or
            too long; or a score is not a number in [0, 1].
    """
    header, rows = _read_csv(path)
    for tag in tags:
        if tag not in header:
            raise InputError(f"{path}: lacks the column {tag}; compare predictions of the same network")
    columns = {}
    for place, column in enumerate(header):
        if column in tags:
            values = np.array([_probability(path, line, column, cells[place]) for line, cells in rows])
        elif column == CLIP or not np.isfinite(values := np.array([_number(cells[place]) for _, cells in rows])).all():
            continue
        columns[column] = values
    return columns


def read_pair(
    reference: Path, predictions: Sequence[Path], thresholds: Mapping[str, float] | None
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]], Mapping[str, float]]:
    """Read the reference and the new predictions that are compared with it.

    Args:
        reference: CSV file with the numbers of the reference, as `read_columns` reads it.
        predictions: CSV files with the new numbers, which are concatenated.
        thresholds: threshold of each tag. If None, every column of the reference whose values all lie in [0, 1] counts
            as a tag with the threshold 0.5.

    Returns:
        Three values: the numbers of the reference by column, the new numbers by column, and the threshold of each tag.
        The new numbers have only the columns that all files have.

    Raises:
        InputError: a file cannot be used, or the files have no column of numbers in common.
    """
    then = read_columns(reference, list(thresholds or ()))
    if thresholds is None:
        thresholds = {name: 0.5 for name, values in then.items() if values.min() >= 0 and values.max() <= 1}
    files = [read_columns(path, list(thresholds)) for path in predictions]
    common = [column for column in then if all(column in file for file in files)]
    if not common:
        raise InputError(
            f"{predictions[0]}: has no column of numbers in common with {reference}; compare predictions of "
            "the same network"
        )
    return then, {column: np.concatenate([file[column] for file in files]) for column in common}, thresholds


def score_file(
    predictions: Path, annotations: Path, taxonomy: Taxonomy, split: str, level: Level, coarse: Coarse
) -> dict[str, Any]:
    """Score predictions against the agreed ground truth of a split.

    Args:
        predictions: CSV file in the format of `write_predictions`.
        annotations: CSV file with annotations in SONYC-UST's format.
        taxonomy: categories and tags.
        split: split whose rows with `annotator_id` 0 are the ground truth.
        level: ``coarse`` or ``fine``.
        coarse: source of the coarse ground truth, as in `iusp.data.labels.derive_truth`.

    Returns:
        The fields of `iusp.evaluation.metrics.Scores`:

        - ``micro_auprc``, ``micro_f1`` and ``macro_auprc``: a number each;
        - ``classwise``: the AUPRC of each category, by the id of the category.

    Raises:
        InputError: a file cannot be used, the split has no ground truth of this level, or the files have different
            clips.
    """
    truth = _read_truth(annotations, taxonomy, split, level, coarse)
    scores = read_predictions(predictions, taxonomy)
    missing, foreign = truth.index.difference(scores.index), scores.index.difference(truth.index)
    differences = [
        f"{word} ({', '.join(clips[:3])}{', …' if len(clips) > 3 else ''})"
        for word, clips in (
            (f"lacks {len(missing)}", missing),
            (f"has {len(foreign)} other", foreign),
        )
        if len(clips)
    ]
    if differences:
        raise InputError(
            f"{predictions}: must have exactly the {len(truth)} clips of split {split} in {annotations}; it "
            f"{' and '.join(differences)}"
        )
    return asdict(score(truth.to_numpy(), scores.loc[truth.index, list(truth)].to_numpy(), taxonomy, level))


def compare_files(
    predictions: Path,
    reference: Path,
    annotations: Path,
    taxonomy: Taxonomy,
    split: str,
    level: Level,
    coarse: Coarse,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Score two files of predictions on the clips that both files have, and compare the scores.

    Args:
        predictions: CSV file in the format of `write_predictions`.
        reference: CSV file in the same format, to compare with.
        annotations: CSV file with annotations in SONYC-UST's format.
        taxonomy: categories and tags.
        split: split whose rows with `annotator_id` 0 are the ground truth.
        level: ``coarse`` or ``fine``.
        coarse: source of the coarse ground truth, as in `iusp.data.labels.derive_truth`.
        resamples: number of resamples of the paired bootstrap.
        seed: seed of the paired bootstrap.

    Returns:
        A dict with these keys:

        - ``clips``: a dict with the number of clips that are compared (``compared``), of the split (``split``), and of
          each file (``predictions`` and ``reference``);
        - ``predictions`` and ``reference``: the scores of each file, as `score_file` returns them;
        - the fields of `iusp.evaluation.metrics.Difference`, for predictions minus reference.

    Raises:
        InputError: a file cannot be used, the split has no ground truth of this level, or the files have no clip in
            common.
    """
    truth = _read_truth(annotations, taxonomy, split, level, coarse)
    ours, references = (read_predictions(path, taxonomy) for path in (predictions, reference))
    clips = [clip for clip in truth.index if clip in ours.index and clip in references.index]
    if not clips:
        raise InputError(
            f"{predictions}: shares no clip of split {split} in {annotations} with {reference}; compare predictions of "
            "the same clips"
        )
    true = truth.loc[clips].to_numpy()
    our_scores, other_scores = (table.loc[clips, list(truth)].to_numpy() for table in (ours, references))
    return {
        "clips": {"compared": len(clips), "split": len(truth), "predictions": len(ours), "reference": len(references)},
        "predictions": asdict(score(true, our_scores, taxonomy, level)),
        "reference": asdict(score(true, other_scores, taxonomy, level)),
    } | asdict(paired_difference(true, our_scores, other_scores, taxonomy, level, resamples, seed))


def _read_truth(annotations: Path, taxonomy: Taxonomy, split: str, level: Level, coarse: Coarse) -> pd.DataFrame:
    """Return the agreed ground truth of a split, with a row for each clip and a column for each tag of the level."""
    truth = derive_truth(read_annotations(annotations, taxonomy), taxonomy, split, coarse)
    if truth.empty:
        raise InputError(
            f"{annotations}: split {split} has no agreed ground truth (annotator_id 0); choose another split"
        )
    tags = list(level_tags(taxonomy, level))
    if lacking := [tag for tag in tags if tag not in truth]:
        raise InputError(f"{annotations}: lacks {lacking[0]}_presence, which level {level} needs; choose another level")
    return truth[tags]


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the cells of the header, and the line number and the cells of every row below it that is not blank.

    Raises:
        InputError: the file cannot be read or is not a CSV file, a column is missing or repeated, or a row is
            shorter or longer than the header.
    """
    try:
        form = csv_format(path, CLIP)
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter=form.separator, skipinitialspace=True)
            lines = [(reader.line_num, cells) for cells in reader if any(map(str.strip, cells))]
        rows = lines[form.first_line :]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a predictions CSV") from None
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path}: is not a CSV file ({error}); it must be UTF-8 text with commas") from None
    if len(rows) < 2:
        raise InputError(f"{path}: has no predictions; write a header and one row per clip")
    header = [normalised(name.strip()) for name in rows[0][1]]
    if CLIP not in header:
        raise InputError(f"{path}: lacks the column {CLIP}; the first line must name it and the tags")
    seen: set[str] = set()
    for column in header:
        if not column.isprintable():
            raise InputError(f"{path}: column {column!r} cannot be printed; rename it")
        if column in seen:
            raise InputError(f"{path}: column {column} occurs twice; keep one of them")
        seen.add(column)
    for line, cells in rows[1:]:
        if len(cells) != len(header):
            raise InputError(
                f"{path}: line {line} has {len(cells)} cells, but the header has {len(header)}; correct it"
            )
    if form.separator == ",":
        return header, rows[1:]
    # Such files have a decimal comma, but file names may contain commas, too.
    place = header.index(CLIP)
    return header, [
        (line, [cell if at == place else cell.replace(",", ".") for at, cell in enumerate(cells)])
        for line, cells in rows[1:]
    ]


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def _probability(path: Path, line: int, tag: str, cell: str) -> float:
    value = _number(cell)
    if not 0 <= value <= 1:
        raise InputError(f"{path}: line {line}, column {tag}: {cell!r} must be a number from 0 to 1")
    return value
