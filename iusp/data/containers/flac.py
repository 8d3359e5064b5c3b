"""FLAC: one or several native streams, whose header may state no length or a length that is too short."""

import re
import struct
from functools import cache
from typing import NamedTuple

from iusp.data.containers.errors import BadAudio
from iusp.data.containers.spans import Spans
from iusp.data.containers.tags import end_of_content

MAGIC = b"fLaC"
INFO = range(8, 42)  # STREAMINFO, which is always the first block
LENGTH = 2**36 - 1  # mask of the number of samples per channel, in bytes 18 to 26
TAIL = (2**16, 2**22)  # bytes of the end of a file in which its last frame is searched
SYNC = re.compile(rb"\xff[\xf8\xf9]")
BLOCK_SIZES = {1: 192, **{code: 576 << code - 2 for code in range(2, 6)}, **{code: 1 << code for code in range(8, 16)}}


class _Frame(NamedTuple):
    """The header of a frame.

    Attributes:
        kind: sync code, sample rate, number of channels and bits; equal in all frames of a stream.
        number: number of the frame, or of its first sample if the sizes of the frames vary.
        samples: number of samples per channel.
    """

    kind: tuple[int, ...]
    number: int
    samples: int


def find_streams(file: Spans) -> list[Spans]:
    """Return the native FLAC streams of a file, each with its true length in its header.

    Raises:
        BadAudio: a stream has no frames, or it states no length and its last frame is incomplete.
    """
    streams = []
    start = 0
    while start < file.size:
        frames = _frames(file, start)
        end = _next_stream(file, frames)
        streams.append(_with_length(file, start, frames, end))
        start = end
    return streams


def _frames(file: Spans, start: int) -> int:
    """Return where the frames of a stream begin, behind its blocks of metadata."""
    position, is_last = start + 4, False
    while not is_last:
        header = file.at(position, 4)
        if len(header) < 4:
            raise BadAudio("truncated: the FLAC header is incomplete")
        is_last = bool(header[0] & 0x80)
        position += 4 + int.from_bytes(header[1:], "big")
    if position >= file.size:
        raise BadAudio("truncated: has no samples")
    return position


def _next_stream(file: Spans, start: int) -> int:
    """Return where the next stream begins, or the end of the file."""
    position = start
    while (found := file.find(MAGIC, position, file.size)) >= 0:
        if file.at(found + 4, 4) in (b"\0\0\0\x22", b"\x80\0\0\x22"):
            return found
        position = found + 1
    return file.size


def _with_length(file: Spans, start: int, frames: int, end: int) -> Spans:
    """Correct the number of samples in the header of a stream, if it states none or too few.

    Args:
        file: the file.
        start: where the stream begins.
        frames: where its frames begin.
        end: where it ends.
    """
    (fields,) = struct.unpack(">Q", file.at(start + 18, 8))
    claim = fields & LENGTH
    length = _length(file, start, frames, end)
    if 0 < length < claim:
        raise BadAudio(f"truncated: {length} of {claim} frames exist")
    header = file.at(start, 18) + struct.pack(">Q", fields & ~LENGTH | max(claim, length))
    return file.joined(header, range(start + 26, end))


def _length(file: Spans, start: int, frames: int, end: int) -> int:
    """Return the number of samples of a stream as its last frame tells it, or 0 if the frames do not tell it.

    Raises:
        BadAudio: the stream does not end with a whole frame.
    """
    first = _frame(file.at(frames, 16))
    if first is None:
        return 0
    smallest, largest = struct.unpack(">HH", file.at(start + 8, 4))
    stop = end_of_content(file, frames, end)
    rest = file.at(stop, min(16, end - stop))
    stop += len(rest) - len(rest.lstrip(b"\0"))  # zeros may belong to the frame's checksum
    for reach in TAIL:
        begin = max(frames, stop - reach)
        tail = file.at(begin, stop - begin)
        for found in reversed(list(SYNC.finditer(tail))):
            last = _frame(tail[found.start() : found.start() + 16])
            if last is None or last.kind != first.kind or last.number < first.number:
                continue
            # The checksum over a frame with its checksum is 0, and zeros behind it do not change that.
            if _crc16(tail[found.start() :]):
                raise BadAudio("truncated or damaged: does not end with a whole FLAC frame, or something was appended")
            if last == first:
                return first.samples
            if first.kind[0] & 1:  # the sizes of the frames vary
                return last.number - first.number + last.samples
            return (last.number - first.number) * first.samples + last.samples if smallest == largest else 0
    raise BadAudio("damaged: has no FLAC frame near the end, or something was appended")


def _frame(head: bytes) -> _Frame | None:
    """Read the header of a frame; return None if the bytes are not such a header."""
    if len(head) < 6 or not SYNC.match(head) or head[3] & 1:
        return None
    size_code, rate_code = head[2] >> 4, head[2] & 15
    channels = min(head[3] >> 4, 15)
    # A number of 1 to 7 bytes, coded as in UTF-8.
    more = 0 if head[4] < 0x80 else 8 - (head[4] ^ 0xFF).bit_length()
    if more == 1 or more > 7 or rate_code == 15 or channels > 10 or not size_code:
        return None
    number = head[4] & (0x7F if not more else 0x7F >> more)
    for byte in head[5 : 5 + max(0, more - 1)]:
        number = number << 6 | byte & 0x3F
    end = 5 + max(0, more - 1)
    samples = BLOCK_SIZES.get(size_code, 0)
    if size_code in (6, 7):
        width = size_code - 5
        samples = int.from_bytes(head[end : end + width], "big") + 1
        end += width
    end += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if len(head) <= end or _crc8(head[:end]) != head[end]:
        return None
    kind = (head[1], rate_code, 1 if channels > 7 else channels, head[3] >> 1 & 7)
    return _Frame(kind, number, samples)


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value = _words(0x07, 8)[value ^ byte]
    return value


def _crc16(data: bytes) -> int:
    table = _words(0x8005, 16)
    value = 0
    # A zero in front does not change the checksum.
    for (word,) in struct.iter_unpack(">H", data if len(data) % 2 == 0 else b"\0" + data):
        value = table[value ^ word]
    return value


@cache
def _words(polynomial: int, bits: int) -> list[int]:
    """Return the checksum of every number of as many bits as the checksum has."""
    table = [0]
    for bit in range(bits):
        value = polynomial if not bit else table[1 << bit - 1] << 1
        value = (value ^ polynomial | 1 << bits) ^ 1 << bits if value >> bits else value
        table += [value ^ other for other in table]
    return table
