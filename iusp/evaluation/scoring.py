"""The ground truth of a split, in the form that the challenge's metric expects."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iusp.data.taxonomy import Taxonomy
from iusp.errors import InputError
from iusp.evaluation.metrics import Level, level_tags
from iusp.features.packed import FeatureSet, split_labels


def truth_table(dataset: Path, features: FeatureSet, split: str, taxonomy: Taxonomy, level: Level) -> NDArray[np.bool_]:
    """Return the ground truth (N, tags) of a split's clips, in the order of the features.

    Args:
        dataset: folder that the dataset step wrote.
        features: features of all clips.
        split: `validate` or `test`.
        taxonomy: categories and tags.
        level: level of the tags to return, ``coarse`` or ``fine``.

    Raises:
        InputError: features and labels belong to different clips, or the annotations lack tags of the level.
    """
    tags = list(level_tags(taxonomy, level))
    labels = split_labels(dataset, features, split, tags)
    if missing := set(tags) - set(labels):
        raise InputError(f"{dataset / 'labels.parquet'}: has no {sorted(missing)[0]}; the {level} level needs it")
    return labels[tags].to_numpy() > 0.5
