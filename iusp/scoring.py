"""From a network's probabilities to the arrays that the challenge's metric takes."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iusp.errors import InputError
from iusp.features import FeatureSet, split_labels
from iusp.metrics import Level, level_tags
from iusp.taxonomy import Taxonomy


def truth_table(dataset: Path, features: FeatureSet, split: str, taxonomy: Taxonomy, level: Level) -> NDArray[np.bool_]:
    """Return the truth (N, tags) of a split's clips, row by row those of the features.

    Args:
        dataset: folder that the dataset step wrote.
        features: the packed features.
        split: `validate` or `test`.
        taxonomy: of the data set.
        level: whose tags.

    Raises:
        InputError: features and labels are not of the same clips, or the annotations lack the level's tags.
    """
    labels = split_labels(dataset, features, split)
    if missing := set(level_tags(taxonomy, level)) - set(labels):
        raise InputError(f"{dataset / 'labels.parquet'}: has no {sorted(missing)[0]}; the {level} level needs it")
    return labels[list(level_tags(taxonomy, level))].to_numpy() > 0.5


def score_table(scores: NDArray[np.float64], tags: list[str], taxonomy: Taxonomy, level: Level) -> NDArray[np.float64]:
    """Arrange probabilities (N, K) of `tags` as the level's tags (N, tags).

    A coarse tag that the network does not have is the maximum of its fine ones (any of them makes it true); a fine one
    that it does not have, as those of uncertain kind, is 0.
    """
    column = dict(zip(tags, scores.T, strict=True))
    nothing = np.zeros(len(scores))
    if level == "fine":
        return np.stack([column.get(tag, nothing) for tag in level_tags(taxonomy, level)], axis=1)
    return np.stack(
        [
            column[tag] if tag in column else np.max([column[fine] for fine in taxonomy.fine[category]], axis=0)
            for category, tag in taxonomy.coarse.items()
        ],
        axis=1,
    )
