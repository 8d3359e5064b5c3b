"""The clips of a data set: annotations are matched with audio files, which are checked and taken over."""

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path, PurePath
from typing import NamedTuple, TypeVar

import pandas as pd

from iusp.data import audio
from iusp.io import files
from iusp.io.processes import in_order, worker_pool
from iusp.io.text import first_names, normalised
from iusp.reporter import Reporter

AUDIO = "audio"
CLIPS_PER_CALL = 16  # clips that one call to a worker process handles
ROWS = 10_000  # rows that are converted to a table at a time

NO_NAME = "not a plain file name"
NO_FILE = f"no such file below {AUDIO}/ or the split's folder"
NO_TRUTH = "not labelled by annotator 0, nor in train by a volunteer"
NO_ANNOTATION = "not in the annotations"

Item = TypeVar("Item")


@dataclass(frozen=True)
class Clip:
    """A clip that the annotations name.

    Attributes:
        name: its `audio_filename`, not checked yet.
        paths: all audio files of that name; exactly one for a good clip.
        labelled: whether the clip has ground truth.
    """

    name: str
    paths: tuple[Path, ...]
    labelled: bool


class Finding(NamedTuple):
    """What the check of a clip found.

    Attributes:
        reason: why the clip is bad; empty for a good clip.
        sha256: checksum of the audio file.
        seconds: duration.
        sample_rate: sample rate in Hz.
        channels: number of channels.
    """

    reason: str
    sha256: str = ""
    seconds: float = math.nan
    sample_rate: int = 0
    channels: int = 0


@dataclass(frozen=True)
class Intake:
    """Checks the clips of a data set and takes the good ones over.

    Attributes:
        folder: folder of the data set.
        own: whether the folder is the user's own, and may contain links to other places. Links in a folder that was
            fetched must not lead out of it.
        target: folder that gets the good clips.
        link: whether `target` may share its bytes with `folder` by hard links, because `folder` is temporary.
        min_seconds: shortest duration of a good clip.
        max_seconds: longest duration of a good clip.
    """

    folder: Path
    own: bool
    target: Path
    link: bool
    min_seconds: float
    max_seconds: float

    def run(self, clips: Iterator[Clip], total: int, reporter: Reporter, workers: int) -> pd.DataFrame:
        """Take all clips over, in parallel processes.

        Args:
            clips: the clips, in any order.
            total: number of clips.
            reporter: receives the progress, clip by clip.
            workers: number of processes.

        Returns:
            One row per clip, in the order of `clips`, with the columns of `Finding`.
        """
        jobs = (partial(self._take_batch, batch) for batch in _batches(clips, CLIPS_PER_CALL))
        with worker_pool(workers) as pool:
            rows = _reported(chain.from_iterable(in_order(pool, jobs, workers)), total, reporter)
            tables = [pd.DataFrame(batch, columns=list(Finding._fields)) for batch in _batches(rows, ROWS)]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(Finding._fields))

    def _take_batch(self, clips: list[Clip]) -> list[Finding]:
        return [self._take(clip) for clip in clips]

    def _take(self, clip: Clip) -> Finding:
        """Check one clip and, if it is good, bring it into the target folder."""
        try:
            source = self._source(clip)
            if not self.own:
                audio.check_inside(source, self.folder)
            probe = audio.probe(source, self.min_seconds, self.max_seconds)
        except audio.BadAudio as error:
            return Finding(str(error))
        # A file that has its final name is complete: it was linked, or renamed after it was copied.
        copy = self.target / clip.name
        if self.link and not copy.exists():
            with suppress(OSError):  # on a file system without hard links the clip is copied below
                os.link(source, copy)
        checksum = files.sha256(copy) if copy.exists() else files.copy(source, copy)
        return Finding("", checksum, probe.seconds, probe.sample_rate, probe.channels)

    def _source(self, clip: Clip) -> Path:
        """Return the audio file of a clip.

        Raises:
            audio.BadAudio: the clip has no file, several files, no ground truth or a bad name.
        """
        if not files.is_file_name(clip.name):
            raise audio.BadAudio(NO_NAME)
        if not clip.paths:
            raise audio.BadAudio(NO_FILE)
        if not clip.labelled:
            raise audio.BadAudio(NO_TRUTH)
        if len(clip.paths) > 1:
            places = first_names(sorted(str(path.relative_to(self.folder)) for path in clip.paths))
            raise audio.BadAudio(f"several files of this name: {places}")
        return clip.paths[0]


def match(table: pd.DataFrame, audio_files: Iterable[PurePath]) -> tuple[list[tuple[PurePath, ...]], list[str]]:
    """Match annotated clips with audio files by name, in whatever Unicode form the names are.

    Args:
        table: one row per clip, with its `audio_filename` (in Unicode form C) and `split`.
        audio_files: path of every audio file, relative to the data set's folder.

    Returns:
        The files of each clip: those below `audio/` or below the folder of its split. And the sorted paths of all files
        that belong to no clip.
    """
    found: dict[str, tuple[PurePath, ...]] = {}
    for path in audio_files:
        name = normalised(path.name)
        found[name] = (*found.get(name, ()), path)
    matched = []
    for name, split in zip(table["audio_filename"], table["split"], strict=True):
        everywhere = found.pop(name, ())
        matched.append(tuple(path for path in everywhere if path.parts[0] in (AUDIO, split)))
        if elsewhere := tuple(path for path in everywhere if path not in matched[-1]):
            found[name] = elsewhere
    # File names are bytes; the table of unmatched files is UTF-8.
    strays = [os.fsencode(path).decode(errors="backslashreplace") for paths in found.values() for path in paths]
    return matched, sorted(strays)


def _batches(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    return iter(lambda: list(islice(items, size)), [])


def _reported(rows: Iterator[Finding], total: int, reporter: Reporter) -> Iterator[Finding]:
    for done, row in enumerate(rows, 1):
        reporter.progress("dataset", done, total)
        yield row
