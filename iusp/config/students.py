"""`distillation` and `students` of params.yaml: what all students share, and each of them."""

from typing import Annotated, Any, Literal

from pydantic import Field, create_model, model_validator

from iusp.config.base import Architecture, Layers, NonNegative, Positive, Section, Seed
from iusp.config.knowledge import knowledge_names
from iusp.config.methods import METHODS
from iusp.config.training import Training

LAYERED = tuple(name for name, method in METHODS.items() if method.layers)
"""The methods whose layers can be chosen in `layers`."""


def weights_model() -> type[Section]:
    """Return a section with a weight for each method."""
    fields: dict[str, Any] = {
        name: (NonNegative, Field(method.weight, description=f"Weight λ of {name}: {method.teaches}."))
        for name, method in METHODS.items()
    }
    return create_model("Weights", __base__=Section, **fields)


def layers_model() -> type[Section]:
    """Return a section with the layers of each method whose layers can be chosen."""
    fields: dict[str, Any] = {
        name: (
            Layers,
            Field(list(METHODS[name].layers), description=f"Layers of the {METHODS[name].layers_of} for {name}."),
        )
        for name in LAYERED
    }
    return create_model("TappedLayers", __base__=Section, **fields)


class Weights(weights_model()):  # type: ignore[misc]
    """Weights λ of the distillation losses; the loss of the labels has weight 1."""


class TappedLayers(layers_model()):  # type: ignore[misc]
    """Layers that each method uses, counted from the last, which is 1."""


class Distillation(Section):
    """What all students share."""

    weights: Weights = Field(default_factory=Weights)
    """Weights of the losses; a student may override them."""
    layers: TappedLayers = Field(default_factory=TappedLayers)
    """Layers that the methods use; a student may override them."""
    temperature: Positive
    """Temperature τ of `kd`, `inter`, `non_target` and `multilevel`: logits are divided by it before the sigmoid."""
    knowledge: Literal["cached", "online"]
    """`cached`: use what the teacher has stored of its views. `online`: run the teacher beside the student, on views
    that are drawn again in each epoch."""
    training: Training
    """Optimisation of every student."""


class Student(Section):
    """A small network and how it is taught: one branch of the graph."""

    architecture: Architecture
    """Family of the network."""
    parameters: Annotated[int, Field(ge=200)]
    """Budget: the widest network of the family with at most this many parameters is built."""
    method: str
    """`labels`, or distillation methods (docs/methods.md) joined by `+`: `kd`, `sp`, `iusp`, `iusp+kd`, …"""
    weights: dict[str, NonNegative] | None = None
    """Weights λ of this student where they differ from `distillation.weights`."""
    layers: dict[str, Layers] | None = None
    """Layers of this student's methods where they differ from `distillation.layers`."""
    seeds: Annotated[list[Seed], Field(min_length=1)]
    """One network is trained for each seed; the best one on validate is registered."""

    @property
    def terms(self) -> tuple[str, ...]:
        """The distillation methods in `method`, in the order of the table."""
        return tuple(name for name in METHODS if name in self.method.split("+"))

    @model_validator(mode="after")
    def _check_method(self) -> "Student":
        words = self.method.split("+")
        if words != ["labels"] and (len(set(words)) < len(words) or not set(words) <= set(METHODS)):
            raise ValueError(f"method {self.method!r} must be labels, or some of {', '.join(METHODS)} joined by +")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds} must differ")
        layered = [name for name in self.terms if name in LAYERED]
        for what, given, used in (("weights", self.weights, self.terms), ("layers", self.layers, layered)):
            if unused := set(given or {}) - set(used):
                raise ValueError(f"{what} of {', '.join(sorted(unused))}, which method {self.method!r} does not use")
        return self


class Recipe(Section):
    """Everything in params.yaml that shapes one student: its own settings, completed by those that all students share.

    A change elsewhere in params.yaml does not change the recipe.
    """

    name: str
    """Name of the student."""
    student: Student
    """The student's own settings."""
    weights: dict[str, float]
    """Weight λ of each of the student's methods."""
    layers: dict[str, list[int]]
    """Layers of each of the student's methods whose layers can be chosen, counted from the last, which is 1."""
    temperature: float | None
    """Temperature τ of the soft labels; none if no method has soft labels."""
    knowledge: Literal["cached", "online"]
    """Whether the teacher's knowledge is read from storage, or computed while the student is trained."""
    training: Training
    """Optimisation of the student."""

    @property
    def knowledge_names(self) -> list[str]:
        """The names of the teacher's stored arrays that the student's methods need."""
        names = set()
        for term in self.weights:
            if kind := METHODS[term].knowledge:
                names.update(knowledge_names([kind], self.layers.get(term, ())))
        return sorted(names)


def recipe(name: str, student: Student, shared: Distillation) -> Recipe:
    """Complete a student's settings by those that all students share.

    Args:
        name: name of the student.
        student: its entry in `students` of params.yaml.
        shared: `distillation` of params.yaml.
    """
    weights = shared.weights.model_dump() | (student.weights or {})
    layers = shared.layers.model_dump() | (student.layers or {})
    return Recipe(
        name=name,
        student=student,
        weights={term: float(weights[term]) for term in student.terms},
        layers={term: layers[term] for term in student.terms if term in layers},
        temperature=shared.temperature if any(METHODS[term].has_temperature for term in student.terms) else None,
        knowledge=shared.knowledge,
        training=shared.training,
    )
