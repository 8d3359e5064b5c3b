"""The common base of all JSON files that one step writes and a later one reads."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from iusp.io.files import read_json, write_json


def seed_name(student: str, seed: int) -> str:
    """Return the name of one seed of a student, in files, MLflow runs and Kubeflow tasks."""
    return f"{student}-seed-{seed}"


class Artifact(BaseModel):
    """A JSON file, or a part of one, with checked fields.

    Unknown keys are ignored, so that a file of a later version can be read.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", use_attribute_docstrings=True)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check the file.

        Raises:
            InputError: the file is missing, is not JSON, or lacks a field.
        """
        return cls.model_validate(read_json(path, form=cls))

    def write(self, path: Path) -> None:
        """Write the file atomically. The same fields give the same bytes."""
        write_json(path, self.model_dump(mode="json", exclude_none=True))

    @property
    def numbers(self) -> dict[str, float]:
        """Every number under its dotted name, as `dvc metrics show` names it."""
        return dict(_numbers(self.model_dump(mode="json", exclude_none=True)))


Tree = Mapping[str, "Tree | list[Tree] | str | float | None"]


def _numbers(tree: Tree, prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


class Digested(Artifact):
    """A JSON file that names its content by a digest."""

    digest: str
    """The digest."""
