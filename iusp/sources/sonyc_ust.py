"""SONYC-UST as it is published: fetched from Zenodo or a mirror, unpacked, in the format that all sources have.

Zenodo's record says which files there are, with size and MD5. A mirror holds the same files, and the record as
`record.json`: what Zenodo answers to `https://zenodo.org/api/records/<id>`.
"""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from iusp.config.dataset import SonycUst
from iusp.data.audio import SUFFIXES
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
AUDIO = "audio"
CLIP_BYTES = 882_044  # 10 s of 44.1 kHz, 16 bit, as WAV
LARGEST_CLIP_BYTES = 10 * CLIP_BYTES
# gzip cannot make noise much smaller: 365,905,437 bytes hold the 510 clips of v2.3's audio-18.tar.gz, a ratio of 1.23.
LARGEST_RATIO = 4


@dataclass(frozen=True)
class _Version:
    """What is known of a version beforehand.

    Attributes:
        record: Zenodo's id.
        archives: without which it is none.
        further: archives that may be missing from a mirror.
        clips: in all archives.
        md5s: of files, as far as they are known.
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
    """What the record says of a file."""

    key: str
    size: Annotated[int, Field(ge=0)]
    checksum: Annotated[str, Field(pattern=r"^md5:[0-9a-f]{32}$")]
    links: _Links


class _Answer(BaseModel):
    """What is used of Zenodo's record."""

    id: int
    files: list[_File]


@dataclass(frozen=True)
class Record:
    """A version of the data set, as a record describes it.

    Attributes:
        title: for people.
        version: what is known of it beforehand.
        files: tables, then archives.
        content: the record itself, as JSON.
    """

    title: str
    version: _Version
    files: tuple[RemoteFile, ...]
    content: bytes

    @property
    def identity(self) -> list[Any]:
        """What changes with the content of any file, as JSON."""
        return [[file.name, file.size, file.md5] for file in self.files]

    def fetch(self, folder: Path, reporter: Reporter, copy: Path | None = None) -> Path:
        """Fetch and unpack it, but for what is there of an earlier call for the same `identity`.

        Args:
            folder: gets `annotations.csv`, `dcase-ust-taxonomy.yaml`, `record.json`, and `audio/<archive>/<clip>`.
            reporter: told of megabytes.
            copy: where the clips will be copied to, if they will.

        Returns:
            `folder`.

        Raises:
            InputError: the disk is too small; a server refuses, fails too often or holds other files; an archive is not
                to be trusted; or another process is at it.
        """
        archives = [file for file in self.files if file.name not in TABLES]
        packed = [file for file in archives if not _unpacked(file, folder).exists()]
        folder.mkdir(parents=True, exist_ok=True)
        tables = [file for file in self.files if file.name in TABLES]
        wanted = [*tables, *(replace(file, name=f"{ARCHIVES}/{file.name}") for file in packed)]
        # What a killed run left half unpacked is in nobody's way, but for the space.
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
        """Refuse to begin what the disk cannot hold: what has yet to arrive, what will be unpacked, and its copy."""
        size, whole = (sum(file.size for file in some) for some in (packed, archives))

        def unpacked(size: int) -> int:
            return min(size * self.version.clips * CLIP_BYTES // max(whole, 1), LARGEST_RATIO * size)

        clips = unpacked(size)
        if copy and _disk(copy) == _disk(folder):
            # The archives are gone by then.
            clips += max(unpacked(whole) - size, 0)
        needed, free = download.missing_bytes(wanted, folder) + clips, shutil.disk_usage(folder).free
        if needed > free:
            raise InputError(
                f"{folder}: {self.title} needs {needed / 1e9:.1f} GB more on this disk, of which {clips / 1e9:.1f} "
                f"unpacked, and {free / 1e9:.1f} GB are free; make room, or set dataset.sonyc_ust.keep to a folder of "
                "another disk"
            )


def keep(config: SonycUst, reporter: Reporter, copy: Path | None = None) -> Path:
    """Return the folder that the data set is kept in; fetch it first if it isn't there.

    Args:
        config: names the folder.
        reporter: told of megabytes.
        copy: where the clips will be copied to, if they will.

    Raises:
        InputError: as of `open_record` and `Record.fetch`; or another process fetches it.
    """
    folder = config.folder
    assert folder is not None
    if folder.exists():
        return folder
    with files.alone(folder):
        if not folder.exists():  # another run may just have fetched it
            record = open_record(config)
            # Neither the code nor the server matters: a download is gone on with whatever has changed.
            with files.work_folder(folder, files.digest(record.identity)) as work:
                record.fetch(work, reporter, copy)
    return folder


def open_record(config: SonycUst) -> Record:
    """Find out which files a version has, from the mirror or Zenodo.

    Args:
        config: the version, and from where.

    Raises:
        InputError: the record cannot be had, or is not this version's.
    """
    version = VERSIONS[config.version]
    place = config.mirror
    address = f"{place.rstrip('/')}/{RECORD}" if place else f"{ZENODO}/{version.record}"
    content = download.read(address, open_address, RECORD_BYTES)
    try:
        answer = _Answer.model_validate_json(content)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(
            f"{address}: no record of Zenodo's ({where or 'no JSON'}); it must be {ZENODO}/{version.record}"
        ) from None
    if answer.id != version.record:
        raise InputError(
            f"{address}: record {answer.id}, but SONYC-UST {config.version} is {version.record}; correct "
            "dataset.sonyc_ust"
        )
    by_name = {file.key: file for file in answer.files}
    wanted = (*TABLES, *version.archives, *version.further)
    if missing := [name for name in (*TABLES, *version.archives) if name not in by_name]:
        raise InputError(f"{address}: lacks {', '.join(missing[:3])}; it must name all files that Zenodo's does")
    if changed := [name for name, md5 in version.md5s.items() if by_name[name].checksum != f"md5:{md5}"]:
        raise InputError(
            f"{address}: {', '.join(changed)}: another MD5 than SONYC-UST {config.version}'s; where it was changed on "
            "purpose, take the unpacked data set by dataset.source: folder, s3 or dvc"
        )
    if not place and not all(is_secure(file.links.content) for file in answer.files):
        raise InputError(f"{address}: names an address that is not encrypted; use a mirror: dataset.sonyc_ust.mirror")
    remote = (
        RemoteFile(
            name=name,
            address=f"{place.rstrip('/')}/{name}" if place else by_name[name].links.content,
            size=by_name[name].size,
            md5=by_name[name].checksum.removeprefix("md5:"),
        )
        for name in wanted
        if name in by_name
    )
    return Record(f"SONYC-UST {config.version} from {place or 'Zenodo'}", version, tuple(remote), content)


def open_address(address: str, start: int) -> AbstractContextManager[tuple[int, Iterator[bytes]]]:
    """Open an object in S3, a web address or a file; see `iusp.io.download.Opener`."""
    if address.startswith("s3://"):
        # boto3 takes its time to be imported.
        from iusp.io.s3 import open_object

        return open_object(address, start)
    return download.open_http(address, start) if "://" in address else download.open_file(address, start)


def _disk(path: Path) -> int:
    """Return the number of the file system that a path is on, or will be."""
    return next(place.stat().st_dev for place in (path, *path.absolute().parents) if place.exists())


def _unpacked(file: RemoteFile, folder: Path) -> Path:
    return folder / AUDIO / file.name.partition(".")[0]


def _unpack(archive: Path, folder: Path, clips: int, reporter: Reporter) -> None:
    """Unpack an archive, and delete it."""
    total = -(-archive.stat().st_size // MEGABYTE)

    def show(done: int) -> None:
        reporter.progress(f"unpack {archive.name}, MB", min(done // MEGABYTE, total), total)

    unpack(archive, folder, Limits(SUFFIXES, 3 * clips, LARGEST_CLIP_BYTES, 2 * clips * CLIP_BYTES), show)
    archive.unlink()
