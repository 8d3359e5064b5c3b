"""`teacher` of params.yaml: the large network."""

from typing import Annotated

from pydantic import Field

from iusp.config.base import Architecture, Count, Layers, Section, Seed, TagSet
from iusp.config.knowledge import KnowledgeKind, knowledge_names
from iusp.config.training import Training


class Teacher(Section):
    """The large network, and the knowledge that it stores for students."""

    architecture: Architecture
    """Family of the network."""
    parameters: Annotated[int, Field(ge=200)]
    """Budget: the widest network of the family with at most this many parameters is built."""
    tags: TagSet
    """What teacher and students predict: 8 coarse tags, 23 fine tags, or all 31."""
    seed: Seed
    """Seed of initialisation, of the order of the clips, and of augmentation."""
    views: Count
    """Augmented views of every training clip for which the teacher's knowledge is stored."""
    knowledge: list[KnowledgeKind]
    """What is stored of the teacher for its students; docs/methods.md says which method needs what."""
    layers: Layers
    """Layers of which similarity, embedding, attention and hints are stored, counted from the last, which is 1."""
    training: Training
    """The optimisation."""

    @property
    def knowledge_names(self) -> list[str]:
        """The names of the stored arrays of knowledge."""
        return knowledge_names(self.knowledge, self.layers)
