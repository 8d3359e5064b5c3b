"""Packed log-mel features: one memory-mappable file per split, and a description of what shaped them."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from tokenize import TokenError
from typing import Annotated, BinaryIO

import numpy as np
import pandas as pd
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from iusp.config.base import TagSet
from iusp.config.features import Features
from iusp.data.labels import SPLITS, training_targets
from iusp.data.taxonomy import Taxonomy
from iusp.errors import InputError
from iusp.features.log_mel import frame_count
from iusp.io.files import digest_each, read_json, sha256, write_json
from iusp.io.tables import read_table
from iusp.io.text import one_line

DESCRIPTION = "features.json"
# What NumPy raises for a damaged header, or for a header with impossible sizes.
BAD_HEADER = (OSError, ValueError, EOFError, OverflowError, MemoryError, RecursionError, SyntaxError, TokenError)


def open_packed(path: Path, *shape: int, checksum: str | None = None) -> NDArray[np.float16]:
    """Map a packed float16 file into memory, read-only.

    Args:
        path: the file.
        shape: the first dimensions that the file must have.
        checksum: SHA-256 that the file must have; None to skip this check.

    Raises:
        InputError: the file is missing or damaged, or has another shape or checksum.
    """
    try:
        packed: NDArray[np.float16] = open_memmap(path, mode="r")
    except BAD_HEADER as error:
        reason = one_line(error, 200) or "not a packed file"
        raise InputError(f"{path}: {reason}; run the step that writes it again") from None
    if packed.dtype != np.float16 or packed.shape[: len(shape)] != shape:
        raise InputError(f"{path}: holds {packed.dtype} {packed.shape}, not float16 {shape}; run its step again")
    if checksum is not None and _sha256(path, path.stat().st_size, path.stat().st_mtime_ns) != checksum:
        raise InputError(f"{path}: its SHA-256 differs from the recorded one; run its step again")
    return packed


@cache
def _sha256(path: Path, size: int, changed: int) -> str:
    """Return the SHA-256 of a file, computed once per process: training opens every file again in each epoch."""
    return sha256(path)


def write_header(stream: BinaryIO, shape: tuple[int, ...]) -> None:
    """Write the header of a packed float16 file; the caller then writes the numbers row by row.

    The file is not mapped into memory for writing: on a full disk, that would end the process without an error.
    """
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)


_Mean = Annotated[float, Field(ge=-1e6, le=1e6)]
_Deviation = Annotated[float, Field(ge=1e-6, le=1e6)]


class Description(BaseModel):
    """`features.json`: what a features folder contains."""

    model_config = ConfigDict(frozen=True, strict=True)

    config: Features
    """The front-end's settings."""
    digest: str
    """Digest of everything that shaped the features: the settings and the checksum of every clip."""
    mean: list[_Mean]
    """Mean of each band over the training split."""
    std: list[_Deviation]
    """Standard deviation of each band over the training split."""
    clips: dict[str, int]
    """Number of clips by split."""
    sha256: dict[str, str]
    """Checksum of each split's packed file."""

    @model_validator(mode="after")
    def _complete(self) -> "Description":
        if not len(self.mean) == len(self.std) == self.config.mel_bands:
            raise ValueError(f"mean and std must have {self.config.mel_bands} values")
        if not set(self.clips) == set(self.sha256) == set(SPLITS):
            raise ValueError(f"clips and sha256 must name {', '.join(SPLITS)}")
        return self

    def write(self, folder: Path) -> None:
        """Write `features.json` into a folder."""
        write_json(folder / DESCRIPTION, self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path) -> "Description":
        """Read `features.json` of a folder.

        Raises:
            InputError: it is missing, or not what the features step writes.
        """
        path = folder / DESCRIPTION
        content = read_json(path, *cls.model_fields)
        try:
            return cls.model_validate(content)
        except ValueError as error:
            raise InputError(
                f"{path}: not what the features step writes ({one_line(error, 200)}); run it again"
            ) from None


@dataclass(frozen=True)
class FeatureSet:
    """An open features folder.

    Attributes:
        folder: holds `<split>.npy`, float16 (N, T, M), and `index.parquet`.
        config: the front-end's settings.
        digest: digest of everything that shaped the features: the settings and the checksum of every clip.
        mean: float32 (M,), mean of each band over the training split.
        std: float32 (M,), standard deviation of each band over the training split.
        clips: number of clips by split.
        sha256: checksum of each split's packed file.
    """

    folder: Path
    config: Features
    digest: str
    mean: Tensor
    std: Tensor
    clips: dict[str, int]
    sha256: dict[str, str]

    def log_mel(self, split: str) -> NDArray[np.float16]:
        """Map a split's features (N, T, M) into memory, read-only.

        Raises:
            InputError: the file is not the one that the features step wrote.
        """
        shape = self.clips[split], frame_count(self.config), self.config.mel_bands
        return open_packed(self.folder / f"{split}.npy", *shape, checksum=self.sha256[split])

    def filenames(self, split: str) -> list[str]:
        """Return the names of a split's clips in the order of the packed file."""
        index = read_table(self.folder / "index.parquet", "audio_filename", "split")
        return index.loc[index["split"] == split, "audio_filename"].tolist()


def features_digest(config: Features, checksums: Iterable[tuple[str, str]]) -> str:
    """Return the digest of everything that shapes the features.

    Args:
        config: the front-end's settings.
        checksums: name and SHA-256 of each clip, in the order of the index.
    """
    return digest_each(chain([config.model_dump(mode="json")], checksums))


def read_features(folder: Path) -> FeatureSet:
    """Open a folder that the features step wrote.

    Raises:
        InputError: `features.json` is missing or damaged.
    """
    found = Description.read(folder)
    mean, std = torch.tensor([found.mean, found.std])
    return FeatureSet(folder, found.config, found.digest, mean, std, found.clips, found.sha256)


def split_labels(dataset: Path, features: FeatureSet, split: str, tags: Collection[str]) -> pd.DataFrame:
    """Read the labels of a split, in the order of the features' clips.

    Args:
        dataset: folder that the dataset step wrote.
        features: the packed features.
        split: name of the split.
        tags: columns to read; tags without a column are left out.

    Raises:
        InputError: features and labels belong to different clips.
    """
    labels = read_table(dataset / "labels.parquet", "audio_filename", "split", optional=tags)
    labels = labels[labels["split"] == split].reset_index(drop=True)
    if labels["audio_filename"].tolist() != features.filenames(split):
        raise InputError(
            f"{features.folder}: made from other {split} clips than {dataset / 'labels.parquet'}; run features again"
        )
    return labels


@dataclass(frozen=True)
class LabelledClips:
    """The features (on disk) and the labels (in memory) of one split, for the same clips in the same order.

    Attributes:
        filenames: names of the N clips.
        log_mel: float16 (N, T, M), memory-mapped.
        targets: float32 (N, K) in [0, 1].
        mask: bool (N, K); False where the truth about a tag is not known.
        tags: names of the K tags.
    """

    filenames: list[str]
    log_mel: NDArray[np.float16]
    targets: Tensor
    mask: Tensor
    tags: list[str]

    def __len__(self) -> int:
        return len(self.filenames)


def labelled_clips(features: FeatureSet, dataset: Path, split: str, tags: TagSet, taxonomy: Taxonomy) -> LabelledClips:
    """Join a split's features with its labels.

    Args:
        features: the packed features.
        dataset: folder that the dataset step wrote.
        split: name of the split.
        tags: which tags to return: `coarse`, `fine` or `both`.
        taxonomy: the taxonomy of the data set.

    Raises:
        InputError: features and labels belong to different clips, or the labels lack the tags.
    """
    columns = taxonomy.coarse_tags + (taxonomy.all_fine_tags if tags != "coarse" else ())
    labels = split_labels(dataset, features, split, columns)
    targets, mask, names = training_targets(labels, taxonomy, tags)
    return LabelledClips(
        features.filenames(split), features.log_mel(split), torch.tensor(targets), torch.tensor(mask), names
    )
