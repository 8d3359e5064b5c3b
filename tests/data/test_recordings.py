import os

import pytest

from iusp.data.recordings import find_recordings
from tests.support.audio_files import ID3V2, encoded

SILENCE = [0.0] * 100


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "recordings"
    for place in ("deep/deeper", ".hidden"):
        (folder / place).mkdir(parents=True)
    for name in ("b.wav", "a.FLAC", "deep/c.opus", "deep/deeper/d.oga", ".hidden/no.wav", ".no.wav"):
        (folder / name).write_bytes(b"content does not matter")
    return folder


def names(paths, folder):
    return [str(path.relative_to(folder)) for path in paths]


def test_recordings_have_names_or_content_of_audio(folder):
    (folder / "recorder").write_bytes(encoded(SILENCE))
    (folder / "radio.ogx").write_bytes(encoded(SILENCE, kind="OGG"))
    for name in ("notes.txt", "list.json", "empty", "MAC address.txt"):
        (folder / name).write_text(name)
    os.mkfifo(folder / "pipe")
    found = find_recordings(folder)
    expected = ["a.FLAC", "b.wav", "deep/c.opus", "deep/deeper/d.oga", "radio.ogx", "recorder"]
    assert names(found.paths, folder) == expected
    assert (found.others, found.unreadable) == ([], {})


def test_other_audio_is_listed(folder):
    for name in ("x.mp3", "deep/y.m4a", "z.AIFF"):
        (folder / name).write_bytes(b"content does not matter")
    (folder / "unnamed").write_bytes(ID3V2 + encoded(SILENCE, kind="MP3"))
    assert names(find_recordings(folder).others, folder) == ["deep/y.m4a", "unnamed", "x.mp3", "z.AIFF"]


def test_links_are_followed_once(folder, tmp_path):
    outside = tmp_path / "disk"
    (outside / "below").mkdir(parents=True)
    (outside / "e.wav").touch()
    (outside / "below/f.wav").touch()
    links = {"here": ".", "deep/up": "..", "twin": "deep", "disk": outside, "disk2": outside, "gone": tmp_path / "none"}
    links |= {"old.txt": "nowhere", "shown": ".hidden"}
    links |= {"g.wav": outside / "e.wav"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (outside / "back").symlink_to(folder)
    found = names(find_recordings(folder).paths, folder)
    own = ["a.FLAC", "b.wav", "deep/c.opus", "deep/deeper/d.oga"]
    assert sorted(found) == sorted([*own, "disk/below/f.wav", "disk/e.wav", "g.wav", "gone", "shown/no.wav"])


def test_folders_that_cannot_be_listed_are_named(folder, monkeypatch):
    scandir = os.scandir

    def refusing(path):
        if os.fspath(path) == str(folder / "deep"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert find_recordings(folder).unreadable == {folder / "deep": "Permission denied"}
