"""Scores of groups of clips with the same sensor, the same borough or the same hour."""

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
# With fewer clips or positive tags, the AUPRC depends more on single clips than on the group.
MIN_CLIPS, MIN_POSITIVES = 20, 20
COLUMNS = ["by", "group", "clips", "positives", "positive_share", "network", "micro_auprc", "low", "high"]


def read_circumstances(index: Path, filenames: list[str]) -> pd.DataFrame:
    """Return the place and the time of clips: one row for each clip, with the columns of `SLICED` that the index has.

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

    A network that guesses has an AUPRC equal to the share of positive tags. Therefore, a low share of positive tags is
    enough to lower the AUPRC. Compare the AUPRC of a group with the share of positive tags in the group, and with the
    AUPRC of other networks on the same group.

    Args:
        circumstances: N rows of text, with some of the columns of `SLICED`. A clip with an empty cell in a column is in
            no group of this column.
        truth: ground truth (N, coarse tags).
        scores: probabilities (N, coarse tags) by network.
        best: name of the network that gets 95 % intervals.
        taxonomy: categories and tags.
        resamples: number of bootstrap resamples of a group's clips.
        seed: seed of the bootstrap.

    Returns:
        One row for each network and each group. Columns with fewer than two groups have no rows. The columns of the
        table are:

        - `by` and `group`: column and value that define the group;
        - `clips`: number of clips in the group;
        - `positives`: number of positive tags in all clips of the group;
        - `positive_share`: `positives` divided by the number of clips times the number of tags;
        - `network`: name of the network;
        - `micro_auprc`: AUPRC of the coarse tags;
        - `low` and `high`: ends of the 95 % interval of `micro_auprc`; NaN for all networks except the best.

        `micro_auprc`, `low` and `high` are NaN for groups with fewer than `MIN_CLIPS` clips or `MIN_POSITIVES` positive
        tags.
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
    """Return the rows of the groups with the lowest upper ends of the AUPRC interval of the best network.

    These are the groups on which the best network is weak with the most certainty.

    Args:
        slices: table that `slice_scores` returned.
        best: name of the best network, which has intervals.
        count: largest number of groups.
    """
    scored = slices[(slices["network"] == best) & slices["micro_auprc"].notna()]
    return scored.sort_values("high", kind="stable").head(count).to_dict("records")


def _natural(group: str) -> tuple[int, str]:
    """Return a sort key that puts the group 9 before the group 10."""
    return len(group), group
