"""Read and check params.yaml as a whole. An error names every key that is wrong."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError, model_validator

from iusp.config.augmentation import Augmentations
from iusp.config.base import NAME, Section, _problems
from iusp.config.dataset import Dataset
from iusp.config.evaluation import Evaluation
from iusp.config.features import Features
from iusp.config.kubeflow import Kubeflow
from iusp.config.methods import METHODS
from iusp.config.registration import Registration
from iusp.config.students import Distillation, Recipe, Student, recipe
from iusp.config.teacher import Teacher
from iusp.errors import InputError
from iusp.io.files import parse_yaml

Sections = TypeVar("Sections", bound=Section)


class Settings(Section):
    """The sections of `params.yaml` that influence results."""

    dataset: Dataset
    """Where the recordings come from, and how annotations become labels."""
    features: Features
    """The log-mel front-end."""
    augmentation: Augmentations
    """Random changes of training clips."""
    teacher: Teacher
    """The large network that students learn from."""
    distillation: Distillation
    """Settings that all students share."""
    students: Annotated[dict[str, Student], Field(min_length=1)]
    """The students, by name."""
    evaluation: Evaluation
    """How networks are measured."""
    registration: Registration
    """Names in MLflow, and the promotion gate."""

    def settings(self) -> dict[str, Any]:
        """Return all settings that shape a result, under the names of `params.yaml`."""
        return self.model_dump(mode="json", by_alias=True, include=set(Settings.model_fields))

    def recipe(self, student: str) -> Recipe:
        """Return everything that shapes one student.

        Raises:
            InputError: there is no student of that name.
        """
        if student not in self.students:
            raise InputError(f"there is no students.{student}; params.yaml has {', '.join(self.students)}")
        return recipe(student, self.students[student], self.distillation)

    @model_validator(mode="after")
    def _check_names(self) -> "Settings":
        for name in self.students:
            if not NAME.fullmatch(name) or name == "teacher":
                raise ValueError(f"students.{name}: a student's name is lower-case letters, digits and _, not teacher")
        return self

    @model_validator(mode="after")
    def _check_knowledge(self) -> "Settings":
        for name, student in self.students.items():
            needed = set(self.recipe(name).knowledge_names)
            if missing := needed - set(self.teacher.knowledge_names):
                kind, _, layer = min(missing).partition("-")
                raise ValueError(
                    f"students.{name}: {student.method} needs the teacher's {kind}{layer and ' of layer '}{layer}; "
                    f"add it to teacher.knowledge{layer and ' and teacher.layers'}"
                )
            for term in student.terms:
                if METHODS[term].needs_fine_tags and self.teacher.tags != "both":
                    raise ValueError(f"students.{name}: {term} needs coarse and fine tags; set teacher.tags: both")
        return self


class Config(Settings):
    """The whole of `params.yaml`."""

    kubeflow: Kubeflow
    """How Kubeflow runs the steps."""


class RegistrySettings(Section, extra="ignore"):
    """The section of `params.yaml` that finds the registry's versions; other sections may be wrong."""

    registration: Registration


class GateSettings(RegistrySettings):
    """The sections of `params.yaml` that the promotion gate needs; other sections may be wrong."""

    evaluation: Evaluation


def load(path: Path, changes: Sequence[str] = ()) -> Config:
    """Read and check all of a `params.yaml`: see `load_sections`."""
    return load_sections(path, Config, changes)


def load_sections(path: Path, sections: type[Sections], changes: Sequence[str] = ()) -> Sections:
    """Read and check sections of a `params.yaml`.

    Args:
        path: the file.
        sections: class with a field for each section that is read.
        changes: settings that replace those of the file, such as `teacher.training.epochs=30`; values are YAML.

    Raises:
        InputError: the file is missing or is not YAML, or a key is unknown, missing or of the wrong type. The message
            gives the path of every such key.
    """
    try:
        document = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; run in the project's folder or give --params FILE") from None
    except ValueError as error:
        raise InputError(f"{path}: not YAML ({error})") from None
    for change in changes:
        _change(document, change)
    try:
        return sections.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{path}: {_problems(error)} (iusp config --schema tells what is allowed)") from None


def _change(document: Any, change: str) -> None:
    """Set one key of a document in place."""
    key, equals, value = change.partition("=")
    *parents, last = key.split(".")
    try:
        for parent in parents:
            document = document[parent]
        document[last] = parse_yaml(value)
    except (KeyError, TypeError, ValueError):
        equals = ""
    if not equals:
        raise InputError(f"{change}: not KEY=VALUE of a key that there is, such as teacher.training.epochs=30")
