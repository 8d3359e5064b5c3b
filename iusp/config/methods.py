"""The table of distillation methods, one row each.

The settings, their schema, the stored knowledge, the documentation and the benchmarks derive from this table. It needs
no torch. The loss of method `x` is the class `Loss` in `iusp/distillation/x.py`. To add a method, add that module, a
row here, and a test.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from iusp.config.knowledge import KnowledgeKind


@dataclass(frozen=True)
class Method:
    """A distillation method.

    Attributes:
        teaches: what the student learns, as a phrase for the settings' schema and the documentation.
        knowledge: what the method needs of the teacher; None if it needs no teacher.
        weight: default weight λ of its loss; the loss of the labels has weight 1.
        layers: layers that it uses by default, counted from the last, which is 1; empty if it uses only the network's
            output or its last layer.
        layers_of: the network that `layers` refers to.
        has_temperature: whether its loss divides logits by `distillation.temperature`.
        needs_fine_tags: whether networks must predict fine tags beside coarse ones.
    """

    teaches: str
    knowledge: KnowledgeKind | None
    weight: float
    layers: tuple[int, ...] = ()
    layers_of: Literal["student", "teacher"] = "student"
    has_temperature: bool = False
    needs_fine_tags: bool = False


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "kd": Method("the teacher's probabilities as soft labels", "logits", 10, has_temperature=True),
        "sp": Method("similarities between the clips of a mini-batch", "embedding", 100, (1,)),
        "iusp": Method("similarities between the frames of a clip", "similarity", 100, (1,)),
        "skill": Method(
            "similarities between the frames of a clip, averaged over clusters of the teacher's layers",
            "similarity",
            300,
            (1, 2, 3, 4),
            "teacher",
        ),
        "attention": Method("where in time and frequency a layer is active", "attention", 30, (1,)),
        "fitnet": Method("the frames of a layer, through a regressor that is trained too", "hints", 3, (1,)),
        "vic": Method("clip embeddings: variance, invariance and covariance", "pooled", 0.1),
        "inter": Method(
            "labels and soft labels at auxiliary heads on middle layers", "logits", 1, (2,), has_temperature=True
        ),
        "non_target": Method(
            "soft labels, with emphasis on the tags that a clip does not have", "logits", 1, has_temperature=True
        ),
        "multilevel": Method(
            "soft labels, and how they correlate between tags and between clips", "logits", 100, has_temperature=True
        ),
        "consistency": Method(
            "a coarse tag is as probable as its most probable fine tag; no teacher", None, 1, needs_fine_tags=True
        ),
    }
)
