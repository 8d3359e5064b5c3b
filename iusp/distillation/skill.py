r"""SKILL: frame similarities averaged over clusters of similar layers (Zampierin et al., arXiv 2402.16830).

.. math:: L = \frac{1}{|\mathcal C|} \sum_{c \in \mathcal C} \frac{1}{B T'^2} \sum_n
    \left\lVert \frac{1}{|c|} \sum_{l \in c} G_{n,t}^{(l)} - G_{n,s}^{(c)} \right\rVert_F^2

𝒞 is the set of clusters of the teacher's layers. G^(l)_{n,t} is the similarity matrix of IUSP for clip n and the
teacher's layer l. G^(c)_{n,s} is the similarity matrix of IUSP for clip n and the student's layer that is matched with
cluster c. This student layer has the same index as the last layer of the cluster. The index counts from the last layer
of the network.

In the paper, the layers are those of a transformer, which all have the same width. The paper averages the features of
the layers of a cluster, and a regressor maps them. The layers of a convolutional network have different widths, so
their features cannot be averaged. The similarity matrices of all layers have the same size, because the frames are
averaged to the frame rate of the last layer.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from iusp.distillation.method import MethodLoss, Outputs, Subject
from iusp.distillation.similarity import centred_gram, row_normalised
from iusp.models.maps import frames, gram, pooled_frames, pooled_gram

CLUSTERS = 2  # number of clusters of the teacher's layers
CLUSTERED_CLIPS = 256  # number of clips whose similarities determine the clusters


def cluster_layers(similarities: Tensor, count: int) -> list[tuple[int, ...]]:
    """Group layers whose frame similarities are alike.

    The distance between two layers is 1 minus their linear CKA (Kornblith et al., ICML 2019), averaged over clips. The
    two clusters with the smallest average distance are merged until `count` clusters remain.

    Args:
        similarities: Gram matrices (L, N, T', T') of L layers for N clips. A constant factor of a matrix has no effect.
        count: number of clusters, 1 to L.

    Returns:
        The layers (0 to L − 1) of each cluster, in the order of the clusters' last layers.
    """
    if count == len(similarities):  # covers a single layer, which has no distances to cluster
        return [(layer,) for layer in range(count)]
    centred = row_normalised(centred_gram(similarities).flatten(2)).transpose(0, 1)
    distances = 1 - gram(centred).mean(dim=0).double().cpu().numpy()
    labels = cut_tree(linkage(squareform(distances, checks=False), "average"), count)[:, 0]
    clusters = [tuple(layer for layer, cluster in enumerate(labels) if cluster == label) for label in range(count)]
    return sorted(clusters, key=max)


def skill_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the mean squared difference of frame similarities, averaged over clusters.

    Args:
        student: for each cluster, the frames (B, T', D) of the student's layer that is matched with the cluster.
        teacher: for each cluster, the Gram matrices (B, n, T'', T'') of the teacher's n layers in the cluster. A
            constant factor of a matrix has no effect. If T' and T'' differ, the longer sequence is averaged to the
            length of the shorter one.
    """
    losses = []
    for layer, layers in zip(student, teacher, strict=True):
        count = min(layer.shape[1], layers.shape[2])
        student_gram = gram(pooled_frames(layer.float(), count))
        teacher_gram = pooled_gram(layers.float().flatten(0, 1), count).reshape(*layers.shape[:2], count, count)
        losses.append((row_normalised(teacher_gram).mean(dim=1) - row_normalised(student_gram)).square().mean())
    return torch.stack(losses).mean()


class Loss(MethodLoss):
    """SKILL loss of a batch. The clusters are computed once, from the teacher's stored similarities."""

    def __init__(self, subject: Subject, layers: Sequence[int], temperature: float) -> None:
        super().__init__(subject, layers, temperature)
        similarities = np.stack([subject.knowledge(f"similarity-{layer}")[:CLUSTERED_CLIPS] for layer in layers])
        found = cluster_layers(torch.from_numpy(similarities.astype(np.float32)), min(CLUSTERS, len(layers)))
        self.clusters = [tuple(layers[index] for index in cluster) for cluster in found]

    def forward(self, outputs: Outputs) -> Tensor:
        """Return the loss of a batch, a scalar."""
        # If the student has no layer with that index, the cluster is matched with the student's first layer.
        student = [frames(outputs.maps[-min(*cluster, len(outputs.maps))]) for cluster in self.clusters]
        teacher = [
            torch.stack([outputs.knowledge[f"similarity-{layer}"] for layer in cluster], dim=1)
            for cluster in self.clusters
        ]
        return skill_loss(student, teacher)
