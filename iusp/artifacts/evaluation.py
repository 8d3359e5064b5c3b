"""`reports/evaluation`: everything that the evaluation step writes, and each exported model in it."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from iusp.artifacts.base import Artifact
from iusp.artifacts.dataset import Count
from iusp.artifacts.metrics import Auprc, Latencies, Metrics, Percentiles, read_latencies
from iusp.artifacts.records import TrainingRecord
from iusp.config.features import Features

NETS = ("net_float32.onnx", "net_int8.onnx")
"""Files from log-mel to probabilities."""
WHOLE = ("float32.onnx", "int8.onnx")
"""Files from a waveform to probabilities."""


class Parity(Artifact):
    """How far an exported file is from the network in PyTorch."""

    max_difference: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Largest difference of a probability."""
    auprc_loss: float | None = None
    """Micro-averaged AUPRC that int8 loses against float32; None for float32."""


class Measurements(Artifact):
    """`evaluation/measurements.json` of an exported model: the measurements that decide about its promotion."""

    split: str
    """Split that was evaluated."""
    digest: str
    """SHA-256 of `truth.csv`."""
    coarse: Auprc
    """Quality on the coarse tags."""
    parameters: Count
    """Number of trained parameters."""
    macs: Count
    """Multiply-accumulates for one clip."""
    bytes: dict[str, Count]
    """Size of each exported file."""
    latency_ms: dict[str, Percentiles]
    """Milliseconds of each exported file for one clip."""
    parity: dict[str, Parity]
    """How far each exported file is from the network in PyTorch."""
    tags: Annotated[list[str], Field(min_length=1)]
    """Names of the outputs, in order."""
    features: Features
    """Settings of the front-end."""


class ModelFolder:
    """A student as it is registered.

    Attributes:
        path: the folder; an MLflow model.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def device(self) -> Path:
        """Folder with the files for devices."""
        return self.path / "device"

    @property
    def evaluation(self) -> Path:
        """Folder with the files that decide about a promotion."""
        return self.path / "evaluation"

    @property
    def measurements_file(self) -> Path:
        """Path of the measurements."""
        return self.evaluation / "measurements.json"

    @property
    def measurements(self) -> Measurements:
        """What was measured of the model.

        Raises:
            InputError: the file is missing or damaged.
        """
        return Measurements.read(self.measurements_file)

    @property
    def predictions(self) -> Path:
        """Path of the model's probabilities of the evaluated clips."""
        return self.evaluation / "predictions.csv"

    @property
    def truth(self) -> Path:
        """Path of the coarse tags of the evaluated clips."""
        return self.evaluation / "truth.csv"


class EvaluationFolder:
    """The folder that the evaluation step writes.

    If every seed of a student has its own file, networks are named `teacher` and `<student>-seed-<n>`. If only the best
    seed has a file, it has the student's name.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def metrics_file(self) -> Path:
        """Path of quality and cost of every network."""
        return self.path / "metrics.json"

    @property
    def metrics(self) -> Metrics:
        """Quality and cost of every network.

        Raises:
            InputError: the file is missing or damaged.
        """
        return Metrics.read(self.metrics_file)

    @property
    def latencies_file(self) -> Path:
        """Path of the measured times."""
        return self.path / "latency.json"

    def latencies(self, *networks: str) -> Latencies:
        """Read the measured times.

        Args:
            networks: names that must be there.

        Raises:
            InputError: the file is missing or damaged.
        """
        return read_latencies(self.latencies_file, *networks)

    @property
    def features_file(self) -> Path:
        """Path of the description of the features."""
        return self.path / "features.json"

    @property
    def report(self) -> Path:
        """Path of the report."""
        return self.path / "report.html"

    @property
    def comparison(self) -> Path:
        """Path of the table of all networks."""
        return self.path / "comparison.md"

    @property
    def slices(self) -> Path:
        """Path of the scores by place and time."""
        return self.path / "slices.csv"

    @property
    def plots(self) -> Path:
        """Folder of the pictures."""
        return self.path / "plots"

    def curve(self, network: str) -> Path:
        """Return the path of a network's micro-averaged precision-recall curve."""
        return self.path / "curves" / f"{network}.csv"

    def predictions(self, network: str) -> Path:
        """Return the path of a network's probabilities."""
        return self.path / "predictions" / f"{network}.csv"

    def network(self, network: str) -> Path:
        """Return the folder with a network's config and training record."""
        return self.path / "networks" / network

    def record(self, network: str) -> TrainingRecord:
        """Read a network's training record.

        Raises:
            InputError: the file is missing or damaged.
        """
        return TrainingRecord.read(self.network(network))

    def model(self, network: str) -> ModelFolder:
        """Return the exported model of a student's best seed."""
        return ModelFolder(self.network(network) / "model")
