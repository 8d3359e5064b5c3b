"""Unpack untrusted archives."""

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
MEMBER_BYTES = 4096  # largest average size of headers and padding per member
HEADER_BYTES = 2**16  # largest size of consecutive headers


class _BadArchiveError(Exception):
    """An archive contains something that it should not; the message says what."""


@dataclass(frozen=True)
class Limits:
    """Limits on the content of an archive.

    Attributes:
        suffixes: suffixes of the files to unpack, in lower case; other files are skipped.
        members: largest number of members: files, folders and everything else.
        file_bytes: largest size of one file.
        total_bytes: largest size of all files together.
    """

    suffixes: tuple[str, ...]
    members: int
    file_bytes: int
    total_bytes: int


class _Bounded(gzip.GzipFile):
    """A decompressed stream that only goes forward and is limited in length and in the size of headers.

    On its own, tarfile accepts headers of any length and number, and follows headers that point backwards.

    Attributes:
        allowed: number of bytes that may still be read; the caller sets it before each member.
    """

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        super().__init__(fileobj=stream, mode="rb")
        self._limit = limit
        self.allowed = HEADER_BYTES

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= self.allowed:
            raise _BadArchiveError("contains a header that is too long")
        self.allowed -= size
        self._check(self.tell() + size)
        return super().read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET:
            if offset < self.tell():
                raise _BadArchiveError("contains a header that points backwards")
            self._check(offset)
        return super().seek(offset, whence)

    def _check(self, end: int) -> None:
        if end > self._limit:
            raise _BadArchiveError("is too large when unpacked")


def unpack(archive: Path, folder: Path, limits: Limits, on_bytes: Callable[[int], None]) -> None:
    """Unpack the audio files of a .tar.gz into one new, flat folder.

    Only the content of regular files and the last part of their paths are used, but no link, mode or owner. Hidden
    files and files with other suffixes are skipped. The folder gets its final name when all files are on the disk.

    Args:
        archive: the archive.
        folder: folder to create.
        limits: limits that the archive must keep.
        on_bytes: function that gets the number of compressed bytes read so far, after each member.

    Raises:
        InputError: the archive is damaged, exceeds a limit, or contains paths that lead out of it, links, devices,
            sparse files, or two files of the same name.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    limit = limits.total_bytes + limits.members * MEMBER_BYTES + BLOCK_BYTES
    try:
        with archive.open("rb") as raw, _Bounded(raw, limit) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            members = total = 0
            while member := tar.next():
                # tarfile would keep every member in memory.
                tar.members.clear()  # type: ignore[attr-defined]
                tar.pax_headers = {}
                members, total = members + 1, total + member.size
                if members > limits.members or total > limits.total_bytes:
                    raise _BadArchiveError(f"has over {limits.members:,} members or {limits.total_bytes:,} bytes")
                stream.allowed = member.size
                _take(tar, member, partial, limits)
                stream.allowed = HEADER_BYTES
                on_bytes(raw.tell())
    except _BadArchiveError as error:
        shutil.rmtree(partial)
        raise InputError(f"{archive}: {error}, so it is not an archive of SONYC-UST; check its origin") from None
    except Exception as error:
        # Damaged archives make tarfile raise errors of many types. A full disk is not the archive's fault.
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise
        shutil.rmtree(partial)
        raise InputError(f"{archive}: not a readable .tar.gz ({type(error).__name__}); check its origin") from None
    # One flush to the disk for thousands of files.
    os.sync()
    partial.replace(folder)


def _take(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, limits: Limits) -> None:
    """Check a member, and write it if it is an audio file."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise _BadArchiveError(f"contains a path that leads out of it ({member.name!a:.100})")
    if member.isdir():
        return
    if not member.isreg():
        raise _BadArchiveError(f"contains a link or device ({member.name!a:.100})")
    if member.issparse():
        raise _BadArchiveError(f"contains a sparse file ({member.name!a:.100})")
    if not 0 <= member.size <= limits.file_bytes:
        raise _BadArchiveError(f"contains a file of {member.size:,} bytes ({member.name!a:.100})")
    if path.suffix.lower() not in limits.suffixes or path.name.startswith("."):
        return
    if not is_file_name(path.name):
        raise _BadArchiveError(f"contains an invalid file name ({member.name!a:.100})")
    content = tar.extractfile(member)
    assert content is not None
    try:
        with (folder / path.name).open("xb") as stream:
            shutil.copyfileobj(content, stream, BLOCK_BYTES)
    except FileExistsError:
        raise _BadArchiveError(f"contains two files of the same name ({path.name!a:.100})") from None
