"""Files that are put together from stretches of another file, without a copy on the disk."""

import io
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import BinaryIO

SEARCHED = 2**20  # bytes that a search reads at a time

Part = bytes | range
"""Literal bytes, or a range of the bytes of a file."""


class Spans(io.RawIOBase):
    """A read-only file: literal bytes and ranges of another file, one after the other.

    libsndfile reads it through callbacks, which must not raise. A range that cannot be read is therefore the end of the
    file.

    Attributes:
        size: number of bytes.
    """

    def __init__(self, file: BinaryIO, parts: list[Part]):
        self._file = file
        self._parts = [part for part in parts if part]
        self._ends = list(accumulate(map(len, self._parts)))
        self._position = 0
        self.size = self._ends[-1] if self._ends else 0

    def at(self, start: int, count: int) -> bytes:
        """Return up to `count` bytes from a position, fewer at the end of the file."""
        self._position = start
        return self.read(count) or b""

    def find(self, pattern: bytes, start: int, end: int) -> int:
        """Return the first position of a pattern between two positions, or -1. Memory is bounded."""
        while start < end:
            block = self.at(start, min(SEARCHED, end - start))
            if (found := block.find(pattern)) >= 0:
                return start + found
            if len(block) < SEARCHED:
                break
            start += len(block) - len(pattern) + 1
        return -1

    def joined(self, *parts: Part) -> "Spans":
        """Return a file of literal bytes and of ranges of this file."""
        flat: list[Part] = []
        for part in parts:
            flat.extend(self._cut(part) if isinstance(part, range) else [part])
        return Spans(self._file, flat)

    def _cut(self, wanted: range) -> Iterator[Part]:
        position = wanted.start
        for number in range(bisect_right(self._ends, position), len(self._parts)):
            if position >= wanted.stop:
                return
            part, end = self._parts[number], self._ends[number]
            first = position - (end - len(part))
            yield part[first : first + min(end, wanted.stop) - position]
            position = end

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position, which never becomes negative, and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read as many bytes as the buffer takes, and return their number."""
        view = memoryview(buffer).cast("B")
        done = 0
        number = bisect_right(self._ends, self._position)
        while done < len(view) and number < len(self._parts):
            part = self._parts[number]
            first = self._position - (self._ends[number] - len(part))
            piece = part[first : first + len(view) - done]
            if isinstance(piece, bytes):
                view[done : done + len(piece)] = piece
                count = len(piece)
            else:
                count = self._read_range(piece, view[done : done + len(piece)])
            done += count
            self._position += count
            if count < len(piece):
                break
            number += 1
        return done

    def _read_range(self, piece: range, view: memoryview) -> int:
        try:
            self._file.seek(piece.start)
            return self._file.readinto(view)  # type: ignore[attr-defined, no-any-return]
        except OSError:
            return 0
