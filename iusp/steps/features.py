"""Step 2: compute log-mel features of every clip and pack them into one file per split."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import cpu_count
from numpy.typing import NDArray

from iusp.artifacts.dataset import DatasetFolder
from iusp.config.features import Features
from iusp.data.labels import SPLITS
from iusp.errors import InputError
from iusp.features.log_mel import frame_count, mel_weights, read_log_mel
from iusp.features.packed import Description, features_digest, open_packed, write_header
from iusp.io.files import Hashed, atomic, code_digest, digest, sha256, work_folder
from iusp.io.memory import keep_memory
from iusp.io.processes import in_order, worker_pool
from iusp.reporter import Reporter


@dataclass(frozen=True)
class Inputs:
    """The folders that the dataset step wrote.

    Attributes:
        dataset: folder of the tables.
        recordings: folder of the audio files.
    """

    dataset: Path
    recordings: Path


@dataclass(frozen=True)
class Part:
    """One of several equal parts of the work: the shards `number`, `number + total`, `number + 2 total`, ….

    Attributes:
        number: number of this part, from 0.
        total: number of parts.
    """

    number: int
    total: int


@dataclass(frozen=True)
class _Shard:
    """Clips of one split whose features one worker computes and writes into one file.

    Attributes:
        split: name of the split.
        clips: rows of the index.
        file: name of the packed file.
    """

    split: str
    clips: pd.DataFrame
    file: str


@dataclass(frozen=True)
class _Plan:
    """The features to compute.

    Attributes:
        config: the front-end's settings.
        index: name, split, checksum, duration and sample rate of every clip.
        digest: digest of settings and clips.
    """

    config: Features
    index: pd.DataFrame
    digest: str

    @classmethod
    def read(cls, config: Features, dataset: Path) -> "_Plan":
        folder = DatasetFolder(dataset)
        index = folder.read_index()
        if not (index["split"] == "train").any():
            raise InputError(
                f"{folder.index}: has no training clip, but training clips normalise the features; add some"
            )
        return cls(config, index, features_digest(config, zip(index["audio_filename"], index["sha256"], strict=True)))

    @property
    def warnings(self) -> Iterator[str]:
        """One line for each property of clips or settings by which something is lost."""
        config, clips = self.config, len(self.index)
        lost = self.index["seconds"] - config.clip_seconds > config.hop_length / config.sample_rate
        if lost.any():
            yield (
                f"{lost.sum():,} of {clips:,} clips are longer than features.clip_seconds ({config.clip_seconds:g} s); "
                "only their start is used. `iusp cut` divides recordings into clips."
            )
        rates = self.index["sample_rate"]
        low = rates < 2 * config.high_hz
        if low.any():
            yield (
                f"{low.sum():,} of {clips:,} clips have a sample rate below {2 * config.high_hz:,g} Hz (the lowest: "
                f"{rates.min():,} Hz); their bands above half their rate are empty. If most recordings are like this, "
                "set features.high_hz to half of their rate."
            )
        empty = int((mel_weights(config).sum(dim=0) == 0).sum())
        if empty:
            yield (
                f"{empty} of {config.mel_bands} mel bands contain no FFT bin and are always empty. Lower "
                "features.mel_bands or raise features.window_length."
            )

    def shards(self) -> list[_Shard]:
        size = self.config.clips_per_shard
        return [
            _Shard(split, clips[start : start + size], f"{split}-{start:09d}.npy")
            for split, clips in ((split, self.index[self.index["split"] == split]) for split in SPLITS)
            for start in range(0, len(clips), size)
        ]


def run(
    config: Features, inputs: Inputs, output: Path, reporter: Reporter, workers: int = cpu_count()
) -> dict[str, int]:
    """Write `<split>.npy` (float16 (N, T, M)), `index.parquet` and `features.json` into `output`.

    Parallel processes compute shards of clips and write each atomically; the shards are then merged. A killed run
    resumes with the shards that it has. The memory holds the index and one shard for each worker. The bytes do not
    depend on the number of workers.

    Args:
        config: the front-end's settings.
        inputs: folders that the dataset step wrote.
        output: folder to write.
        reporter: receives the progress, shard by shard.
        workers: number of parallel processes.

    Returns:
        The number of clips by split.

    Raises:
        InputError: a clip changed since the dataset step, or there is no training clip.
    """
    plan = _Plan.read(config, inputs.dataset)
    for warning in plan.warnings:
        reporter.warning(warning)
    with work_folder(output, digest([plan.digest, code_digest()])) as folder:
        parts = folder / "parts"
        parts.mkdir(exist_ok=True)
        _compute(plan, plan.shards(), inputs.recordings, parts, reporter, workers)
        clips = _assemble(plan, [parts], folder)
        shutil.rmtree(parts)
    return clips


def extract(
    config: Features, inputs: Inputs, part: Part, output: Path, reporter: Reporter, workers: int = cpu_count()
) -> None:
    """Do one part of the work of `run`, on a machine that shares the work with others.

    Args:
        config: the front-end's settings.
        inputs: folders that the dataset step wrote.
        part: which shards to compute.
        output: folder to write the shards into; the shards of an earlier, killed run are kept.
        reporter: receives the progress, shard by shard.
        workers: number of parallel processes.

    Raises:
        InputError: a clip changed since the dataset step, or there is no training clip.
    """
    plan = _Plan.read(config, inputs.dataset)
    for warning in plan.warnings if part.number == 0 else ():
        reporter.warning(warning)
    with work_folder(output, digest([plan.digest, part.number, part.total, code_digest()])) as folder:
        shards = plan.shards()[part.number :: part.total]
        _compute(plan, shards, inputs.recordings, folder, reporter, workers)


def merge(config: Features, dataset: Path, parts: Sequence[Path], output: Path) -> dict[str, int]:
    """Merge all parts that `extract` wrote into the same bytes that `run` writes.

    Args:
        config: the front-end's settings.
        dataset: folder of the tables that the dataset step wrote.
        parts: folders that `extract` wrote.
        output: folder to write.

    Returns:
        The number of clips by split.

    Raises:
        InputError: a shard is missing or has another shape.
    """
    plan = _Plan.read(config, dataset)
    with work_folder(output, digest([plan.digest, code_digest()])) as folder:
        return _assemble(plan, parts, folder)


def _compute(
    plan: _Plan, shards: list[_Shard], recordings: Path, folder: Path, reporter: Reporter, workers: int
) -> None:
    """Compute the shards that `folder` does not hold yet, in parallel processes."""
    missing = [shard for shard in shards if not (folder / shard.file).exists()]
    jobs = (
        partial(
            _compute_shard,
            plan.config,
            recordings,
            shard.clips["audio_filename"].tolist(),
            shard.clips["sha256"].tolist(),
            folder / shard.file,
        )
        for shard in missing
    )
    done = len(shards) - len(missing)
    with worker_pool(workers, _begin_worker) as pool:
        for _ in in_order(pool, jobs, workers):
            done += 1
            reporter.progress("features", done, len(shards))


def _begin_worker() -> None:
    torch.set_num_threads(1)
    keep_memory()


def _compute_shard(config: Features, recordings: Path, names: list[str], checksums: list[str], output: Path) -> None:
    packed = np.empty((len(names), frame_count(config), config.mel_bands), np.float16)
    for row, (name, checksum) in enumerate(zip(names, checksums, strict=True)):
        path = recordings / name
        if not path.is_file() or sha256(path) != checksum:
            raise InputError(f"{path}: missing, or changed since it was indexed; run the dataset step again")
        packed[row] = read_log_mel(path, config).numpy()
    with atomic(output) as temporary, temporary.open("wb") as stream:
        write_header(stream, packed.shape)
        stream.write(packed.data)


def _assemble(plan: _Plan, folders: Sequence[Path], output: Path) -> dict[str, int]:
    """Merge the shards in `folders` into one packed file per split, and write their index and description."""
    config = plan.config
    found = {path.name: path for folder in folders for path in folder.glob("*.npy")}
    shards: dict[str, list[NDArray[np.float16]]] = {split: [] for split in SPLITS}
    for shard in plan.shards():
        path = found.get(shard.file)
        if path is None:
            raise InputError(f"{shard.file}: no part of the features contains this shard; compute the parts again")
        packed = open_packed(path, len(shard.clips), frame_count(config), config.mel_bands)
        shards[shard.split].append(packed)
    checksums = {split: _concatenate(shards[split], output / f"{split}.npy", config) for split in SPLITS}
    clips = {split: sum(map(len, shards[split])) for split in SPLITS}
    mean, std = _statistics(shards["train"], config.mel_bands)
    plan.index[["audio_filename", "split"]].to_parquet(output / "index.parquet", index=False)
    Description(
        config=config, digest=plan.digest, mean=mean.tolist(), std=std.tolist(), clips=clips, sha256=checksums
    ).write(output)
    return clips


def _concatenate(parts: list[NDArray[np.float16]], output: Path, config: Features) -> str:
    """Write packed arrays one after the other into one file; return its SHA-256."""
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
    # A band that never changes (digital silence) is not scaled: a division by zero would follow.
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return mean, np.where(std > 1e-3, std, 1.0)
