"""`metrics.json` and `latency.json`: the quality and the cost of every network.

The fields' names are the names of the metrics everywhere: `dvc metrics`, MLflow and Kubeflow show them joined by dots,
such as `students.small.coarse.micro_auprc`.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationInfo, field_validator

from iusp.artifacts.base import Artifact
from iusp.artifacts.dataset import Count, Source
from iusp.io.files import read_json, write_json
from iusp.io.text import first_names

Share = Annotated[float, Field(ge=0, le=1)]
BySeed = Annotated[dict[str, Share], Field(min_length=1)]
Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Auprc(Artifact):
    """AUPRC at one level of the taxonomy, with 95 % bootstrap intervals over clips."""

    micro_auprc: Share
    """AUPRC of the counts summed over the categories."""
    micro_auprc_low: Share
    """Lower end of its interval."""
    micro_auprc_high: Share
    """Upper end of its interval."""
    macro_auprc: Share
    """Mean of the categories' AUPRCs."""
    macro_auprc_low: Share
    """Lower end of its interval."""
    macro_auprc_high: Share
    """Upper end of its interval."""
    micro_f1: Share
    """F-score of the summed counts at threshold 0.5."""
    classwise: dict[str, Share]
    """AUPRC of each category, by its id."""


class NetworkResult(Artifact):
    """Quality and cost of one network."""

    architecture: str
    """Family of the network."""
    parameters: Count
    """Number of trained parameters."""
    macs: Count
    """Multiply-accumulates for one clip."""
    bytes: Count
    """Size of the weights' file."""
    coarse: Auprc
    """Quality on the coarse tags."""
    fine: Auprc | None = None
    """Quality on the fine tags, if the networks predict them."""


class TeacherResult(NetworkResult):
    """Quality and cost of the teacher."""

    sha256: str
    """SHA-256 of its weights."""


class StudentResult(NetworkResult):
    """Quality and cost of a student: those of its best seed, and the AUPRC of every seed."""

    method: str
    """Distillation losses, joined by `+`, or `labels`."""
    weights: dict[str, float]
    """Weight of each distillation loss."""
    validate_micro_auprc: BySeed
    """Micro-averaged AUPRC on validate, by seed."""
    best_seed: int
    """Seed that is best on validate."""
    seeds: BySeed
    """Micro-averaged AUPRC on the evaluated split, by seed."""
    seeds_mean: float
    """Mean of `seeds`."""
    seeds_std: float
    """Standard deviation of `seeds`; 0 for a single seed."""

    @field_validator("seeds")
    @classmethod
    def _trained(cls, seeds: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        trained = info.data.get("validate_micro_auprc", {})
        if not seeds.keys() == trained.keys() >= {str(info.data.get("best_seed"))}:
            raise ValueError("not the seeds that were trained")
        return seeds

    @property
    def best_validate_auprc(self) -> float:
        """Micro-averaged AUPRC of the best seed on validate."""
        return self.validate_micro_auprc[str(self.best_seed)]


class Data(Source):
    """The data that the networks were trained and evaluated on."""

    digest: str
    """Digest of the data set (`dataset.json`)."""
    clips: dict[str, Count]
    """Number of clips of each split."""


class Metrics(Artifact):
    """`metrics.json`."""

    data: Data
    """The data that the networks were trained and evaluated on."""
    split: str
    """Split that was evaluated: `test`, or `validate` where there is no test."""
    clips: Count
    """Number of clips of that split."""
    absent_tags: list[str]
    """Coarse tags that no clip of that split has; each counts as 0 in the macro average, as in the challenge."""
    teacher: TeacherResult
    """The teacher."""
    students: Annotated[dict[str, StudentResult], Field(min_length=1)]
    """The students, by name."""

    @property
    def networks(self) -> dict[str, TeacherResult | StudentResult]:
        """The teacher, then the students, by name."""
        return {"teacher": self.teacher, **self.students}

    @property
    def absent_note(self) -> str | None:
        """One sentence about the tags that no clip has; None if every tag occurs."""
        if not self.absent_tags:
            return None
        return (
            f"No {self.split} clip has {first_names(self.absent_tags)}. As in the challenge, the AUPRC of such a tag "
            "counts as 0 in the macro average."
        )

    @property
    def best_student(self) -> str:
        """Name of the student whose best seed has the highest micro-averaged AUPRC on validate."""
        return max(self.students, key=lambda name: max(self.students[name].validate_micro_auprc.values()))


def method_of(network: NetworkResult) -> str:
    """Return the method by which a network was trained; a teacher is trained on labels."""
    return network.method if isinstance(network, StudentResult) else "labels"


class Percentiles(Artifact):
    """Milliseconds for one clip on one CPU thread."""

    p50: Milliseconds
    """Median."""
    p95: Milliseconds
    """95th percentile."""


class Times(Artifact):
    """Times of one network in one runtime."""

    network: Percentiles
    """From log-mel to probabilities."""
    audio_to_tags: Percentiles
    """From the clip's samples to probabilities."""


class NetworkTimes(Artifact):
    """Times of one network in every runtime."""

    torch: Times
    """PyTorch."""
    float32: Times
    """ONNX Runtime, float32."""
    int8: Times
    """ONNX Runtime, int8."""


Latencies = dict[str, NetworkTimes]
"""`latency.json`: the times of each network, by name."""


def read_latencies(path: Path, *networks: str) -> Latencies:
    """Read `latency.json`.

    Args:
        path: the file.
        networks: names that must be in it.

    Raises:
        InputError: the file is missing or damaged.
    """
    adapter = TypeAdapter(Latencies)
    return adapter.validate_python(read_json(path, *networks, form=Latencies))


def write_latencies(path: Path, latencies: Latencies) -> None:
    """Write `latency.json` atomically."""
    write_json(path, {name: times.model_dump(mode="json") for name, times in latencies.items()})
