"""Scores by place and time: clips are grouped by sensor, borough and hour."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from iusp.data.taxonomy import Taxonomy
from iusp.evaluation.metrics import bootstrap, interval, score
from iusp.io.files import atomic
from iusp.io.tables import read_table

SLICED = ("hour", "borough", "sensor_id")
# With fewer clips or positives, the AUPRC depends more on the single clips than on the group.
MIN_CLIPS, MIN_POSITIVES = 20, 20
COLUMNS = ["by", "group", "clips", "positives", "positive_share", "network", "micro_auprc", "low", "high"]


def read_circumstances(index: Path, filenames: list[str]) -> pd.DataFrame:
    """Return place and time of clips: one row per clip, with the columns of `SLICED` that the index has.

    Args:
        index: `index.parquet` of the dataset step.
        filenames: names of the clips, in the order of the rows to return.
    """
    table = read_table(index, "audio_filename", optional=SLICED).set_index("audio_filename")
    return table.reindex(filenames).fillna("").astype(str)


def write_slices(path: Path, slices: pd.DataFrame) -> None:
    """Write the table that `slice_scores` returned as a CSV file, atomically."""
    with atomic(path) as temporary:
        slices.to_csv(temporary, index=False, lineterminator="\n")


def slice_scores(
    circumstances: pd.DataFrame,
    truth: NDArray[np.bool_],
    scores: Mapping[str, NDArray[np.float64]],
    best: str,
    taxonomy: Taxonomy,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """Score networks on the clips of each group.

    Guessing has an AUPRC equal to the share of positives, so a low share alone lowers the AUPRC. Compare the AUPRC of a
    group with its share of positives, and with other networks on the same group.

    Args:
        circumstances: N rows of text, with some of the columns `SLICED`. A clip with an empty cell is in no group.
        truth: truth (N, coarse tags).
        scores: probabilities (N, coarse tags) by network.
        best: name of the network that gets 95 % intervals.
        taxonomy: categories and tags.
        resamples: number of bootstrap resamples of a group's clips.
        seed: seed of the bootstrap.

    Returns:
        One row for each network and each group of a column with at least two groups. `by` and `group` name the group,
        `positives` is the number of true tags in all its clips, `positive_share` is their share of all tags,
        `micro_auprc` is the AUPRC of the coarse tags, and `low` and `high` are the ends of its interval. The last three
        are NaN for groups with fewer than `MIN_CLIPS` clips or `MIN_POSITIVES` positives. The interval is NaN for
        all networks except the best.
    """
    rows = []
    for column in (name for name in SLICED if name in circumstances):
        values = circumstances[column]
        groups = sorted(set(values) - {""}, key=_natural)
        for group in groups if len(groups) > 1 else ():
            clips = (values == group).to_numpy()
            positives = int(truth[clips].sum())
            enough = clips.sum() >= MIN_CLIPS and positives >= MIN_POSITIVES
            facts = [column, group, int(clips.sum()), positives, float(truth[clips].mean())]
            for network, all_scores in scores.items():
                numbers = [np.nan] * 3
                if enough:
                    arguments = truth[clips], all_scores[clips], taxonomy
                    numbers[0] = score(*arguments, "coarse").micro_auprc
                    if network == best:
                        numbers[1:] = interval(bootstrap(*arguments, "coarse", resamples, seed).micro_auprc)
                rows.append([*facts, network, *numbers])
    return pd.DataFrame(rows, columns=COLUMNS)


def weakest(slices: pd.DataFrame, best: str, count: int) -> list[dict[Hashable, Any]]:
    """Return the rows of the groups on which the best network is most certainly weak, by the upper end of the interval.

    Args:
        slices: table that `slice_scores` returned.
        best: name of the network with intervals.
        count: largest number of groups.
    """
    scored = slices[(slices["network"] == best) & slices["micro_auprc"].notna()]
    return scored.sort_values("high", kind="stable").head(count).to_dict("records")


def _natural(group: str) -> tuple[int, str]:
    """Return a sort key that puts 9 before 10."""
    return len(group), group
