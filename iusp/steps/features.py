"""Step 2: log-mel features of every clip, packed per split."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import cpu_count
from numpy.typing import NDArray

from iusp.config.features import Features
from iusp.data.audio import read
from iusp.data.labels import SPLITS
from iusp.errors import InputError
from iusp.features.log_mel import frame_count, log_mel
from iusp.features.packed import features_digest, open_packed, read_table, write_header
from iusp.io.files import Hashed, atomic, code_digest, digest, sha256, work_folder, write_json
from iusp.io.memory import keep_memory
from iusp.io.processes import in_order, worker_pool
from iusp.reporter import Reporter


@dataclass(frozen=True)
class Shard:
    """Clips of one split that one worker turns into one file.

    Attributes:
        split: its name.
        clips: their rows of the index.
        file: name of the packed file.
    """

    split: str
    clips: pd.DataFrame
    file: str


def run(
    config: Features,
    dataset: Path,
    recordings: Path,
    output: Path,
    reporter: Reporter,
    workers: int = cpu_count(),
) -> dict[str, int]:
    """Write `<split>.npy` (float16 (N, T, M)), `index.parquet` and `features.json` into `output`.

    Shards of clips are made in parallel processes, each atomically, then merged; a killed run resumes with the shards
    it has. Memory holds the index and a shard for each worker. The bytes do not depend on the number of workers.

    Args:
        config: the front-end's settings.
        dataset: folder that the dataset step wrote.
        recordings: folder of the audio files that the dataset step wrote.
        output: folder to write.
        reporter: told of every shard.
        workers: parallel processes.

    Returns:
        Clips per split.

    Raises:
        InputError: a clip cannot be read any more, or there is no training clip.
    """
    index, whole = _read_index(config, dataset)
    with work_folder(output, digest([whole, code_digest()])) as folder:
        parts = folder / "parts"
        parts.mkdir(exist_ok=True)
        _extract_all(_shards(index, config), recordings, parts, config, reporter, workers)
        clips = _assemble(config, index, whole, [parts], folder)
        shutil.rmtree(parts)
    return clips


def extract(
    config: Features,
    dataset: Path,
    recordings: Path,
    output: Path,
    part: int,
    parts: int,
    reporter: Reporter,
    workers: int = cpu_count(),
) -> None:
    """Do one part of the work of `run`, for a machine that shares it with others: every `parts`-th shard.

    Args:
        config: the front-end's settings.
        dataset: folder that the dataset step wrote.
        recordings: folder of the audio files that the dataset step wrote.
        output: folder to write the shards into; what is there of an earlier, killed run is kept.
        part: number of this part, from 0.
        parts: into how many the work is divided.
        reporter: told of every shard.
        workers: parallel processes.

    Raises:
        InputError: a clip cannot be read any more, or there is no training clip.
    """
    index, whole = _read_index(config, dataset)
    with work_folder(output, digest([whole, part, parts, code_digest()])) as folder:
        _extract_all(_shards(index, config)[part::parts], recordings, folder, config, reporter, workers)


def merge(config: Features, dataset: Path, parts: Sequence[Path], output: Path) -> dict[str, int]:
    """Make of all parts that `extract` wrote what `run` writes, to the byte.

    Args:
        config: the front-end's settings.
        dataset: folder that the dataset step wrote.
        parts: folders that `extract` wrote.
        output: folder to write.

    Returns:
        Clips per split.

    Raises:
        InputError: a shard is missing or of another shape.
    """
    index, whole = _read_index(config, dataset)
    with work_folder(output, digest([whole, code_digest()])) as folder:
        return _assemble(config, index, whole, parts, folder)


def _read_index(config: Features, dataset: Path) -> tuple[pd.DataFrame, str]:
    """Return the clips and the digest of everything that shapes their features."""
    path = dataset / "index.parquet"
    index = read_table(path, "audio_filename", "split", "sha256")
    if not (index["split"] == "train").any():
        raise InputError(f"{path}: has no training clip; features are normalised by them")
    return index, features_digest(config, zip(index["audio_filename"], index["sha256"], strict=True))


def _extract_all(
    shards: list[Shard], recordings: Path, folder: Path, config: Features, reporter: Reporter, workers: int
) -> None:
    missing = [shard for shard in shards if not (folder / shard.file).exists()]
    jobs = (
        partial(
            _extract,
            recordings,
            shard.clips["audio_filename"].tolist(),
            shard.clips["sha256"].tolist(),
            folder / shard.file,
            config,
        )
        for shard in missing
    )
    done = len(shards) - len(missing)
    with worker_pool(workers, _begin) as pool:
        for _ in in_order(pool, jobs, workers):
            done += 1
            reporter.progress("features", done, len(shards))


def _assemble(
    config: Features, index: pd.DataFrame, whole: str, folders: Sequence[Path], output: Path
) -> dict[str, int]:
    """Merge the shards that lie in `folders` and describe them."""
    found = {path.name: path for folder in folders for path in folder.glob("*.npy")}
    shards: dict[str, list[NDArray[np.float16]]] = {split: [] for split in SPLITS}
    for shard in _shards(index, config):
        path = found.get(shard.file)
        if path is None:
            raise InputError(f"{shard.file}: no part of the features holds it; make the parts again")
        packed = open_packed(path, len(shard.clips), frame_count(config), config.mel_bands)
        shards[shard.split].append(packed)
    checksums = {split: _merge(shards[split], output / f"{split}.npy", config) for split in SPLITS}
    clips = {split: sum(map(len, shards[split])) for split in SPLITS}
    mean, std = _statistics(shards["train"], config.mel_bands)
    index[["audio_filename", "split"]].to_parquet(output / "index.parquet", index=False)
    write_json(
        output / "features.json",
        {
            "config": config.model_dump(mode="json"),
            "digest": whole,
            "mean": mean.tolist(),
            "std": std.tolist(),
            "clips": clips,
            "sha256": checksums,
        },
    )
    return clips


def _shards(index: pd.DataFrame, config: Features) -> list[Shard]:
    size = config.clips_per_shard
    return [
        Shard(split, clips[start : start + size], f"{split}-{start:09d}.npy")
        for split, clips in ((split, index[index["split"] == split]) for split in SPLITS)
        for start in range(0, len(clips), size)
    ]


def _begin() -> None:
    torch.set_num_threads(1)
    keep_memory()


def _extract(recordings: Path, names: list[str], checksums: list[str], output: Path, config: Features) -> None:
    packed = np.empty((len(names), frame_count(config), config.mel_bands), np.float16)
    for row, (name, checksum) in enumerate(zip(names, checksums, strict=True)):
        path = recordings / name
        if not path.is_file() or sha256(path) != checksum:
            raise InputError(f"{path}: is not the clip that was indexed (other bytes); run the dataset step again")
        samples, sample_rate = read(path)
        packed[row] = log_mel(torch.from_numpy(samples), sample_rate, config).numpy()
    with atomic(output) as temporary, temporary.open("wb") as stream:
        write_header(stream, packed.shape)
        stream.write(packed.data)


def _merge(parts: list[NDArray[np.float16]], output: Path, config: Features) -> str:
    shape = (sum(map(len, parts)), frame_count(config), config.mel_bands)
    with Hashed(output) as stream:
        write_header(stream, shape)
        for part in parts:
            stream.write(part.reshape(-1).view(np.uint8).data)
    return stream.sha256.hexdigest()


def _statistics(parts: list[NDArray[np.float16]], bands: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation per band over all frames, in one pass in float64."""
    count, total, squares = 0, np.zeros(bands), np.zeros(bands)
    for part in parts:
        frames = part.astype(np.float64).reshape(-1, bands)
        count += len(frames)
        total += frames.sum(axis=0)
        squares += np.square(frames).sum(axis=0)
    mean = total / count
    # A band that never changes (digital silence) is left as it is instead of being divided by zero.
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return mean, np.where(std > 1e-3, std, 1.0)
