"""`data/dataset`: the tables of the data set, and where the recordings came from."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from iusp.artifacts.base import Artifact, Digested

Count = Annotated[int, Field(ge=0)]
NOT_STATED = "NOASSERTION"
"""SPDX's word for a licence that nobody has stated."""


class Source(Artifact):
    """Where the recordings came from, and under which licence."""

    name: str
    """Name of the source, for people; without credentials."""
    generated: bool = False
    """Whether the clips are generated scenes instead of recordings."""
    license: str | None = None
    """Licence of the recordings, an SPDX expression; None if it is not stated."""

    @property
    def title(self) -> str:
        """The source in a few words, for people."""
        return f"generated scenes ({self.name})" if self.generated else self.name

    @property
    def warning(self) -> str | None:
        """What whoever uses a model trained on these clips must know; None if there is nothing."""
        if self.generated:
            return (
                "Trained and evaluated on generated scenes, not on recordings. The figures do not tell how well this "
                "model works on real sound. Train on recordings before you use it."
            )
        return None

    @property
    def licence_note(self) -> str:
        """One sentence about the licence of the data, which the weights follow."""
        if self.license is None:
            return (
                "The licence of the recordings is not stated (dataset.license). Check their terms before you "
                "distribute the weights."
            )
        what = "generated scenes" if self.generated else "recordings"
        return f"The licence of the {what} is {self.license}; the weights follow it."

    @property
    def weights_license(self) -> str:
        """Licence of weights that were trained on these clips, as an SPDX expression."""
        return self.license or NOT_STATED


class Examples(Artifact):
    """Clips or rows that the dataset step reports."""

    count: Count
    """How many there are."""
    names: list[str]
    """The first few of them."""


class DatasetSummary(Artifact):
    """`dataset.json`: what the dataset step found, and what it left out."""

    source: Source
    """Where the recordings came from."""
    clips: dict[str, Count]
    """Number of clips of each split."""
    digest: str
    """Digest of index and labels; it names the data."""
    positives: dict[str, dict[str, Count]]
    """Number of clips with each tag, by split."""
    quarantined: Examples
    """Clips whose audio cannot be used."""
    missing: Examples
    """Annotated clips without an audio file."""
    unannotated: Examples
    """Audio files without an annotation."""
    without_truth: Examples
    """Clips without ground truth."""
    junk_rows: Examples
    """Rows of the annotations that cannot be used."""
    duplicate_rows: Examples
    """Rows of the annotations that repeat another one."""
    shared_sensors: Examples
    """Sensors with clips in two splits."""


class _Sourced(Artifact):
    source: Source


class DatasetFolder:
    """The folder that the dataset step writes its tables into.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def index(self) -> Path:
        """Path of the table of all clips."""
        return self.path / "index.parquet"

    @property
    def labels(self) -> Path:
        """Path of the table of all labels."""
        return self.path / "labels.parquet"

    @property
    def annotations(self) -> Path:
        """Path of the annotations, as they came."""
        return self.path / "annotations.csv"

    @property
    def taxonomy(self) -> Path:
        """Path of the taxonomy, as it came."""
        return self.path / "taxonomy.yaml"

    @property
    def quarantine(self) -> Path:
        """Path of the list of clips that cannot be used."""
        return self.path / "quarantine.csv"

    @property
    def unmatched(self) -> Path:
        """Path of the list of clips without a file, without an annotation or without ground truth."""
        return self.path / "unmatched.csv"

    @property
    def summary_file(self) -> Path:
        """Path of the summary."""
        return self.path / "dataset.json"

    @property
    def digest(self) -> str:
        """Digest that names the data.

        Raises:
            InputError: the summary is missing or damaged.
        """
        return Digested.read(self.summary_file).digest

    @property
    def source(self) -> Source:
        """Where the recordings came from.

        Raises:
            InputError: the summary is missing or damaged.
        """
        return _Sourced.read(self.summary_file).source

    @property
    def summary(self) -> DatasetSummary:
        """The summary.

        Raises:
            InputError: the file is missing or damaged.
        """
        return DatasetSummary.read(self.summary_file)
