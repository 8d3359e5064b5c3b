"""Untrusted audio files: checked before use, and decoded in blocks of bounded memory."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from iusp.data.containers import find_streams
from iusp.data.containers.errors import BadAudio as BadAudio
from iusp.data.containers.spans import Spans

MIN_RATE, MAX_RATE = 4000, 192_000  # Hz
BLOCK_VALUES = 2**20  # samples × channels per decoded block; most clips fit into one block
BUFFER_BYTES = 2**18
SUFFIXES = (".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus")
LOUDEST = 16  # multiple of full scale, +24 dB: recordings in floats may peak above 1, and integers go far beyond
INTEGER_BITS = (16, 24, 32)


@dataclass(frozen=True)
class Probe:
    """The properties of a good clip.

    Attributes:
        sample_rate: sample rate in Hz.
        channels: number of channels, 1 or more.
        frames: number of samples per channel; all of them decode to numbers up to `LOUDEST`.
        seconds: duration, frames / sample_rate.
    """

    sample_rate: int
    channels: int
    frames: int
    seconds: float


def check_inside(path: Path, folder: Path) -> None:
    """Refuse a path that leads out of a folder by a symbolic link.

    Raises:
        BadAudio: the path leads out of the folder, or its link is broken.
    """
    try:
        inside = path.resolve(strict=True).is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # RuntimeError: circular links
        raise BadAudio("a broken link") from None
    if not inside:
        raise BadAudio("a link that leads out of the data set's folder")


def probe(path: Path, min_seconds: float, max_seconds: float) -> Probe:
    """Check the header of a WAV, FLAC or OGG file, and decode all of it.

    Silence is accepted. Memory is bounded, whatever the header claims. The file's content tells its format.

    Args:
        path: the file.
        min_seconds: shortest allowed duration.
        max_seconds: longest allowed duration.

    Raises:
        BadAudio: the file is empty, truncated or in another format; its header is inconsistent, or states a sample rate
            outside 4–192 kHz or a duration outside the limits; it contains more than its header counts; or a sample is
            not finite or exceeds `LOUDEST`.
    """
    with _checked(path) as recording:
        rate = recording.sample_rate
        frames = broken = 0
        peak = 0.0
        for block in recording.blocks():
            frames += len(block)
            highest = _peak(block)
            if not math.isfinite(highest):
                broken += int((~np.isfinite(block)).any(axis=1).sum())
            peak = max(peak, highest)
            if frames > max_seconds * rate:  # the file really is too long
                break
        else:
            recording.check_complete(frames)
        if not min_seconds <= recording.frames / rate <= max_seconds:
            raise BadAudio(
                f"{recording.frames / rate:.6g} s long, not {min_seconds:g}–{max_seconds:g} s: "
                f"cut wrongly, or the header's rate of {rate} Hz is probably wrong"
            )
        if broken:
            raise BadAudio(f"{broken} of {frames} frames are NaN, infinite or beyond float32")
        _check_peak(peak)
        return Probe(rate, recording.channels, frames, frames / rate)


def read(path: Path) -> tuple[npt.NDArray[np.float32], int]:
    """Read a clip.

    Returns:
        The mean of the channels, float32 (n,), and the sample rate in Hz.

    Raises:
        BadAudio: the file cannot be decoded.
    """
    with _opened(path) as recording:
        blocks = [_mono(block) for block in recording.blocks()]
        return blocks[0] if len(blocks) == 1 else np.concatenate([np.empty(0, np.float32), *blocks]), (
            recording.sample_rate
        )


def check_samples(samples: npt.ArrayLike, sample_rate: int | None) -> tuple[list[npt.NDArray[np.float32]], int]:
    """Check a recording that is given as an array.

    Returns:
        The mean of the channels, float32, as a single block (n,), and the sample rate in Hz.

    Raises:
        BadAudio: the samples are not finite floats up to `LOUDEST` of shape (n,) or (n, channels), or the rate is not
            4–192 kHz.
    """
    try:
        values = np.asarray(samples)
    except ValueError:  # rows of different lengths
        values = np.empty(0)
    # More channels than samples: the array is probably (channels, n), as in other libraries.
    turned = values.ndim == 2 and values.shape[0] < values.shape[1]
    if values.dtype.kind != "f" or values.ndim not in (1, 2) or not values.size or turned:
        advice = f"; divide {values.dtype} by {np.iinfo(values.dtype).max + 1}" if values.dtype.kind == "i" else ""
        raise BadAudio(f"not an array of floats in [-1, 1], (n,) or (n, channels){advice}")
    if sample_rate is None or not MIN_RATE <= sample_rate <= MAX_RATE:
        raise BadAudio(f"an array needs its sample_rate, {MIN_RATE}–{MAX_RATE} Hz, not {sample_rate}")
    with np.errstate(over="ignore"):
        block = values.astype(np.float32)
    _check_block(block)
    return [_mono(block.reshape(len(block), -1))], sample_rate


@contextmanager
def streamed(path: Path) -> Iterator[tuple[int, Iterator[npt.NDArray[np.float32]]]]:
    """Open a WAV, FLAC or OGG file of any length and name, and decode it block by block on demand.

    Yields:
        The sample rate in Hz, and an iterator of blocks (n,) with the mean of the channels.

    Raises:
        BadAudio: the file is bad, see `probe`; the iterator raises it too if a later block is bad.
    """
    with _checked(path) as recording:
        yield recording.sample_rate, _whole(recording)


@dataclass(frozen=True)
class _Recording:
    """An open file, whose streams follow each other.

    Attributes:
        first: the first stream, open.
        rest: the other streams, which have the same rate and number of channels.
        frames: number of samples per channel of all streams, according to their headers.
    """

    first: soundfile.SoundFile
    rest: list[Spans]
    frames: int

    @property
    def sample_rate(self) -> int:
        """Sample rate in Hz."""
        return int(self.first.samplerate)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.first.channels)

    def blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        """Yield blocks (n, channels) up to the real end, which may come earlier than the headers state."""
        yield from _blocks(self.first)
        for stream in self.rest:
            with _decoder(stream) as file:
                yield from _blocks(file)

    def check_complete(self, frames: int) -> None:
        """Refuse a recording of which fewer frames can be decoded than its header states."""
        if frames < self.frames:
            raise BadAudio(f"truncated: {frames} of {self.frames} frames can be decoded")


def _whole(recording: _Recording) -> Iterator[npt.NDArray[np.float32]]:
    frames = 0
    for block in recording.blocks():
        _check_block(block)
        frames += len(block)
        yield _mono(block)
    recording.check_complete(frames)


def _check_block(block: npt.NDArray[np.float32]) -> None:
    peak = _peak(block)
    if not math.isfinite(peak):
        raise BadAudio("a sample is NaN, infinite or beyond float32")
    _check_peak(peak)


def _peak(block: npt.NDArray[np.float32]) -> float:
    """Return the largest absolute sample; NaN if one is NaN."""
    return max(float(block.max()), -float(block.min()))


def _check_peak(peak: float) -> None:
    """Refuse samples that are integers, or so loud that they are damaged."""
    if peak <= LOUDEST:
        return
    # An integer of 16 bits that is quiet looks like one of fewer bits, but those are not used as floats.
    bits = next((bits for bits in INTEGER_BITS if peak <= 2 ** (bits - 1)), None)
    advice = f"divide integers of {bits} bits by {2 ** (bits - 1)}" if bits else "they are damaged"
    raise BadAudio(f"samples reach {peak:.6g}, but floats must lie in -1..1: {advice}")


def _mono(block: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return block.mean(axis=1) if block.shape[1] > 1 else block[:, 0]


@contextmanager
def _checked(path: Path) -> Iterator[_Recording]:
    """Open a file that has samples, at a sample rate that recorders have."""
    with _opened(path) as recording:
        rate = recording.sample_rate
        if not MIN_RATE <= rate <= MAX_RATE:
            raise BadAudio(f"the header states {rate} Hz, not {MIN_RATE}–{MAX_RATE} Hz: it is probably wrong")
        if not recording.frames:
            raise BadAudio("has no samples")
        yield recording


@contextmanager
def _opened(path: Path) -> Iterator[_Recording]:
    try:
        if not path.is_file():
            raise BadAudio("a broken link" if path.is_symlink() and not path.exists() else "not a regular file")
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise BadAudio(f"cannot be read: {error.strerror}") from None
    with file:
        try:
            streams = find_streams(file, path.stat().st_size)
        except OSError as error:
            raise BadAudio(f"cannot be read: {error.strerror}") from None
        try:
            with _decoder(streams[0]) as first:
                yield _Recording(first, streams[1:], _count_frames(first, streams[1:]))
        except soundfile.LibsndfileError as error:
            raise BadAudio(f"truncated, damaged or not audio: {error.error_string.rstrip('.')}") from None


@contextmanager
def _decoder(stream: Spans) -> Iterator[soundfile.SoundFile]:
    stream.seek(0)
    # libsndfile reads 8 kB at a time; with a buffer, few of these reads run Python code.
    buffered = io.BufferedReader(stream, BUFFER_BYTES)
    try:
        with soundfile.SoundFile(buffered) as file:
            yield file
    finally:
        buffered.detach()  # so that the stream stays open


def _count_frames(first: soundfile.SoundFile, rest: list[Spans]) -> int:
    """Add up the numbers of frames in the headers of all streams.

    Raises:
        BadAudio: the streams differ in sample rate or number of channels.
    """
    frames = int(first.frames)
    for stream in rest:
        with _decoder(stream) as file:
            if (file.samplerate, file.channels) != (first.samplerate, first.channels):
                raise BadAudio(
                    f"several streams in one file, which differ: {first.samplerate} Hz with {first.channels} channels, "
                    f"and {file.samplerate} Hz with {file.channels}; split the file, or convert it to one stream"
                )
            frames += file.frames
    return frames


def _blocks(file: soundfile.SoundFile) -> Iterator[npt.NDArray[np.float32]]:
    """Yield blocks (n, channels) up to the real end of a stream."""
    frames = max(1, BLOCK_VALUES // file.channels)
    # NumPy converts 16 bit to the same numbers several times as fast as libsndfile.
    short = file.subtype == "PCM_16"
    while len(block := file.read(frames, dtype="int16" if short else "float32", always_2d=True)):
        yield block * np.float32(2**-15) if short else block
