r"""SKILL: clusters of layers that are alike, and what each cluster has in common (Zampierin et al., arXiv 2402.16830).

.. math:: L = \frac{1}{|\mathcal C|} \sum_{c \in \mathcal C} \frac{1}{B T'^2} \sum_n
    \left\lVert \frac{1}{|c|} \sum_{l \in c} G_{n,t}^{(l)} - G_{n,s}^{(c)} \right\rVert_F^2

with IUSP's row-normalised similarities G of the frames of clip n, after the teacher's layer l and after the student's
layer for cluster c. The paper averages the features of a cluster's transformer layers, which all have one width, and
regresses them; the layers of a convolutional network differ in width, their similarities do not.
"""

from collections.abc import Sequence

import torch
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from iusp.distillation.similarity import centred_gram, gram, pooled_frames, pooled_gram, row_normalised


def cluster_layers(similarities: Tensor, count: int) -> list[tuple[int, ...]]:
    """Group layers by how alike their frame similarities are.

    The distance of two layers is 1 − their linear CKA (Kornblith et al., ICML 2019), averaged over clips; clusters are
    merged by their average distance.

    Args:
        similarities: Gram matrices (L, N, T', T') of L layers for N clips, each up to a factor.
        count: of clusters, 1 to L.

    Returns:
        The layers 0 … L − 1 of each cluster, clusters in the order of their last layer.
    """
    if count == len(similarities):  # also of a single layer, which has no distance to any
        return [(layer,) for layer in range(count)]
    centred = row_normalised(centred_gram(similarities).flatten(2)).transpose(0, 1)
    distances = 1 - gram(centred).mean(dim=0).double().cpu().numpy()
    labels = cut_tree(linkage(squareform(distances, checks=False), "average"), count)[:, 0]
    clusters = [tuple(layer for layer, own in enumerate(labels) if own == label) for label in range(count)]
    return sorted(clusters, key=max)


def skill_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the mean squared difference of frame similarities, averaged over clusters.

    Args:
        student: frames (B, T', D) of one layer per cluster.
        teacher: Gram matrices (B, n, T'', T'') of the n layers of each cluster, each up to a factor; where T' and T''
            differ, the finer is averaged to the coarser.
    """
    losses = []
    for frames, layers in zip(student, teacher, strict=True):
        count = min(frames.shape[1], layers.shape[2])
        own = gram(pooled_frames(frames.float(), count))
        others = pooled_gram(layers.float().flatten(0, 1), count).reshape(*layers.shape[:2], count, count)
        losses.append((row_normalised(others).mean(dim=1) - row_normalised(own)).square().mean())
    return torch.stack(losses).mean()
