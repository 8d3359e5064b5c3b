"""Predictions in the challenge's CSV format: a row per clip, a column per tag; and their score."""

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

CLIP = "audio_filename"


def write_predictions(path: Path, filenames: Sequence[str], scores: NDArray[np.float64], tags: Sequence[str]) -> None:
    """Write scores (N, K) of N clips and K tags, atomically; `read_predictions` returns the same float64 values."""
    table = pd.DataFrame(scores.astype(np.float64), columns=list(tags))
    table.insert(0, CLIP, list(filenames))
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def read_predictions(path: Path, taxonomy: Taxonomy) -> pd.DataFrame:
    """Read and check predictions.

    Returns:
        A row per clip in the file's order, indexed by `audio_filename`; a float64 column in [0, 1] per coarse, then
        per fine tag. A tag that the file has no column of is 0, as the challenge has it.

    Raises:
        InputError: the file cannot be read, is no CSV or has no rows; a column is unknown or repeated; a row is too
            short or too long; a clip is repeated or a score is not a number in [0, 1].
    """
    header, rows = _read_csv(path)
    tags = [*taxonomy.coarse_tags, *taxonomy.all_fine_tags]
    for column in header:
        if column not in (CLIP, *tags):
            raise InputError(f"{path}: column {column!r} is no tag of the taxonomy; remove it or correct its name")
    lines: dict[str, int] = {}
    scores = np.zeros((len(rows), len(tags)))
    for row, (line, cells) in enumerate(rows):
        named = dict(zip(header, cells, strict=True))
        clip = named.pop(CLIP)
        if clip in lines:
            raise InputError(f"{path}: line {line} repeats the clip {clip} of line {lines[clip]}; keep one of them")
        lines[clip] = line
        for tag, cell in named.items():
            scores[row, tags.index(tag)] = _probability(path, line, tag, cell)
    return pd.DataFrame(scores, index=pd.Index(lines, name=CLIP), columns=tags)


def read_columns(path: Path, tags: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Read scores, and whatever other numbers are in the file.

    Args:
        path: a CSV with the column `audio_filename`; clips may be repeated, as windows of a recording are.
        tags: that must be there, as scores in [0, 1].

    Returns:
        (N,) by column, in the file's order; a column that is no tag, and not all finite numbers, is left out.

    Raises:
        InputError: the file cannot be read, is no CSV or has no rows; a tag is missing; a row is too short or too long,
            or a score is not a number in [0, 1].
    """
    header, rows = _read_csv(path)
    for tag in tags:
        if tag not in header:
            raise InputError(f"{path}: lacks the column {tag}; compare what the same network said")
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
    """Read what is to be compared.

    Args:
        reference: CSV that says how it was; see `read_columns`.
        predictions: CSVs that say how it is, to be taken together.
        thresholds: by tag; without them, every column of the reference that stays within [0, 1] is a tag, and 0.5 its
            threshold.

    Returns:
        The numbers then and now by column, and the thresholds. Only columns that all files have are there now.

    Raises:
        InputError: a file cannot be used, or the files have no column of numbers in common.
    """
    then = read_columns(reference, list(thresholds or ()))
    if thresholds is None:
        thresholds = {name: 0.5 for name, values in then.items() if values.min() >= 0 and values.max() <= 1}
    files = [read_columns(path, list(thresholds)) for path in predictions]
    common = [column for column in then if all(column in one for one in files)]
    if not common:
        raise InputError(f"{predictions[0]}: has no numbers that {reference} has, too; compare what one network said")
    return then, {column: np.concatenate([one[column] for one in files]) for column in common}, thresholds


def score_file(
    predictions: Path, annotations: Path, taxonomy: Taxonomy, split: str, level: Level, coarse: Coarse
) -> dict[str, Any]:
    """Score a predictions CSV against the agreed truth of a split.

    Args:
        predictions: as `write_predictions` writes them.
        annotations: annotations CSV in SONYC-UST's format.
        taxonomy: categories and tags.
        split: whose annotator-0 rows are the truth.
        level: ``coarse`` or ``fine``.
        coarse: where coarse truth comes from, as in `iusp.data.labels.derive_truth`.

    Returns:
        ``{"micro_auprc", "micro_f1", "macro_auprc", "classwise": {category id: AUPRC}}``, as
        `iusp.evaluation.metrics.Scores`.

    Raises:
        InputError: a file cannot be used, the split has no truth of this level, or the clips of both files differ.
    """
    truth = _read_truth(annotations, taxonomy, split, level, coarse)
    scores = read_predictions(predictions, taxonomy)
    differences = [
        f"{word} {len(clips)} ({', '.join(clips[:3])}{', …' if len(clips) > 3 else ''})"
        for word, clips in (
            ("misses", truth.index.difference(scores.index)),
            ("has in excess", scores.index.difference(truth.index)),
        )
        if len(clips)
    ]
    if differences:
        raise InputError(
            f"{predictions}: {' and '.join(differences)} of the {len(truth)} clips of split {split} in {annotations}; "
            "predict exactly that split"
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
    """Score two predictions CSVs on the clips that both have, against the agreed truth of a split.

    Args:
        predictions: as `write_predictions` writes them.
        reference: what they are compared with, likewise.
        annotations: annotations CSV in SONYC-UST's format.
        taxonomy: categories and tags.
        split: whose annotator-0 rows are the truth.
        level: ``coarse`` or ``fine``.
        coarse: where coarse truth comes from, as in `iusp.data.labels.derive_truth`.
        resamples: of the paired bootstrap.
        seed: of the paired bootstrap.

    Returns:
        ``{"clips": {"compared", "split", "predictions", "reference"}, "predictions": …, "reference": …}`` with scores
        as of `score_file`, and the fields of `iusp.evaluation.metrics.Difference`: predictions minus reference.

    Raises:
        InputError: a file cannot be used, the split has no truth of this level, or they have no clip in common.
    """
    truth = _read_truth(annotations, taxonomy, split, level, coarse)
    ours, others = (read_predictions(path, taxonomy) for path in (predictions, reference))
    clips = [clip for clip in truth.index if clip in ours.index and clip in others.index]
    if not clips:
        raise InputError(
            f"{predictions}: has no clip of split {split} in {annotations} in common with {reference}; compare "
            "predictions of the same clips"
        )
    true = truth.loc[clips].to_numpy()
    our_scores, other_scores = (table.loc[clips, list(truth)].to_numpy() for table in (ours, others))
    return {
        "clips": {"compared": len(clips), "split": len(truth), "predictions": len(ours), "reference": len(others)},
        "predictions": asdict(score(true, our_scores, taxonomy, level)),
        "reference": asdict(score(true, other_scores, taxonomy, level)),
    } | asdict(paired_difference(true, our_scores, other_scores, taxonomy, level, resamples, seed))


def _read_truth(annotations: Path, taxonomy: Taxonomy, split: str, level: Level, coarse: Coarse) -> pd.DataFrame:
    """Return the agreed truth of a split's clips: the tags that the level compares, in order."""
    truth = derive_truth(read_annotations(annotations, taxonomy), taxonomy, split, coarse)
    if truth.empty:
        raise InputError(f"{annotations}: split {split} has no agreed truth (annotator_id 0); choose another split")
    tags = list(level_tags(taxonomy, level))
    if lacking := [tag for tag in tags if tag not in truth]:
        raise InputError(f"{annotations}: lacks {lacking[0]}_presence, which level {level} needs; choose another level")
    return truth[tags]


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header's cells, and the other rows that are not blank, as long, with their line numbers."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            rows = [(reader.line_num, cells) for cells in reader if cells]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a predictions CSV") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV ({error}); it must be UTF-8 text with commas") from None
    if len(rows) < 2:
        raise InputError(f"{path}: has no predictions; write a header and a row per clip")
    header = rows[0][1]
    if CLIP not in header:
        raise InputError(f"{path}: lacks the column {CLIP}; the first line must name it and the tags")
    seen: set[str] = set()
    for column in header:
        if not column.isprintable():
            raise InputError(f"{path}: column {column!r} cannot be printed; rename it")
        if column in seen:
            raise InputError(f"{path}: column {column} is there twice; keep one")
        seen.add(column)
    for line, cells in rows[1:]:
        if len(cells) != len(header):
            raise InputError(f"{path}: line {line} has {len(cells)} cells, the header {len(header)}; make them equal")
    return header, rows[1:]


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
