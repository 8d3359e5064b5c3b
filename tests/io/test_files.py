"""Work that outlives a kill, beside its output or in a place that several pods share."""

import os
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from iusp.errors import InputError
from iusp.io.files import atomic, work_folder


class KilledError(Exception):
    pass


def begin(output: Path, key: str, name: str) -> None:
    with suppress(KilledError), work_folder(output, key) as folder:
        (folder / name).write_text(name)
        raise KilledError


def finish(output: Path, key: str) -> set[str]:
    with work_folder(output, key) as folder:
        (folder / "end").touch()
    return {path.name for path in output.iterdir()}


def test_work_is_resumed_by_its_key_alone(tmp_path: Path) -> None:
    output = tmp_path / "out/teacher"
    begin(output, "one", "part")
    assert not output.exists()
    assert finish(output, "one") == {"part", "end"}
    begin(output, "two", "part")
    assert finish(output, "three") == {"end"}
    assert list(output.parent.iterdir()) == [output]


def test_pods_that_share_a_place_do_not_touch_each_other_s_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IUSP_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("IUSP_EXECUTION", "run-1")
    # Two students: outputs of the same name in two pods; the first pod is tried again, with an empty disk.
    begin(tmp_path / "pod1/student", "seed0", "epoch")
    begin(tmp_path / "pod2/student", "seed1", "epoch")
    assert finish(tmp_path / "pod3/student", "seed1") == {"epoch", "end"}
    assert finish(tmp_path / "pod4/student", "seed0") == {"epoch", "end"}
    assert list((tmp_path / "work/run-1").iterdir()) == []
    # Another run of the pipeline begins anew.
    begin(tmp_path / "pod5/student", "seed0", "epoch")
    monkeypatch.setenv("IUSP_EXECUTION", "run-2")
    assert finish(tmp_path / "pod6/student", "seed0") == {"end"}


def test_of_two_runs_at_once_the_second_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "teacher"
    with work_folder(output, "one") as folder:
        (folder / "part").touch()
        for key in ("one", "two"):
            with pytest.raises(InputError, match="another run of this step"), work_folder(output, key):
                pass
    assert [path.name for path in output.iterdir()] == ["part"]
    assert finish(output, "two") == {"end"}
    assert list(tmp_path.iterdir()) == [output]


def test_only_files_are_replaced(tmp_path: Path) -> None:
    # As root, renaming over /dev/null would replace it for everybody.
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "pipe", tmp_path):
        with pytest.raises(InputError, match="not a regular file"), atomic(other):
            pass
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
