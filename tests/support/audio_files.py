"""Audio files that are built byte by byte, so that their samples are known without a decoder."""

import io
import struct
from typing import Any

import numpy as np
import soundfile

RATE = 8000
APE = b"x" * 20 + b"APETAGEX" + struct.pack("<IIII", 2000, 52, 1, 0) + bytes(8)
LYRICS = b"LYRICSBEGINla la" + b"000016LYRICS200"
ID3V1 = b"TAG" + b"a title".ljust(125, b"\0")
ID3V2 = b"ID3\4\0\0\0\0\1\0" + b"m" * 128
EXTENSIBLE = b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"


def encoded(samples: Any, rate: int = RATE, kind: str = "WAV", subtype: str | None = None, **options: Any) -> bytes:
    """Return samples as libsndfile encodes them."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype, **options)
    return file.getvalue()


def patched(content: bytes, offset: int, form: str, *values: Any) -> bytes:
    """Return the content with other values in a field."""
    result = bytearray(content)
    struct.pack_into(form, result, offset, *values)
    return bytes(result)


def packed(values: Any, bits: int, order: str = "<") -> bytes:
    """Pack integers (n, channels), signed except for those of 8 bits, as in WAV."""
    if bits == 8:
        return (np.asarray(values) + 128).astype("u1").tobytes()
    if bits == 24:
        little = np.asarray(values).astype("<i4").reshape(-1, 1).view("u1")[:, :3]
        return (little if order == "<" else little[:, ::-1]).tobytes()
    return np.asarray(values).astype(f"{order}i{bits // 8}").tobytes()


def chunk(name: bytes, content: bytes, order: str = "<", size: int | None = None) -> bytes:
    """Return a RIFF chunk with its padding byte; `size` replaces the true size."""
    return name + struct.pack(f"{order}I", len(content) if size is None else size) + content + bytes(len(content) % 2)


def form(rate: int, channels: int, bits: int, order: str = "<", kind: int = 1, extensible: bool = False) -> bytes:
    """Return the content of a fmt chunk."""
    width = channels * bits // 8
    fields = struct.pack(f"{order}HHIIHH", 0xFFFE if extensible else kind, channels, rate, rate * width, width, bits)
    tail = struct.pack(f"{order}HHIH", 22, bits, (1 << channels) - 1, kind)
    return fields + tail + EXTENSIBLE if extensible else fields


def riff(*chunks: bytes, order: str = "<", size: int | None = None) -> bytes:
    """Return a RIFF or RIFX file."""
    body = b"WAVE" + b"".join(chunks)
    name = b"RIFF" if order == "<" else b"RIFX"
    return name + struct.pack(f"{order}I", len(body) if size is None else size) + body


def rf64(fmt: bytes, samples: bytes, size: int, name: bytes = b"RF64", before: bytes = b"") -> bytes:
    """Return an RF64 or BW64 file whose ds64 chunk states a size of the samples."""
    long_sizes = chunk(b"ds64", struct.pack("<QQQI", 2**32, size, 0, 0))
    body = long_sizes + before + chunk(b"fmt ", fmt) + chunk(b"data", samples, size=0xFFFFFFFF)
    return name + b"\xff\xff\xff\xffWAVE" + body


def w64(fmt: bytes, samples: bytes, size: int | None = None) -> bytes:
    """Return a W64 file; `size` replaces the size of its data chunk, which counts its header of 24 bytes."""
    tail = b"\xf3\xac\xd3\x11\x8c\xd1\0\xc0\x4f\x8e\xdb\x8a"
    body = b"wave" + tail
    for name, content, stated in ((b"fmt ", fmt, None), (b"data", samples, size)):
        body += name + tail + struct.pack("<Q", 24 + len(content) if stated is None else stated)
        body += content + bytes(-len(content) % 8)
    return b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0" + struct.pack("<Q", 24 + len(body)) + body


def flac_claiming(content: bytes, length: int) -> bytes:
    """Return a FLAC file whose header states another number of samples per channel."""
    (fields,) = struct.unpack_from(">Q", content, 18)
    return patched(content, 18, ">Q", fields >> 36 << 36 | length)


def ogg_checksum(page: bytes) -> int:
    """Return the checksum of a page whose own checksum is 0."""
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ 0x04C11DB7 if value & 0x80000000 else value << 1) & 0xFFFFFFFF
    return value


def ogg_page(packet: bytes, flags: int, granule: int, number: int, serial: int = 7) -> bytes:
    """Return a page with one packet of fewer than 255 * 255 bytes."""
    segments = bytes([255] * (len(packet) // 255) + [len(packet) % 255])
    page = b"OggS\0" + struct.pack("<BqIIIB", flags, granule, serial, number, 0, len(segments)) + segments + packet
    return patched(page, 22, "<I", ogg_checksum(page))


def ogg_pages(content: bytes) -> list[bytes]:
    """Split an OGG file into its pages."""
    pages = []
    while content:
        table = content[27 : 27 + content[26]]
        size = 27 + len(table) + sum(table)
        pages.append(content[:size])
        content = content[size:]
    return pages


def ogg_flac(content: bytes, length: int, serial: int = 7) -> bytes:
    """Put a FLAC file with one frame and one block of metadata into OGG; `length` is what its last page states."""
    first = b"\x7fFLAC\1\0\0\1fLaC" + b"\0" + content[5:42]
    comment = b"\x84\0\0\x08" + bytes(8)
    frame = content[content.index(b"\xff\xf8", 42) :]
    return ogg_page(first, 2, 0, 0, serial) + ogg_page(comment, 0, 0, 1, serial) + ogg_page(frame, 4, length, 2, serial)
