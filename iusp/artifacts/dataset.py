"""`data/dataset`: the tables of the data set, and where the recordings came from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import Field

from iusp.artifacts.base import Artifact, Digested
from iusp.data.clips import NO_ANNOTATION, NO_FILE, NO_TRUTH
from iusp.data.labels import PLACE_AND_TIME, SPLITS
from iusp.data.taxonomy import Taxonomy, read_taxonomy
from iusp.errors import InputError
from iusp.io import files
from iusp.io.tables import read_table, write_table
from iusp.io.text import first_names

INDEX = ["audio_filename", "split", "sensor_id", "sha256", "seconds", "sample_rate", "channels"]
NAMES_IN_SUMMARY = 20  # the CSV files list all names
ROWS = 10_000  # rows that are converted to text at a time, to bound the memory

Count = Annotated[int, Field(ge=0)]
NOT_STATED = "NOASSERTION"
"""SPDX expression for a licence that is not stated."""


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
        """Short description of the source, for people."""
        return f"generated scenes ({self.name})" if self.generated else self.name

    @property
    def warning(self) -> str | None:
        """Warning for users of a model that was trained on these clips; None if there is no warning."""
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

    @classmethod
    def of(cls, names: list[str]) -> "Examples":
        """Count names and keep the first ones."""
        return cls(count=len(names), names=names[:NAMES_IN_SUMMARY])

    def __str__(self) -> str:
        return first_names(self.names, self.count)


@dataclass(frozen=True)
class DatasetTables:
    """The tables of a data set.

    Attributes:
        index: one row per good clip, sorted by split and name, with the columns of `INDEX` and those of
            `PLACE_AND_TIME` that the annotations have.
        labels: targets of the same clips in the same order, as `iusp.data.labels.derive_labels` returns them.
        quarantine: audio_filename, split and reason of each bad clip.
        unmatched: likewise, each clip without file or ground truth and each file without annotation.
    """

    index: pd.DataFrame
    labels: pd.DataFrame
    quarantine: pd.DataFrame
    unmatched: pd.DataFrame

    @classmethod
    def divide(cls, clips: pd.DataFrame, labels: pd.DataFrame, strays: list[str]) -> "DatasetTables":
        """Divide the clips into good, bad and unmatched ones.

        Args:
            clips: one row per annotated clip, with the columns of `iusp.data.clips.Finding`.
            labels: targets of all clips with ground truth.
            strays: paths of the audio files without annotation.
        """
        columns = [*INDEX, *(name for name in PLACE_AND_TIME if name in clips)]
        index = clips.loc[clips["reason"] == "", columns]
        is_unmatched = clips["reason"].isin([NO_FILE, NO_TRUTH])
        strays_table = pd.DataFrame({"audio_filename": strays, "reason": NO_ANNOTATION})
        return cls(
            index=index,
            labels=index[["audio_filename"]].merge(labels, on="audio_filename"),
            quarantine=clips[~is_unmatched & (clips["reason"] != "")],
            unmatched=pd.concat([clips[is_unmatched], strays_table]),
        )

    def names(self, reason: str) -> Examples:
        """Return the unmatched clips or files of one reason."""
        return Examples.of(self.unmatched.loc[self.unmatched["reason"] == reason, "audio_filename"].tolist())

    @property
    def digest(self) -> str:
        """Digest of index and labels."""
        return files.digest_each(
            table[start : start + ROWS].to_csv(index=False)
            for table in (self.index, self.labels)
            for start in range(0, len(table), ROWS)
        )


class DatasetSummary(Artifact):
    """`dataset.json`: what the dataset step found, and what it left out."""

    source: Source
    """Where the recordings came from."""
    clips: dict[str, Count]
    """Number of clips of each split."""
    digest: str
    """Digest of index and labels; it names the data."""
    positives: dict[str, dict[str, Count]]
    """By split and tag, number of clips whose target is above 0."""
    quarantined: Examples
    """Clips whose audio cannot be used."""
    missing: Examples
    """Annotated clips without an audio file."""
    unannotated: Examples
    """Audio files without an annotation."""
    without_truth: Examples
    """Clips without ground truth."""
    junk_rows: Examples
    """Rows of the annotations that claim every label."""
    duplicate_rows: Examples
    """Rows of the annotations that repeat another one."""
    shared_sensors: Examples
    """Sensors with clips in two splits."""
    shared_clips: Examples
    """Audio files whose bytes are in two splits."""
    absent_tags: Examples
    """Coarse tags that no clip of a split has, as `<split>: <tag>`."""

    @classmethod
    def of(
        cls,
        source: Source,
        tables: DatasetTables,
        dropped: dict[str, list[str]],
        shared_sensors: list[str],
        shared_clips: list[str],
        absent_tags: list[str],
    ) -> "DatasetSummary":
        """Summarise the tables of a data set.

        Args:
            source: where the recordings came from.
            tables: the tables.
            dropped: the annotations that were dropped, under `junk_rows` and `duplicate_rows`.
            shared_sensors: sensors that recorded clips of two splits.
            shared_clips: audio files whose bytes are in two splits.
            absent_tags: coarse tags that no clip of a split has.
        """
        targets = tables.labels.set_index("split").drop(columns="audio_filename") > 0
        positives = {split: targets.loc[[split]].sum() for split in SPLITS if split in targets.index}
        return cls(
            source=source,
            clips={split: int((tables.index["split"] == split).sum()) for split in SPLITS},
            positives={
                split: {str(tag): int(count) for tag, count in sums.items()} for split, sums in positives.items()
            },
            quarantined=Examples.of(tables.quarantine["audio_filename"].tolist()),
            missing=tables.names(NO_FILE),
            unannotated=tables.names(NO_ANNOTATION),
            without_truth=tables.names(NO_TRUTH),
            junk_rows=Examples.of(dropped["junk_rows"]),
            duplicate_rows=Examples.of(dropped["duplicate_rows"]),
            shared_sensors=Examples.of(shared_sensors),
            shared_clips=Examples.of(shared_clips),
            absent_tags=Examples.of(absent_tags),
            digest=tables.digest,
        )

    @property
    def notes(self) -> list[str]:
        """One line for each kind of clip, row or sensor that the user should look at."""
        kinds = {name: value for name, value in self if isinstance(value, Examples)}
        return [f"{name.replace('_', ' ')}: {names}" for name, names in kinds.items() if names.count]


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

    def write(self, tables: DatasetTables, summary: DatasetSummary, annotations: Path, taxonomy: Path) -> None:
        """Write all files of the folder; the annotations CSV and the taxonomy YAML are copied."""
        files.copy(annotations, self.annotations)
        files.copy(taxonomy, self.taxonomy)
        write_table(self.index, tables.index)
        write_table(self.labels, tables.labels)
        write_reasons(self.quarantine, tables.quarantine)
        write_reasons(self.unmatched, tables.unmatched)
        summary.write(self.summary_file)

    def read_taxonomy(self) -> Taxonomy:
        """Read the taxonomy.

        Raises:
            InputError: the taxonomy is missing or damaged.
        """
        if not self.taxonomy.exists():
            raise InputError(f"{self.taxonomy}: no such file; run the dataset step first (dvc repro)")
        return read_taxonomy(self.taxonomy)

    def read_index(self) -> pd.DataFrame:
        """Read name, split, checksum, duration and sample rate of every clip.

        Raises:
            InputError: the index is missing or damaged.
        """
        return read_table(self.index, "audio_filename", "split", "sha256", "seconds", "sample_rate")


def write_reasons(path: Path, clips: pd.DataFrame) -> None:
    """Write a CSV file of name, split and reason of each clip."""
    with files.atomic(path) as temporary:
        clips.to_csv(temporary, columns=["audio_filename", "split", "reason"], index=False, lineterminator="\n")
