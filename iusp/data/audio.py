"""Untrusted audio files: checked before use, and decoded in blocks of bounded memory."""

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile

MIN_RATE, MAX_RATE = 4000, 192_000  # Hz
BLOCK_VALUES = 2**20  # samples × channels per decoded block; most clips fit into one block
SUFFIXES = (".wav", ".flac", ".ogg")
UNCOMPRESSED_WAV = (0x0001, 0x0003, 0x0006, 0x0007, 0xFFFE)  # PCM, float, A-law, µ-law, extensible
LOUDEST = 2**32  # multiple of full scale; integers stored as floats reach 2^31, and spectra overflow beyond 10^16
OGG_PAGE_HEADER = 27  # bytes
OGG_LAST_PAGE = 0x04  # flag of the last page of a stream


class BadAudio(Exception):  # noqa: N818 (its message is a reason, not an error for the user)
    """A file is not a usable clip; the message is the reason, without the file's name."""


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

    Silence is accepted. Memory is bounded, whatever the header claims.

    Args:
        path: the file.
        min_seconds: shortest allowed duration.
        max_seconds: longest allowed duration.

    Raises:
        BadAudio: the file is empty, truncated or in another format; its header is inconsistent, or states a sample rate
            outside 4–192 kHz or a duration outside the limits; or a sample is not finite or exceeds `LOUDEST`.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise BadAudio(f"not a {', '.join(SUFFIXES)} file")
    with _checked(path) as file:
        _check_header(file, min_seconds, max_seconds)
        frames = broken = 0
        for block in _blocks(file):
            frames += len(block)
            broken += int((~_is_sound(block)).any(axis=1).sum())
        if frames < file.frames:
            raise BadAudio(f"truncated: {frames} of {file.frames} frames can be decoded")
        if broken:
            raise BadAudio(f"{broken} of {frames} frames are NaN, infinite or far too loud")
        return Probe(file.samplerate, file.channels, frames, frames / file.samplerate)


def read(path: Path) -> tuple[npt.NDArray[np.float32], int]:
    """Read a clip.

    Returns:
        The mean of the channels, float32 (n,), and the sample rate in Hz.

    Raises:
        BadAudio: the file cannot be decoded.
    """
    with _opened(path) as file:
        blocks = [_mono(block) for block in _blocks(file)]
        return blocks[0] if len(blocks) == 1 else np.concatenate([np.empty(0, np.float32), *blocks]), file.samplerate


def check_samples(samples: npt.ArrayLike, sample_rate: int | None) -> tuple[list[npt.NDArray[np.float32]], int]:
    """Check a recording that is given as an array.

    Returns:
        The mean of the channels, float32, as a single block (n,), and the sample rate in Hz.

    Raises:
        BadAudio: the samples are not finite floats of shape (n,) or (n, channels), or the rate is not 4–192 kHz.
    """
    try:
        values = np.asarray(samples)
    except ValueError:  # rows of different lengths
        values = np.empty(0)
    # More channels than samples: the array is probably (channels, n), as in other libraries.
    turned = values.ndim == 2 and values.shape[0] < values.shape[1]
    if values.dtype.kind != "f" or values.ndim not in (1, 2) or not values.size or turned:
        raise BadAudio("not an array of floats in [-1, 1], (n,) or (n, channels)")
    if sample_rate is None or not MIN_RATE <= sample_rate <= MAX_RATE:
        raise BadAudio(f"an array needs its sample_rate, {MIN_RATE}–{MAX_RATE} Hz, not {sample_rate}")
    with np.errstate(over="ignore"):
        block = values.astype(np.float32)
    if not _is_sound(block).all():
        raise BadAudio("a sample is NaN, infinite or far too loud")
    return [_mono(block.reshape(len(block), -1))], sample_rate


@contextmanager
def streamed(path: Path) -> Iterator[tuple[int, Iterator[npt.NDArray[np.float32]]]]:
    """Open a WAV, FLAC or OGG file of any length and name, and decode it block by block on demand.

    Yields:
        The sample rate in Hz, and an iterator of blocks (n,) with the mean of the channels.

    Raises:
        BadAudio: the file is bad, see `probe`; the iterator raises it too if a later block is bad.
    """
    with _checked(path) as file:
        _check_header(file, 0, math.inf)
        yield file.samplerate, _whole(file)


def _whole(file: soundfile.SoundFile) -> Iterator[npt.NDArray[np.float32]]:
    frames = 0
    for block in _blocks(file):
        if not _is_sound(block).all():
            raise BadAudio("a sample is NaN, infinite or far too loud")
        frames += len(block)
        yield _mono(block)
    if frames < file.frames:
        raise BadAudio(f"truncated: {frames} of {file.frames} frames can be decoded")


def _is_sound(block: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return which samples (n, channels) are numbers in the range that spectra can represent."""
    return np.abs(block) <= LOUDEST  # False for NaN


def _mono(block: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return block.mean(axis=1) if block.shape[1] > 1 else block[:, 0]


@contextmanager
def _checked(path: Path) -> Iterator[soundfile.SoundFile]:
    try:
        _check_container(path)
    except OSError as error:
        raise BadAudio(f"cannot be read: {error.strerror}") from None
    with _opened(path) as file:
        yield file


@contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    try:
        with soundfile.SoundFile(path) as file:
            yield file
    except soundfile.LibsndfileError as error:
        raise BadAudio(f"truncated, damaged or not audio: {error.error_string.rstrip('.')}") from None


def _blocks(file: soundfile.SoundFile) -> Iterator[npt.NDArray[np.float32]]:
    """Yield blocks (n, channels) up to the real end of the file, which may come earlier than its header states."""
    frames = max(1, BLOCK_VALUES // file.channels)
    # NumPy converts 16 bit to the same numbers several times as fast as libsndfile.
    short = file.subtype == "PCM_16"
    while len(block := file.read(frames, dtype="int16" if short else "float32", always_2d=True)):
        yield block * np.float32(2**-15) if short else block


def _check_header(file: soundfile.SoundFile, min_seconds: float, max_seconds: float) -> None:
    rate, frames = file.samplerate, file.frames
    if not MIN_RATE <= rate <= MAX_RATE:
        raise BadAudio(f"the header states {rate} Hz, not {MIN_RATE}–{MAX_RATE} Hz: it is probably wrong")
    if not frames:
        raise BadAudio("has no samples")
    if not min_seconds <= frames / rate <= max_seconds:
        raise BadAudio(
            f"{frames / rate:.6g} s long, not {min_seconds:g}–{max_seconds:g} s: "
            f"cut wrongly, or the header's rate of {rate} Hz is probably wrong"
        )


def _check_container(path: Path) -> None:
    """Find errors that libsndfile ignores: a WAV or OGG file that ends early, and an inconsistent WAV header."""
    if not path.is_file():
        raise BadAudio("not a regular file")
    size = path.stat().st_size
    if not size:
        raise BadAudio("empty file")
    with path.open("rb") as stream:
        magic = stream.read(12)
        if magic[:4] == b"RIFF" and magic[8:] == b"WAVE":
            _check_wav(stream, size)
        elif magic[:4] == b"OggS":
            _check_ogg(stream, size)
        elif magic[:4] != b"fLaC":
            raise BadAudio("not audio: neither WAV, FLAC nor OGG")


def _check_wav(stream: BinaryIO, size: int) -> None:
    """Read the chunks of a RIFF file up to its samples."""
    while len(header := stream.read(8)) == 8:
        name, length = struct.unpack("<4sI", header)
        start = stream.tell()
        if name == b"data":
            if start + length > size:
                raise BadAudio(f"truncated: {size - start} of {length} bytes of samples exist")
            return
        if name == b"fmt " and len(fields := stream.read(16)) == 16:
            kind, channels, rate, byte_rate, block_align, bits = struct.unpack("<HHIIHH", fields)
            if kind in UNCOMPRESSED_WAV and byte_rate != rate * block_align:
                raise BadAudio(
                    f"the header is inconsistent: {rate} Hz × {block_align} bytes is not {byte_rate} bytes per second"
                )
            if kind in UNCOMPRESSED_WAV and block_align * 8 < channels * bits:
                raise BadAudio(
                    f"the header is inconsistent: {channels} × {bits} bits do not fit into {block_align} bytes"
                )
        stream.seek(start + length + length % 2)
    raise BadAudio("truncated: has no samples")


def _check_ogg(stream: BinaryIO, size: int) -> None:
    """Read all pages: libsndfile takes any last page for the end, so it would not notice a truncated file."""
    page = 0
    last = False
    while page < size:
        stream.seek(page)
        header = stream.read(OGG_PAGE_HEADER)
        if len(header) < OGG_PAGE_HEADER or not header.startswith(b"OggS"):
            raise BadAudio("truncated or damaged: an OGG page is broken")
        last = bool(header[5] & OGG_LAST_PAGE)
        segments = header[26]
        page += OGG_PAGE_HEADER + segments + sum(stream.read(segments))
    if not last or page > size:
        raise BadAudio("truncated: the last OGG page is missing or incomplete")
