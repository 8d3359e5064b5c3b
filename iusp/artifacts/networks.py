"""A trained network's folder: `models/teacher` and `models/students/<name>/seed-<n>`."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from iusp import models
from iusp.artifacts.base import Artifact
from iusp.artifacts.records import TrainingRecord
from iusp.config.base import Architecture, Share, TagSet
from iusp.config.features import Features
from iusp.models.layers import Tagger

CONFIG = "config.json"


class NetworkConfig(Artifact):
    """`config.json`: how a network is built, what it was trained on, and how good its best epoch is."""

    architecture: Architecture
    """Family of the network."""
    width: int
    """Width within the family."""
    parameters: int
    """Number of trained parameters."""
    tags: Annotated[list[str], Field(min_length=1)]
    """Names of the outputs, in order."""
    features: Features
    """Settings of the front-end."""
    features_digest: str
    """Digest of the features that the network was trained on."""
    seed: int
    """Seed of initialisation and order."""
    epoch: int = 0
    """Epoch (from 1) that was best on validate and was kept; 0 for a network that is not trained yet."""
    validate_micro_auprc: Share = 0.0
    """Micro-averaged AUPRC of that epoch on validate."""
    sha256: str = ""
    """SHA-256 of `weights.safetensors`; empty for a network that is not saved yet."""

    @field_validator("width")
    @classmethod
    def _exists(cls, width: int, info: ValidationInfo) -> int:
        architecture = info.data.get("architecture")
        if architecture and width not in models.ARCHITECTURES[architecture].WIDTHS:
            raise ValueError(f"there is no {architecture} of width {width}")
        return width


class TeacherConfig(NetworkConfig):
    """`config.json` of the teacher."""

    predicts: TagSet
    """Set of tags that the teacher predicts."""


class StudentConfig(NetworkConfig):
    """`config.json` of one seed of a student."""

    method: str
    """Distillation losses, joined by `+`, or `labels`."""
    weights: dict[str, float]
    """Weight of each distillation loss."""
    layers: dict[str, list[int]]
    """Layers that each distillation loss taps, counted from the last, which is 1."""
    knowledge: str
    """`cached` or `online`."""
    teacher: str
    """SHA-256 of the teacher's weights."""


Config = TypeVar("Config", bound=NetworkConfig)


class NetworkFolder:
    """The folder of one trained network.

    Attributes:
        path: the folder; holds `weights.safetensors`, `config.json` and `record.csv`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def weights(self) -> Path:
        """Path of the weights."""
        return self.path / "weights.safetensors"

    @cached_property
    def config(self) -> NetworkConfig:
        """The validated `config.json`.

        Raises:
            InputError: the file is missing or damaged.
        """
        return NetworkConfig.read(self.path / CONFIG)

    @property
    def record(self) -> TrainingRecord:
        """The training record.

        Raises:
            InputError: the file is missing or damaged.
        """
        return TrainingRecord.read(self.path)

    def load(self) -> Tagger:
        """Load the network in evaluation mode on the CPU, after checking the digest of its weights.

        Raises:
            InputError: a file is missing or damaged, or the weights do not fit the config.
        """
        return models.load(self.path)[0]

    def save(self, network: Tagger, config: Config) -> Config:
        """Write the weights, then `config.json` with their digest, both atomically; return that config."""
        return type(config).model_validate(models.save(self.path, network, config.model_dump(mode="json")))


class TeacherFolder(NetworkFolder):
    """`models/teacher`; `knowledge/` lies beside the weights."""

    @cached_property
    def config(self) -> TeacherConfig:
        """The validated `config.json` of the teacher."""
        return TeacherConfig.read(self.path / CONFIG)


class StudentFolder(NetworkFolder):
    """`models/students/<name>/seed-<n>`."""

    @cached_property
    def config(self) -> StudentConfig:
        """The validated `config.json` of the student."""
        return StudentConfig.read(self.path / CONFIG)
