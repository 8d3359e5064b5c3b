"""WAV: RIFF, RIFX (big-endian), RF64, BW64 and W64.

libsndfile gets every file with a new RIFF header, which states the true number of bytes. So it does not matter what
libsndfile does with the size 0xFFFFFFFF, with unknown chunks, or with 64-bit sizes.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from iusp.data.containers.errors import BadAudio
from iusp.data.containers.spans import Spans
from iusp.data.containers.tags import end_of_content

FORMS = {b"RIFF": "<", b"RIFX": ">", b"RF64": "<", b"BW64": "<"}  # byte order by the first four bytes
W64_FILE = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
W64_FORM = b"wave\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"

# Sizes that mean "until the end". A program that writes into a pipe cannot come back to fill in the size. ffmpeg writes
# 2^32 - 1, arecord about 2^31, SoX 0x7FFFF000, opusdec 0x7FFFFFDB, others 0; some round down to whole frames.
OPEN_SIZES = (range(1), range(0x7FFF0000, 0x80000001), range(0xFFFF0000, 0x100000000), range(2**62, 2**64))

UNCOMPRESSED = (0x0001, 0x0003, 0x0006, 0x0007, 0xFFFE)  # PCM, float, A-law, µ-law, extensible
COMPRESSED = (0x0002, 0x0011, 0x0031, 0x0038, 0x0040)  # MS ADPCM, IMA ADPCM, GSM 6.10, NMS ADPCM, G.721
CODECS = {0x45: "G.726", 0x50: "MPEG", 0x55: "MP3", 0xFF: "AAC", 0x160: "WMA", 0x161: "WMA", 0x2000: "AC-3"}
# Chunks that may be cut off or state a wrong size: no samples are lost with them.
METADATA = {
    *(b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"axml", b"chna", b"_PMX", b"aXML", b"cue ", b"smpl", b"inst"),
    *(b"fact", b"PEAK", b"JUNK", b"junk", b"PAD ", b"FLLR", b"cart", b"levl", b"umid", b"acid", b"wamd", b"guan"),
}
LONGEST_FORMAT = 2**12  # bytes of a fmt chunk that are used
LONGEST_STREAM = 2**30  # bytes; longer recordings are decoded in several streams, as RIFF has 32-bit sizes


class _Chunk(NamedTuple):
    name: bytes
    start: int  # of the content
    size: int  # of the content, as stated


@dataclass(frozen=True)
class _Chunks:
    """The chunks of a file.

    Attributes:
        file: the file.
        order: byte order, < or >.
        is_w64: whether names have 16 bytes and sizes 8, as in W64, not 4 and 4.
    """

    file: Spans
    order: str
    is_w64: bool

    def at(self, position: int) -> _Chunk | None:
        """Return the chunk at a position, or None if no chunk begins there."""
        head = self.file.at(position, 24 if self.is_w64 else 8)
        if len(head) < (24 if self.is_w64 else 8):
            return None
        if self.is_w64:
            size = max(0, struct.unpack_from("<Q", head, 16)[0] - 24)
        else:
            (size,) = struct.unpack_from(f"{self.order}I", head, 4)
        chunk = _Chunk(head[:4], position + len(head), size)
        is_name = all(0x20 <= byte < 0x7F for byte in chunk.name)
        # The last chunk often lacks its padding byte, and some programs count it.
        fits = chunk.start + size <= self.file.size + 1
        is_samples = chunk.name == b"data"
        return chunk if is_name and (fits or is_samples or chunk.name in METADATA) else None

    def behind(self, chunk: _Chunk) -> int:
        """Return the position behind a chunk, whose padding some programs forget."""
        end = chunk.start + chunk.size
        padded = end + (-end % 8 if self.is_w64 else chunk.size % 2)
        return end if padded > end and not self.at(padded) and self.at(end) else padded


def find_streams(file: Spans) -> list[Spans]:
    """Return the recordings in one or several WAV files that follow each other, each with a plain RIFF header.

    Raises:
        BadAudio: the file is truncated, its header is inconsistent, or bytes follow that its header does not count.
    """
    streams: list[Spans] = []
    position = 0
    while position < file.size:
        recording = _read(file, position)
        streams += recording.streams(file)
        position = recording.end
    return streams


@dataclass(frozen=True)
class _Recording:
    """One WAV file.

    Attributes:
        order: byte order, < or >.
        form: content of the fmt chunk.
        samples: where the samples lie.
        end: where the next WAV file begins, or the end of the file.
    """

    order: str
    form: bytes
    samples: range
    end: int

    @property
    def frame_bytes(self) -> int:
        return _frame_bytes(self.order, self.form)

    def streams(self, file: Spans) -> Iterator[Spans]:
        """Yield files that libsndfile can read, each shorter than 4 GB."""
        step = LONGEST_STREAM // self.frame_bytes * self.frame_bytes
        for start in range(self.samples.start, self.samples.stop, step) or [self.samples.start]:
            samples = self.samples[start - self.samples.start :][:step]
            yield file.joined(self._header(len(samples)), samples)

    def _header(self, size: int) -> bytes:
        form = self.form + bytes(len(self.form) % 2)
        name = b"RIFF" if self.order == "<" else b"RIFX"
        return struct.pack(
            f"{self.order}4sI4s4sI{len(form)}s4sI",
            name, 20 + len(form) + size, b"WAVE", b"fmt ", len(self.form), form, b"data", size,
        )  # fmt: skip


def _read(file: Spans, position: int) -> _Recording:
    """Read all chunks of the WAV file that begins at a position."""
    is_w64 = file.at(position, 4) == W64_FILE[:4]
    chunks = _Chunks(file, "<" if is_w64 else FORMS[file.at(position, 4)], is_w64)
    position += 40 if is_w64 else 12
    form, long_size = b"", 0
    data: list[_Chunk] = []
    is_open = False
    while not is_open and not _begins(file, position) and (chunk := chunks.at(position)):
        content = file.at(chunk.start, min(chunk.size, LONGEST_FORMAT))
        if chunk.name == b"ds64" and len(content) >= 16:
            (long_size,) = struct.unpack_from("<Q", content, 8)
        elif chunk.name == b"LIST" and content[:4] == b"wavl":
            raise BadAudio("its samples are in a list of pieces (wavl), which is not supported: convert it to PCM")
        elif chunk.name == b"fmt ":
            if form and form != content:
                raise BadAudio("the header is inconsistent: it has two different fmt chunks")
            form = content
            _check_format(chunks.order, form)
        elif chunk.name == b"data":
            chunk, is_open = _data(chunks, chunk, long_size)
            data.append(chunk)
        position = chunks.behind(chunk)
    if not data or not form:
        raise BadAudio("truncated: has no samples")
    if len(data) > 1:
        sizes = " and ".join(str(chunk.size) for chunk in data[:2])
        raise BadAudio(f"has several data chunks, of {sizes} bytes: convert it with the program that wrote it")
    samples = range(data[0].start, data[0].start + data[0].size)
    end = position if position < file.size and _begins(file, position) else file.size
    if not is_open and end == file.size:
        _check_rest(file, position, len(samples), _frame_bytes(chunks.order, form))
    elif is_open:
        end = samples.stop
        samples = range(samples.start, end if end < file.size else max(samples.start, _untagged(file, end)))
    return _Recording(chunks.order, form, samples, end)


def _data(chunks: _Chunks, chunk: _Chunk, long_size: int) -> tuple[_Chunk, bool]:
    """Return a data chunk with its true size, and whether it has none of its own but extends to the end.

    Raises:
        BadAudio: the file ends before the samples do.
    """
    file = chunks.file
    size = long_size if chunk.size == 0xFFFFFFFF and long_size else chunk.size
    chunk = chunk._replace(size=size)
    end = chunk.start + size
    if any(size in sizes for sizes in OPEN_SIZES):
        follows = chunks.behind(chunk)
        if end > file.size or (follows < file.size and not chunks.at(follows) and not _begins(file, follows)):
            return chunk._replace(size=_next_file(file, chunk.start) - chunk.start), True
    elif end > file.size:
        raise BadAudio(f"truncated: {file.size - chunk.start} of {size} bytes of samples exist")
    return chunk, False


def _check_rest(file: Spans, position: int, size: int, frame_bytes: int) -> None:
    """Refuse bytes behind the last chunk that are neither tags nor padding, for they are probably samples."""
    rest = end_of_content(file, position, file.size) - position
    if rest >= frame_bytes:
        raise BadAudio(
            f"the header counts {size} bytes of samples, but {rest} more bytes follow that belong to no chunk: "
            "the header is wrong, or something was appended"
        )


def _untagged(file: Spans, end: int) -> int:
    """Return where an ID3v1 tag at the end begins. Zeros are samples here."""
    return end - 128 if file.at(end - 128, 3) == b"TAG" else end


def _next_file(file: Spans, start: int) -> int:
    """Return where the next WAV file begins, or the end of the file."""
    position = start
    while (found := file.find(b"WAVE", position, file.size)) >= 0:
        if _begins(file, found - 8):
            return found - 8
        position = found + 1
    return file.size


def _begins(file: Spans, position: int) -> bool:
    head = file.at(position, 40)
    return (head[:4] in FORMS and head[8:12] == b"WAVE") or (head[:16] == W64_FILE and head[24:] == W64_FORM)


def _frame_bytes(order: str, form: bytes) -> int:
    """Return the bytes of one sample of all channels, or of one block of a compressed format."""
    return max(1, int(struct.unpack_from(f"{order}H", form, 12)[0]))


def _check_format(order: str, form: bytes) -> None:
    if len(form) < 16:
        raise BadAudio("the header is inconsistent: its fmt chunk is too short")
    codec, channels, rate, byte_rate, block_align, bits = struct.unpack_from(f"{order}HHIIHH", form)
    if codec not in (*UNCOMPRESSED, *COMPRESSED):
        name = CODECS.get(codec, "unknown")
        raise BadAudio(f"a WAV file with compressed samples (format {codec:#06x}, {name}): convert it to PCM")
    if codec in UNCOMPRESSED and byte_rate != rate * block_align:
        raise BadAudio(
            f"the header is inconsistent: {rate} Hz × {block_align} bytes is not {byte_rate} bytes per second"
        )
    if codec in UNCOMPRESSED and block_align * 8 < channels * bits:
        raise BadAudio(f"the header is inconsistent: {channels} × {bits} bits do not fit into {block_align} bytes")
