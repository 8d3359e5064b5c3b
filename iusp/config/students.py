"""`distillation` and `students` of params.yaml: what all students share, and each of them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from iusp.config.base import Architecture, Layers, NonNegative, Positive, Section, Seed
from iusp.config.methods import METHODS, _names
from iusp.config.training import Training


class Weights(Section):
    """Weights λ of the distillation losses, beside the labels' loss of weight 1."""

    kd: NonNegative
    """Soft labels."""
    sp: NonNegative
    """Similarities between the clips of a mini-batch."""
    iusp: NonNegative
    """Similarities between the frames of a clip."""
    skill: NonNegative
    """Similarities between the frames of a clip, averaged over clusters of the teacher's layers."""
    attention: NonNegative
    """Where in time and frequency a layer is active."""
    fitnet: NonNegative
    """Frames of a layer, through a trained regressor."""
    vic: NonNegative
    """Clip embeddings: variance, invariance, covariance."""
    inter: NonNegative
    """Labels and soft labels for auxiliary heads on middle layers."""
    non_target: NonNegative
    """Soft labels, those of a clip's absent tags emphasised."""
    multilevel: NonNegative
    """Soft labels, and how they correlate between tags and between clips."""
    consistency: NonNegative
    """A coarse tag is as probable as its most probable fine one; without a teacher."""


class TappedLayers(Section):
    """Layers that each method taps, counted from the last, which is 1: the student's and the teacher's of a number."""

    sp: Layers
    """Whose frames make a clip's vector."""
    iusp: Layers
    """Whose frames are compared."""
    skill: Layers
    """The teacher's, which are clustered; a cluster teaches the student's layer of the number of its last one."""
    attention: Layers
    """Whose activity is compared."""
    fitnet: Layers
    """Whose frames are regressed."""
    inter: Layers
    """The student's, which get a head each."""


class Distillation(Section):
    """What all students share."""

    weights: Weights
    """Weights of the losses; a student may override them."""
    layers: TappedLayers
    """Layers that the methods tap; a student may override them."""
    temperature: Positive
    """τ of `kd`, `inter`, `non_target` and `multilevel`: logits are divided by it before the sigmoid."""
    knowledge: Literal["cached", "online"]
    """`cached`: what the teacher has stored of its views. `online`: the teacher runs beside the student, on views that
    are drawn anew in each epoch."""
    training: Training
    """The optimisation."""


class Student(Section):
    """One branch of the graph: a small network and how it is taught."""

    architecture: Architecture
    """Family of the network."""
    parameters: Annotated[int, Field(ge=200)]
    """Budget: the widest network of the family with at most this many parameters is built."""
    method: str
    """`labels`, or distillation losses (docs/methods.md) joined by `+`: `kd`, `sp`, `iusp`, `iusp+kd`, …"""
    weights: dict[str, NonNegative] | None = None
    """Weights λ of this student where they differ from `distillation.weights`."""
    layers: dict[str, Layers] | None = None
    """Layers that the methods tap, where they differ from `distillation.layers`."""
    seeds: Annotated[list[Seed], Field(min_length=1)]
    """One network is trained for each; the best on validate is registered."""

    @property
    def terms(self) -> tuple[str, ...]:
        """The distillation losses of `method`, in a fixed order."""
        return tuple(method for method in METHODS if method in self.method.split("+"))

    def loss_weights(self, common: Weights) -> dict[str, float]:
        """Return the weights λ of the distillation losses of `method`; none for labels only."""
        weights = common.model_dump() | (self.weights or {})
        return {term: float(weights[term]) for term in self.terms}

    def tapped(self, common: TappedLayers) -> dict[str, list[int]]:
        """Return the layers that the distillation losses of `method` tap."""
        layers = common.model_dump() | (self.layers or {})
        return {term: layers[term] for term in self.terms if term in layers}

    def knowledge_names(self, common: TappedLayers) -> list[str]:
        """Return what of the teacher's stored knowledge `method` needs, by the names of its files."""
        tapped = self.tapped(common)
        kinds = {term: METHODS[term] for term in self.terms}
        return sorted({name for term, kind in kinds.items() if kind for name in _names([kind], tapped.get(term, ()))})

    @model_validator(mode="after")
    def _known(self) -> "Student":
        words = self.method.split("+")
        if words != ["labels"] and (len(set(words)) < len(words) or not set(words) <= set(METHODS)):
            raise ValueError(f"method {self.method!r} must be labels, or some of {', '.join(METHODS)} joined by +")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds} must differ")
        layered = [term for term in self.terms if term in TappedLayers.model_fields]
        for what, given, used in (("weights", self.weights, self.terms), ("layers", self.layers, layered)):
            if unused := set(given or {}) - set(used):
                raise ValueError(f"{what} of {', '.join(sorted(unused))}, which method {self.method!r} does not use")
        return self
