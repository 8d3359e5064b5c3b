"""The recordings below a folder of the user, and the audio files among them that cannot be read."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from iusp.data.audio import SUFFIXES
from iusp.data.containers import HEAD, SUPPORTED, format_of

# Audio and video in other formats, by name: the content of such a file need not tell.
OTHER_SUFFIXES = {
    *(".mp3", ".mp2", ".m4a", ".m4b", ".mp4", ".aac", ".ac3", ".3gp", ".amr", ".aif", ".aiff", ".aifc", ".caf", ".au"),
    *(".snd", ".wma", ".asf", ".webm", ".mka", ".mkv", ".mov", ".avi", ".ogv", ".spx", ".ape", ".wv", ".tta", ".dsf"),
    *(".dff", ".voc", ".ra", ".mpc"),
}


@dataclass(frozen=True)
class Recordings:
    """What a folder contains.

    Attributes:
        paths: files that are named like WAV, FLAC or OGG files or have such content, sorted.
        others: audio and video files in other formats, sorted.
        unreadable: folders that cannot be listed, and why.
    """

    paths: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)


def find_recordings(folder: Path) -> Recordings:
    """Find the recordings in a folder and in all folders below it, also those behind symbolic links.

    Every folder is searched once, even if several links lead to it. Hidden files and folders are left out.
    """
    found = Recordings()
    for path in sorted(_files(folder, found.unreadable)):
        if path.suffix.lower() in SUFFIXES or _is_broken_link(path):
            found.paths.append(path)
            continue
        name = _format(path)
        if name in SUPPORTED:
            found.paths.append(path)
        elif name or path.suffix.lower() in OTHER_SUFFIXES:
            found.others.append(path)
    return found


def _files(folder: Path, unreadable: dict[Path, str]) -> Iterator[Path]:
    """Yield all files, and add the folders that cannot be listed to `unreadable`."""

    def note(error: OSError) -> None:
        unreadable[Path(error.filename)] = error.strerror or "cannot be listed"

    root = folder.resolve()
    seen = {root}
    for place, folders, names in os.walk(folder, onerror=note, followlinks=True):
        kept = []
        for name in sorted(folders):
            path = Path(place, name)
            target = path.resolve()
            # A link to a folder that is searched anyway would only give the same files a second name.
            is_double = target in seen or (path.is_symlink() and _is_visible(target, root))
            if not name.startswith(".") and not is_double:
                seen.add(target)
                kept.append(name)
        folders[:] = kept
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _is_visible(target: Path, root: Path) -> bool:
    """Return whether a folder lies below the root, and no folder on the way is hidden."""
    return target.is_relative_to(root) and not any(name.startswith(".") for name in target.relative_to(root).parts)


def _is_broken_link(path: Path) -> bool:
    """Return whether a path is a broken link that probably led to a folder."""
    return not path.suffix and path.is_symlink() and not path.exists()


def _format(path: Path) -> str | None:
    try:
        if not path.is_file():  # opening a pipe would block
            return None
        with path.open("rb") as file:
            return format_of(file.read(HEAD))
    except OSError:
        return None
