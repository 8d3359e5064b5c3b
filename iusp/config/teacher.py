"""`teacher` of params.yaml: the large network."""

from typing import Annotated

from pydantic import Field

from iusp.config.base import Architecture, Count, Layers, Section, Seed, TagSet
from iusp.config.methods import KnowledgeKind, _names
from iusp.config.training import Training


class Teacher(Section):
    """The large network, and what of it is kept for students."""

    architecture: Architecture
    """Family of the network."""
    parameters: Annotated[int, Field(ge=200)]
    """Budget: the widest network of the family with at most this many parameters is built."""
    tags: TagSet
    """What teacher and students predict: 8 coarse tags, 23 fine tags, or all 31."""
    seed: Seed
    """Seed of initialisation, order and augmentation."""
    views: Count
    """Augmented views of every training clip for which the teacher's knowledge is stored."""
    knowledge: list[KnowledgeKind]
    """What is stored: `logits` for kd, inter, non_target and multilevel; `similarity` for iusp and skill; `embedding`
    for sp; `pooled` for vic; `attention` for attention; `hints` for fitnet."""
    layers: Layers
    """Of which layers similarity, embedding, attention and hints are stored, counted from the last, which is 1."""
    training: Training
    """The optimisation."""

    @property
    def knowledge_names(self) -> list[str]:
        """The packed files of knowledge."""
        return _names(self.knowledge, self.layers)
