"""Archives from outside, unpacked without trust in them."""

import gzip
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from iusp.errors import InputError
from iusp.io.files import is_file_name

BLOCK_BYTES = 2**20
MEMBER_BYTES = 4096  # of headers and padding, on average at most, for one member
HEADER_BYTES = 2**16  # in a row, at most


class _BadArchiveError(Exception):
    """An archive holds what it should not; the message says what."""


@dataclass(frozen=True)
class Limits:
    """What an archive may hold at most.

    Attributes:
        suffixes: of the files that are unpacked, in lower case; others are skipped.
        members: files, folders and whatever else.
        file_bytes: of one file.
        total_bytes: of all files.
    """

    suffixes: tuple[str, ...]
    members: int
    file_bytes: int
    total_bytes: int


class _Bounded(gzip.GzipFile):
    """A decompressed stream that goes forward only, ends in time, and gives no more than fits into memory.

    tarfile would take headers of any length and number, and follow one that leads backwards.

    Attributes:
        allowed: bytes that may be read until it is set anew.
    """

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        super().__init__(fileobj=stream, mode="rb")
        self._limit = limit
        self.allowed = HEADER_BYTES

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= self.allowed:
            raise _BadArchiveError("has a header of an absurd length")
        self.allowed -= size
        self._check(self.tell() + size)
        return super().read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET:
            if offset < self.tell():
                raise _BadArchiveError("leads backwards")
            self._check(offset)
        return super().seek(offset, whence)

    def _check(self, end: int) -> None:
        if end > self._limit:
            raise _BadArchiveError("is too large when unpacked")


def unpack(archive: Path, folder: Path, limits: Limits, on_bytes: Callable[[int], None]) -> None:
    """Unpack the audio files of a .tar.gz into a new folder, side by side, whatever folders they are in.

    Only the bytes of regular files and the last part of their names are used: no path, link, mode or owner. The folder
    gets its name when all is in it and on the disk. Files of other kinds, and hidden ones, are left out.

    Args:
        archive: to unpack.
        folder: to make.
        limits: what is acceptable.
        on_bytes: called with the compressed bytes done so far, after each file.

    Raises:
        InputError: the archive is damaged, exceeds a limit, or holds paths that lead elsewhere, links, devices, sparse
            files, or two files of one name.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    limit = limits.total_bytes + limits.members * MEMBER_BYTES + BLOCK_BYTES
    try:
        with archive.open("rb") as raw, _Bounded(raw, limit) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            members = total = 0
            while member := tar.next():
                # tarfile keeps all that it has seen.
                tar.members.clear()  # type: ignore[attr-defined]
                tar.pax_headers = {}
                members, total = members + 1, total + member.size
                if members > limits.members or total > limits.total_bytes:
                    raise _BadArchiveError(f"holds over {limits.members:,} members or {limits.total_bytes:,} bytes")
                stream.allowed = member.size
                _take(tar, member, partial, limits)
                stream.allowed = HEADER_BYTES
                on_bytes(raw.tell())
    except _BadArchiveError as error:
        shutil.rmtree(partial)
        raise InputError(f"{archive}: {error}; it is no archive of SONYC-UST: see where it comes from") from None
    except Exception as error:
        # tarfile raises whatever it stumbles over; but a disk that is full is no matter of the archive.
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise
        shutil.rmtree(partial)
        raise InputError(f"{archive}: no readable .tar.gz ({type(error).__name__}); see where it comes from") from None
    # One flush for thousands of files.
    os.sync()
    partial.replace(folder)


def _take(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, limits: Limits) -> None:
    """Check a member, and write it if it is an audio file."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise _BadArchiveError(f"has a path that leads elsewhere ({member.name!a:.100})")
    if member.isdir():
        return
    if not member.isreg():
        raise _BadArchiveError(f"holds a link or device ({member.name!a:.100})")
    if member.issparse():
        raise _BadArchiveError(f"holds a sparse file ({member.name!a:.100})")
    if not 0 <= member.size <= limits.file_bytes:
        raise _BadArchiveError(f"holds a file of {member.size:,} bytes ({member.name!a:.100})")
    if path.suffix.lower() not in limits.suffixes or path.name.startswith("."):
        return
    if not is_file_name(path.name):
        raise _BadArchiveError(f"holds a file whose name is none ({member.name!a:.100})")
    content = tar.extractfile(member)
    assert content is not None
    try:
        with (folder / path.name).open("xb") as stream:
            shutil.copyfileobj(content, stream, BLOCK_BYTES)
    except FileExistsError:
        raise _BadArchiveError(f"holds two files of one name ({path.name!a:.100})") from None
