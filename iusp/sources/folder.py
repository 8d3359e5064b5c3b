"""A folder of this machine in SONYC-UST's format: annotations CSV, taxonomy YAML and audio files."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePath

from iusp.data.clips import AUDIO
from iusp.data.labels import SPLITS
from iusp.errors import InputError
from iusp.io.text import first_names
from iusp.reporter import Reporter

ANNOTATIONS = "annotations.csv"
TAXONOMIES = ("dcase-ust-taxonomy.yaml", "taxonomy.yaml")
TABLES = (".csv", ".yaml")
AUDIO_FOLDERS = (AUDIO, *SPLITS)
CONTENT = "annotations CSV, taxonomy YAML or audio"  # for messages
HEADER_BYTES = 2**20


@dataclass(frozen=True)
class LocalFolder:
    """A data set in a folder of this machine; it is also a `Source`.

    Attributes:
        path: the folder.
        annotations: the annotations CSV.
        taxonomy: the taxonomy YAML.
        own: whether the folder is the user's own; its links are then followed wherever they lead.
    """

    path: Path
    annotations: Path
    taxonomy: Path
    own: bool

    @classmethod
    def open(cls, path: Path, own: bool) -> "LocalFolder":
        """Find the tables of a folder.

        Args:
            path: the folder.
            own: whether it is the user's own, not one that was fetched.

        Raises:
            InputError: the folder or one of its tables is missing, or there are several tables to choose from.
        """
        if not path.is_dir():
            raise InputError(f"{path}: no such folder; set dataset.path to one in SONYC-UST's format")
        return cls(path, find_annotations(path), _find_taxonomy(path), own)

    @property
    def identity(self) -> Iterator[object]:
        """Path, size and modification time of every file."""
        audio = (self.path / path for path in self.audio_files())
        for path in chain((self.annotations, self.taxonomy), audio):
            status = path.stat() if self.own and path.exists() else path.lstat()
            yield str(path), status.st_size, status.st_mtime_ns

    def fetch(self, folder: Path, reporter: Reporter) -> Path:
        """Return the folder itself: nothing needs to be fetched."""
        return self.path

    def audio_files(self) -> Iterator[PurePath]:
        """Yield the path, relative to `path`, of every file in `audio/` and in the folders of the splits."""
        seen: set[str] = set()
        for top in AUDIO_FOLDERS:
            for place, folders, names in os.walk(self.path / top, followlinks=self.own):
                # Two links may lead to the same folder, and a link may lead to a folder above it.
                if (real := os.path.realpath(place)) in seen:
                    folders.clear()
                    continue
                seen.add(real)
                folders.sort()
                for name in sorted(names):
                    yield Path(place, name).relative_to(self.path)

    def check_apart(self, *outputs: Path) -> None:
        """Refuse outputs whose replacement would delete recordings, or that would be read as recordings.

        Raises:
            InputError: an output contains recordings or lies among them.
        """
        for root in (self.path / name for name in AUDIO_FOLDERS):
            for output in outputs:
                if root.resolve().is_relative_to(output.resolve()) or output.resolve().is_relative_to(root.resolve()):
                    raise InputError(
                        f"{output}: this output is replaced, but it contains the recordings {root} or lies in them; "
                        "write elsewhere"
                    )


def is_part(name: str) -> bool:
    """Return whether a file can be part of a data set, by its path relative to the folder."""
    first, *below = name.split("/")
    return first in AUDIO_FOLDERS if below else first.endswith(TABLES)


def find_annotations(folder: Path) -> Path:
    """Return the annotations CSV of a folder.

    Raises:
        InputError: the folder has no annotations CSV, or several.
    """
    if (folder / ANNOTATIONS).exists():
        return folder / ANNOTATIONS
    return _only(
        [path for path in sorted(folder.glob("*.csv")) if _has_clips(path)],
        f"{folder}: needs {ANNOTATIONS}, or just one *.csv with a column audio_filename",
    )


def _has_clips(path: Path) -> bool:
    with path.open("rb") as stream:  # the first line may be one such as `sep=;`
        return b"audio_filename" in stream.readline(HEADER_BYTES) + stream.readline(HEADER_BYTES)


def _find_taxonomy(folder: Path) -> Path:
    candidates = [folder / name for name in TAXONOMIES if (folder / name).exists()]
    return _only(candidates, f"{folder}: needs just one of {' and '.join(TAXONOMIES)}")


def _only(candidates: list[Path], demand: str) -> Path:
    if len(candidates) != 1:
        raise InputError(f"{demand}; found {first_names(path.name for path in candidates) or 'none'}")
    return candidates[0]
