"""Predictions in the challenge's CSV format: a row per clip, a column per tag; and their score."""

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from iusp.errors import InputError
from iusp.files import atomic
from iusp.labels import Coarse, derive_truth, read_annotations
from iusp.metrics import Level, level_tags, score
from iusp.taxonomy import Taxonomy

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
    if CLIP not in header:
        raise InputError(f"{path}: lacks the column {CLIP}; the first line must name it and the tags")
    for column in header:
        if column not in (CLIP, *tags):
            raise InputError(f"{path}: column {column!r} is no tag of the taxonomy; remove it or correct its name")
        if header.count(column) > 1:
            raise InputError(f"{path}: column {column} is there twice; keep one")
    lines: dict[str, int] = {}
    scores = np.zeros((len(rows), len(tags)))
    for row, (line, cells) in enumerate(rows):
        if len(cells) != len(header):
            raise InputError(f"{path}: line {line} has {len(cells)} cells, the header {len(header)}; make them equal")
        named = dict(zip(header, cells, strict=True))
        clip = named.pop(CLIP)
        if clip in lines:
            raise InputError(f"{path}: line {line} repeats the clip {clip} of line {lines[clip]}; keep one of them")
        lines[clip] = line
        for tag, cell in named.items():
            scores[row, tags.index(tag)] = _probability(path, line, tag, cell)
    return pd.DataFrame(scores, index=pd.Index(lines, name=CLIP), columns=tags)


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
        coarse: where coarse truth comes from, as in `iusp.labels.derive_truth`.

    Returns:
        ``{"micro_auprc", "micro_f1", "macro_auprc", "classwise": {category id: AUPRC}}``, as `iusp.metrics.Scores`.

    Raises:
        InputError: a file cannot be used, the split has no truth of this level, or the clips of both files differ.
    """
    truth = derive_truth(read_annotations(annotations, taxonomy), taxonomy, split, coarse)
    if truth.empty:
        raise InputError(f"{annotations}: split {split} has no agreed truth (annotator_id 0); choose another split")
    tags = list(level_tags(taxonomy, level))
    if lacking := [tag for tag in tags if tag not in truth]:
        raise InputError(f"{annotations}: lacks {lacking[0]}_presence, which level {level} needs; choose another level")
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
    return asdict(score(truth[tags].to_numpy(), scores.loc[truth.index, tags].to_numpy(), taxonomy, level))


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header's cells, and the other rows that are not blank with their line numbers."""
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
    return rows[0][1], rows[1:]


def _probability(path: Path, line: int, tag: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise InputError(f"{path}: line {line}, column {tag}: {cell!r} must be a number from 0 to 1")
    return value
