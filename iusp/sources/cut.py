"""Cut long recordings of a data set into clips."""

import math
import shutil
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path, PurePath

import numpy as np
import pandas as pd
import soundfile

from iusp.data.audio import BadAudio, probe, streamed
from iusp.data.clips import AUDIO, match
from iusp.data.labels import read_rows
from iusp.data.resampling import Samples, windows
from iusp.errors import InputError
from iusp.io import files
from iusp.io.text import normalised
from iusp.reporter import Reporter
from iusp.sources.folder import ANNOTATIONS, TAXONOMIES, LocalFolder


def cut(folder: Path, output: Path, seconds: float, reporter: Reporter) -> tuple[int, int]:
    """Write a copy of a data set in which every recording is cut into clips of equal length.

    The last clip of a recording overlaps the one before, so that it has the same length. Each clip gets all annotations
    of its recording, although a sound may be in another part of it. A recording that is not longer than a clip, or that
    cannot be decoded, is copied unchanged.

    Args:
        folder: data set in SONYC-UST's format.
        output: folder to write.
        seconds: length of a clip.
        reporter: receives the progress, recording by recording.

    Returns:
        The number of recordings, and the number of clips.

    Raises:
        InputError: the data set cannot be read; the output exists or lies in the data set; or two clips would get the
            same name.
    """
    source = LocalFolder.open(folder, own=True)
    source.check_apart(output)
    if output.exists():
        raise InputError(f"{output}: exists; name a new folder")
    table = pd.concat(read_rows(source.annotations), ignore_index=True)
    if missing := {"audio_filename", "split"} - set(table):
        raise InputError(f"{source.annotations}: lacks the column {', '.join(sorted(missing))}; add it")
    table["audio_filename"] = table["audio_filename"].map(normalised)
    clips = table.drop_duplicates("audio_filename")
    paths, _ = match(clips, source.audio_files())
    with files.work_folder(output, files.digest_each([files.code_digest(), seconds, *source.identity])) as work:
        shutil.rmtree(work / AUDIO, ignore_errors=True)  # left by a killed run
        (work / AUDIO).mkdir()
        names: dict[str, list[str]] = {}
        for done, (name, found) in enumerate(zip(clips["audio_filename"], paths, strict=True), 1):
            names[name] = [part for path in found for part in _cut(source.path / path, name, work / AUDIO, seconds)]
            reporter.progress("cut", done, len(clips))
        table["audio_filename"] = table["audio_filename"].map(lambda name: names[name] or [name])
        table = table.explode("audio_filename")
        _check_names(source.annotations, names)
        table.to_csv(work / ANNOTATIONS, index=False, lineterminator="\n")
        files.copy(source.taxonomy, work / TAXONOMIES[0])
    return len(clips), sum(map(len, names.values()))


def _cut(path: Path, name: str, folder: Path, seconds: float) -> Iterator[str]:
    """Write the clips of a recording; yield their names."""
    with suppress(BadAudio):
        probe(path, 0, math.inf)  # decodes all of it, so that nothing of a bad recording is cut
        with streamed(path) as (rate, blocks):
            size = round(seconds * rate)
            parts = windows(blocks, size, size)
            first, second = next(parts), next(parts, None)
            if second is not None:
                before = first[1]
                for number, (_, samples) in enumerate(chain([first, second], parts)):
                    # The last window is shorter.
                    before = np.concatenate([before, samples])[-size:]
                    yield _write(folder / f"{PurePath(name).stem}_{number:03d}", before, rate)
                return
    files.copy(path, folder / name)
    yield name


def _write(path: Path, samples: Samples, rate: int) -> str:
    """Write samples as FLAC or, because FLAC holds nothing beyond full scale, as WAV; return the file's name."""
    suffix, subtype = (".flac", "PCM_24") if np.abs(samples).max() <= 1 else (".wav", "FLOAT")
    soundfile.write(path.with_name(path.name + suffix), samples, rate, subtype=subtype)
    return path.name + suffix


def _check_names(annotations: Path, names: dict[str, list[str]]) -> None:
    """Refuse two recordings whose clips have the same name."""
    owners: dict[str, str] = {}
    for name, parts in names.items():
        for part in parts:
            if owners.setdefault(part, name) != name:
                raise InputError(
                    f"{annotations}: {owners[part]} and {name} would both become {part}; rename one of them"
                )
