"""The published SONYC-UST data set: downloaded from Zenodo or a mirror, and unpacked.

Zenodo's record lists the files with size and MD5. A mirror holds the same files, and the record as `record.json`: the
answer of Zenodo to `https://zenodo.org/api/records/<id>`.
"""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from iusp.config.dataset import SonycUst
from iusp.data.audio import SUFFIXES
from iusp.data.clips import AUDIO
from iusp.errors import InputError
from iusp.io import download, files
from iusp.io.addresses import is_secure
from iusp.io.archives import Limits, unpack
from iusp.io.download import MEGABYTE, RemoteFile
from iusp.reporter import Reporter

ZENODO = "https://zenodo.org/api/records"
RECORD = "record.json"
RECORD_BYTES = 2**20
TABLES = ("annotations.csv", "dcase-ust-taxonomy.yaml")
ARCHIVES = "archives"
CLIP_BYTES = 882_044  # a WAV file of 10 s at 44.1 kHz and 16 bit
LARGEST_CLIP_BYTES = 10 * CLIP_BYTES
# gzip hardly compresses noise: audio-18.tar.gz of v2.3 has 365,905,437 bytes for 510 clips, a ratio of 1.23.
LARGEST_RATIO = 4


@dataclass(frozen=True)
class _Version:
    """What this module knows about a version in advance.

    Attributes:
        record: id of the record on Zenodo.
        archives: archives that every mirror must have.
        further: archives that a mirror may lack.
        clips: number of clips in all archives.
        md5s: known MD5s by file name.
    """

    record: int
    archives: tuple[str, ...]
    further: tuple[str, ...]
    clips: int
    md5s: dict[str, str]


TAXONOMY = {"dcase-ust-taxonomy.yaml": "6c1cca1c4c383a6ebb0cb71cb74fe3a9"}
VERSIONS = {
    2019: _Version(3338310, ("audio-dev.tar.gz",), ("audio-eval.tar.gz",), 3068, TAXONOMY),
    "v2.3": _Version(
        3966543,
        tuple(f"audio-{number}.tar.gz" for number in range(19)),
        (),
        18_510,
        TAXONOMY | {"annotations.csv": "70b507b15bb4cfcce4870925302f276b"},
    ),
}


class _Links(BaseModel):
    content: Annotated[str, Field(alias="self")]


class _File(BaseModel):
    """A file in the record."""

    key: str
    size: Annotated[int, Field(ge=0)]
    checksum: Annotated[str, Field(pattern=r"^md5:[0-9a-f]{32}$")]
    links: _Links


class _Answer(BaseModel):
    """The fields of Zenodo's record that this module reads."""

    id: int
    files: list[_File]


@dataclass(frozen=True)
class Record:
    """A version of the data set as a record describes it.

    Attributes:
        title: name of version and server, for people.
        version: what is known about the version in advance.
        files: the files to download: tables, then archives.
        content: the record itself, as JSON.
    """

    title: str
    version: _Version
    files: tuple[RemoteFile, ...]
    content: bytes

    @property
    def identity(self) -> list[object]:
        """Name, size and MD5 of every file."""
        return [[file.name, file.size, file.md5] for file in self.files]

    def fetch(self, folder: Path, reporter: Reporter, copy: Path | None = None) -> Path:
        """Download and unpack the data set, except files that an earlier call for the same record downloaded.

        Args:
            folder: gets `annotations.csv`, `dcase-ust-taxonomy.yaml`, `record.json`, and `audio/<archive>/<clip>`.
            reporter: receives the progress in megabytes.
            copy: folder that the clips will be copied to; None if they will not be copied.

        Returns:
            `folder`.

        Raises:
            InputError: the disk is too small; a server refuses, fails too often or sends different files; an archive is
                not safe; or another process downloads the same data set.
        """
        archives = [file for file in self.files if file.name not in TABLES]
        packed = [file for file in archives if not _unpacked(file, folder).exists()]
        folder.mkdir(parents=True, exist_ok=True)
        tables = [file for file in self.files if file.name in TABLES]
        wanted = [*tables, *(replace(file, name=f"{ARCHIVES}/{file.name}") for file in packed)]
        # Half unpacked archives of a killed run only take space.
        for stale in (folder / AUDIO).glob("*.partial"):
            shutil.rmtree(stale)
        self._check_space(wanted, packed, archives, folder, copy)
        download.fetch(wanted, open_address, folder, self.title, reporter)
        for file in packed:
            _unpack(folder / ARCHIVES / file.name, _unpacked(file, folder), self.version.clips, reporter)
        shutil.rmtree(folder / ARCHIVES, ignore_errors=True)
        with files.atomic(folder / RECORD) as temporary:
            temporary.write_bytes(self.content)
        return folder

    def _check_space(
        self,
        wanted: list[RemoteFile],
        packed: list[RemoteFile],
        archives: list[RemoteFile],
        folder: Path,
        copy: Path | None,
    ) -> None:
        """Refuse to start if the disk has no room for the missing files, the unpacked clips and their copy."""
        size, whole = (sum(file.size for file in selected) for selected in (packed, archives))

        def unpacked(size: int) -> int:
            return min(size * self.version.clips * CLIP_BYTES // max(whole, 1), LARGEST_RATIO * size)

        clips = unpacked(size)
        if copy and _disk(copy) == _disk(folder):
            # The archives are deleted before the clips are copied.
            clips += max(unpacked(whole) - size, 0)
        needed, free = download.missing_bytes(wanted, folder) + clips, shutil.disk_usage(folder).free
        if needed > free:
            raise InputError(
                f"{folder}: {self.title} needs {needed / 1e9:.1f} GB more on this disk, of which {clips / 1e9:.1f} "
                f"unpacked, and {free / 1e9:.1f} GB are free; make room, or set dataset.sonyc_ust.keep to a folder of "
                "another disk"
            )


def keep(config: SonycUst, reporter: Reporter, copy: Path | None = None) -> Path:
    """Return the folder that the data set is kept in; download the data set first if the folder does not exist.

    Args:
        config: settings that name the folder.
        reporter: receives the progress in megabytes.
        copy: folder that the clips will be copied to; None if they will not be copied.

    Raises:
        InputError: `open_record` or `Record.fetch` fails, or another process downloads the same data set.
    """
    folder = config.folder
    assert folder is not None
    if folder.exists():
        return folder
    with files.alone(folder):
        if not folder.exists():  # another run may just have finished the download
            record = open_record(config)
            # A download continues even if the code or the server has changed since.
            with files.work_folder(folder, files.digest(record.identity)) as work:
                record.fetch(work, reporter, copy)
    return folder


def open_record(config: SonycUst) -> Record:
    """Look up the files of a version on the mirror or on Zenodo.

    Args:
        config: settings that name the version and the server.

    Raises:
        InputError: the record cannot be read, or is not the record of this version.
    """
    version = VERSIONS[config.version]
    mirror = config.mirror and config.mirror.rstrip("/")
    address = f"{mirror}/{RECORD}" if mirror else f"{ZENODO}/{version.record}"
    content = download.read(address, open_address, RECORD_BYTES)
    by_name = _record_files(config, version, address, content)
    if not mirror and not all(is_secure(file.links.content) for file in by_name.values()):
        raise InputError(
            f"{address}: contains an address that is not encrypted; use a mirror: dataset.sonyc_ust.mirror"
        )
    remote = (
        RemoteFile(
            name=name,
            address=f"{mirror}/{name}" if mirror else by_name[name].links.content,
            size=by_name[name].size,
            md5=by_name[name].checksum.removeprefix("md5:"),
        )
        for name in (*TABLES, *version.archives, *version.further)
        if name in by_name
    )
    return Record(f"SONYC-UST {config.version} from {config.mirror or 'Zenodo'}", version, tuple(remote), content)


def _record_files(config: SonycUst, version: _Version, address: str, content: bytes) -> dict[str, _File]:
    """Parse a record, check that it is the record of a version, and return its files by name."""
    try:
        answer = _Answer.model_validate_json(content)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(
            f"{address}: not a record of Zenodo ({where or 'not JSON'}); it must be {ZENODO}/{version.record}"
        ) from None
    if answer.id != version.record:
        raise InputError(
            f"{address}: record {answer.id}, but SONYC-UST {config.version} is {version.record}; correct "
            "dataset.sonyc_ust"
        )
    by_name = {file.key: file for file in answer.files}
    if missing := [name for name in (*TABLES, *version.archives) if name not in by_name]:
        raise InputError(f"{address}: lacks {', '.join(missing[:3])}; it must list all files of Zenodo's record")
    if changed := [name for name, md5 in version.md5s.items() if by_name[name].checksum != f"md5:{md5}"]:
        raise InputError(
            f"{address}: {', '.join(changed)}: MD5 differs from SONYC-UST {config.version}'s; to use changed files on "
            "purpose, unpack the data set and set dataset.source to folder, s3 or dvc"
        )
    return by_name


def open_address(address: str, start: int) -> AbstractContextManager[tuple[int, Iterator[bytes]]]:
    """Open an object in S3, a web address or a file; see `iusp.io.download.Opener`."""
    if address.startswith("s3://"):
        # boto3 is slow to import.
        from iusp.io.s3 import open_object

        return open_object(address, start)
    return download.open_http(address, start) if "://" in address else download.open_file(address, start)


def _disk(path: Path) -> int:
    """Return the device number of the file system that holds a path, or will hold it."""
    return next(place.stat().st_dev for place in (path, *path.absolute().parents) if place.exists())


def _unpacked(file: RemoteFile, folder: Path) -> Path:
    return folder / AUDIO / file.name.partition(".")[0]


def _unpack(archive: Path, folder: Path, clips: int, reporter: Reporter) -> None:
    """Unpack an archive and delete it."""
    total = -(-archive.stat().st_size // MEGABYTE)

    def show(done: int) -> None:
        reporter.progress(f"unpack {archive.name}, MB", min(done // MEGABYTE, total), total)

    unpack(archive, folder, Limits(SUFFIXES, 3 * clips, LARGEST_CLIP_BYTES, 2 * clips * CLIP_BYTES), show)
    archive.unlink()
