"""Packed log-mel features: one memory-mappable file per split, and what shaped them."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from tokenize import TokenError
from typing import BinaryIO

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from iusp.config.base import TagSet
from iusp.config.features import Features
from iusp.data.labels import SPLITS, training_targets
from iusp.data.taxonomy import Taxonomy
from iusp.errors import InputError
from iusp.features.log_mel import frame_count
from iusp.io.files import digest_each, read_json, sha256
from iusp.io.text import one_line

# What NumPy raises at a header that is none, or that claims sizes which cannot be.
BAD_HEADER = (OSError, ValueError, EOFError, OverflowError, MemoryError, RecursionError, SyntaxError, TokenError)


def read_table(path: Path, *columns: str, optional: Collection[str] = ()) -> pd.DataFrame:
    """Read columns of a Parquet file that an earlier step wrote, and those of `optional` that are there.

    Raises:
        InputError: it is missing or damaged, or lacks one of `columns`.
    """
    try:
        there = pq.read_schema(path).names
        if not set(columns) <= set(there):
            raise ValueError(f"lacks {', '.join(columns)}")
        return pd.read_parquet(path, columns=[name for name in there if name in {*columns, *optional}])
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run the step that writes it first (dvc repro)") from None
    except (ValueError, OSError) as error:  # pyarrow's own errors are ValueErrors
        raise InputError(f"{path}: not what its step writes ({error}); delete it and run its step again") from None


def open_packed(path: Path, *shape: int, checksum: str | None = None) -> NDArray[np.float16]:
    """Map a packed float16 file, whose first dimensions are `shape`, into memory, read-only.

    Raises:
        InputError: it is missing, damaged, has another shape or another SHA-256 than `checksum`.
    """
    try:
        packed: NDArray[np.float16] = open_memmap(path, mode="r")
    except BAD_HEADER as error:
        reason = one_line(error, 200) or "not a packed file"
        raise InputError(f"{path}: {reason}; run the step that writes it again") from None
    if packed.dtype != np.float16 or packed.shape[: len(shape)] != shape:
        raise InputError(f"{path}: holds {packed.dtype} {packed.shape}, not float16 {shape}; run its step again")
    if checksum is not None and _sha256(path, path.stat().st_size, path.stat().st_mtime_ns) != checksum:
        raise InputError(f"{path}: holds other bytes than were written (SHA-256); run its step again")
    return packed


@cache
def _sha256(path: Path, size: int, changed: int) -> str:
    """Digest a file once in a process: training opens it in each epoch, and reads it about 20 times as a whole."""
    return sha256(path)


def write_header(stream: BinaryIO, shape: tuple[int, ...]) -> None:
    """Begin a packed float16 file of a shape, whose numbers are to be written after it, row by row.

    Not mapped into memory: on a full disk, writing there ends the process, without a word.
    """
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)


@dataclass(frozen=True)
class FeatureSet:
    """What a features folder says of itself.

    Attributes:
        folder: holds `<split>.npy`, float16 (N, T, M), and `index.parquet`.
        config: the front-end's settings.
        digest: of everything that shaped the features: settings and every clip's checksum.
        mean: float32 (M,), per band over the training split.
        std: float32 (M,), likewise.
        clips: clips per split.
        sha256: of each split's packed file.
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
            InputError: they are not those that were written.
        """
        shape = self.clips[split], frame_count(self.config), self.config.mel_bands
        return open_packed(self.folder / f"{split}.npy", *shape, checksum=self.sha256[split])

    def filenames(self, split: str) -> list[str]:
        """Return the clips' names in the order of the packed file."""
        index = read_table(self.folder / "index.parquet", "audio_filename", "split")
        return index.loc[index["split"] == split, "audio_filename"].tolist()


def features_digest(config: Features, checksums: Iterable[tuple[str, str]]) -> str:
    """Digest everything that shapes the features: the settings and each clip's name and SHA-256, in order."""
    return digest_each(chain([config.model_dump(mode="json")], checksums))


def read_features(folder: Path) -> FeatureSet:
    """Open a folder that the features step wrote.

    Raises:
        InputError: it is missing or incomplete.
    """
    path = folder / "features.json"
    description = read_json(path, "config", "digest", "mean", "std", "clips", "sha256")
    try:
        config = Features.model_validate(description["config"])
        checksums = {split: description["sha256"][split] for split in SPLITS}
        mean, std = torch.tensor([description["mean"], description["std"]]).reshape(2, config.mel_bands)
        digests = [description["digest"], *checksums.values()]
        if not (mean.isfinite() & std.isfinite() & (std > 0)).all() or not all(isinstance(one, str) for one in digests):
            raise ValueError("mean, std, digest or sha256 is out of place")
        clips = {split: int(description["clips"][split]) for split in SPLITS}
    except (ValueError, TypeError, KeyError, RuntimeError, OverflowError) as error:
        reason = one_line(error, 200)
        raise InputError(f"{path}: not what the features step writes ({reason}); run it again") from None
    return FeatureSet(folder, config, description["digest"], mean, std, clips, checksums)


def split_labels(dataset: Path, features: FeatureSet, split: str, tags: Collection[str]) -> pd.DataFrame:
    """Read the labels of a split, row by row those of the features' clips; of `tags`, those that there are.

    Raises:
        InputError: features and labels are not of the same clips.
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
    """One split: features on disk, labels in memory, row by row the same clips.

    Attributes:
        filenames: N clip names.
        log_mel: float16 (N, T, M), memory-mapped.
        targets: float32 (N, K) in [0, 1].
        mask: bool (N, K); False where a tag's truth is not known.
        tags: K tag names.
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
        split: its name.
        tags: `coarse`, `fine` or `both`.
        taxonomy: of the data set.

    Raises:
        InputError: features and labels are not of the same clips, or the labels lack the tags.
    """
    known = taxonomy.coarse_tags + (taxonomy.all_fine_tags if tags != "coarse" else ())
    labels = split_labels(dataset, features, split, known)
    targets, mask, names = training_targets(labels, taxonomy, tags)
    return LabelledClips(
        features.filenames(split), features.log_mel(split), torch.tensor(targets), torch.tensor(mask), names
    )
