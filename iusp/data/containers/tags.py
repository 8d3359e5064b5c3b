"""Tags that programs put before or behind the audio of any container: ID3, APEv2 and Lyrics3; and padding zeros."""

import struct

from iusp.data.containers.spans import Spans

BLOCK = 2**16  # bytes


def skip_id3(file: Spans, start: int) -> int:
    """Return the position behind the ID3v2 tags that begin at a position."""
    while (header := file.at(start, 10))[:3] == b"ID3" and len(header) == 10 and max(header[6:]) < 0x80:
        footer = 10 if header[5] & 0x10 else 0
        start += 10 + _syncsafe(header[6:]) + footer
    return start


def end_of_content(file: Spans, start: int, end: int) -> int:
    """Return where tags and padding zeros at the end of a file begin.

    Args:
        file: the file.
        start: position before which nothing is removed.
        end: the end of the file.
    """
    while end > start:
        kept = _without_zeros(file, start, end)
        tag = _tag_start(file, kept, end)
        if start < kept == skip_id3(file, start):
            return start
        if tag is None:
            return kept
        end = max(start, tag)
    return start


def _tag_start(file: Spans, kept: int, end: int) -> int | None:
    """Return where the last tag before a position begins.

    Args:
        file: the file.
        kept: position from which on the file has zeros only, which may belong to a tag.
        end: the end of the file.
    """
    tail = file.at(max(0, kept - 128), min(128, kept))
    first = kept - len(tail)
    found = tail.rfind(b"TAG")
    if found >= 0 and first + found + 128 <= end:  # ID3v1
        return first + found
    found = tail.rfind(b"APETAGEX")
    if found >= 0 and kept <= first + found + 32 <= end:
        size, _, flags = struct.unpack("<III", file.at(first + found + 12, 12))
        return int(first + found + 32 - size - 32 * (flags >> 31))
    if tail[-9:] == b"LYRICS200" and tail[-15:-9].isdigit():
        return kept - int(tail[-15:-9]) - 15
    found = tail.rfind(b"3DI")
    if found >= 0 and kept <= first + found + 10 <= end:  # ID3v2 with a footer
        return first + found + 10 - _syncsafe(file.at(first + found + 6, 4)) - 20
    return None


def _without_zeros(file: Spans, start: int, end: int) -> int:
    while end > start:
        first = max(start, end - BLOCK)
        if kept := file.at(first, end - first).rstrip(b"\0"):
            return first + len(kept)
        end = first
    return start


def _syncsafe(value: bytes) -> int:
    """Return the number that is stored in the lower 7 bits of each of 4 bytes."""
    first, second, third, fourth = value
    return first << 21 | second << 14 | third << 7 | fourth
