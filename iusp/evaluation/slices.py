"""How good networks are where and when: clips grouped by what the annotations say of place and time."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from iusp.data.taxonomy import Taxonomy
from iusp.evaluation.metrics import bootstrap, interval, score

SLICED = ("hour", "borough", "sensor_id")
# With less, an AUPRC says more of the few clips than of the place.
MIN_CLIPS, MIN_POSITIVES = 20, 20
COLUMNS = ["by", "group", "clips", "positives", "positive_share", "network", "micro_auprc", "low", "high"]


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

    AUPRC falls with the share of positives, which is what guessing has; compare with that, and with other networks in
    the same group.

    Args:
        circumstances: N rows, text; those of `SLICED` that there are. Clips with an empty cell are in no group.
        truth: (N, coarse tags).
        scores: by network, (N, coarse tags) in [0, 1].
        best: network that gets 95 % intervals.
        taxonomy: categories and tags.
        resamples: of the bootstrap over a group's clips.
        seed: of the bootstrap.

    Returns:
        For each group of each column with at least two, and each network: what it is grouped `by`, `group`, `clips`,
        `positives` (true tags, all clips together), `positive_share` (of all tags), `network`, `micro_auprc` (coarse),
        and, of the best network, `low` and `high`. Groups with fewer than `MIN_CLIPS` clips or `MIN_POSITIVES`
        positives have NaN.
    """
    rows = []
    for column in (name for name in SLICED if name in circumstances):
        values = circumstances[column]
        groups = sorted(set(values) - {""}, key=_natural)
        for group in groups if len(groups) > 1 else ():
            chosen = (values == group).to_numpy()
            known = truth[chosen]
            enough = len(known) >= MIN_CLIPS and known.sum() >= MIN_POSITIVES
            facts = [column, group, len(known), int(known.sum()), float(known.mean())]
            for network, all_scores in scores.items():
                numbers = [np.nan] * 3
                if enough:
                    said = all_scores[chosen]
                    numbers[0] = score(known, said, taxonomy, "coarse").micro_auprc
                    if network == best:
                        samples = bootstrap(known, said, taxonomy, "coarse", resamples, seed)
                        numbers[1:] = interval(samples.micro_auprc)
                rows.append([*facts, network, *numbers])
    return pd.DataFrame(rows, columns=COLUMNS)


def weakest(slices: pd.DataFrame, best: str, count: int) -> list[dict[Hashable, Any]]:
    """Return the rows of the groups in which the best network is most surely weak, lowest upper end first.

    Args:
        slices: as `slice_scores` returns them.
        best: the network with intervals.
        count: of groups, at most.
    """
    scored = slices[(slices["network"] == best) & slices["micro_auprc"].notna()]
    return scored.sort_values("high", kind="stable").head(count).to_dict("records")


def _natural(group: str) -> tuple[int, str]:
    """Sort 9 before 10."""
    return len(group), group
