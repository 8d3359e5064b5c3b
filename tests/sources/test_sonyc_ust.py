"""SONYC-UST from Zenodo and mirrors, over networks as they are; and archives as nobody should send them."""

import errno
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import hypothesis
import pandas as pd
import pytest
import requests
from hypothesis import strategies
from pydantic import ValidationError
from requests.exceptions import InvalidSchema

from iusp.artifacts.dataset import INDEX
from iusp.config.dataset import Dataset
from iusp.data.audio import SUFFIXES
from iusp.data.clips import NO_FILE
from iusp.data.labels import PLACE_AND_TIME
from iusp.errors import InputError
from iusp.io import download, files
from iusp.io.archives import Limits, unpack
from iusp.reporter import Reporter
from iusp.sources import sonyc_ust
from iusp.sources.choice import source_version
from iusp.steps import dataset
from tests.support import s3_servers, zenodo
from tests.support.datasets import DEFAULTS, reasons, recordings
from tests.support.files import tree
from tests.support.listener import Listener
from tests.support.outcomes import outcome
from tests.support.project import Project
from tests.support.sonyc_ust import CLIPS, DEV, EVAL, NAMES, ROWS, annotations, nineteen, publish
from tests.support.zenodo import Fault, Zenodo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of 2019 in small; the archives have folders, hidden files and notes in them."""
    dev = {f"./audio-dev/{split}/{name}": CLIPS[name] for split in ("train", "validate") for name in NAMES[split]}
    clutter = {"audio-dev/train/._00_000001.wav": b"of a Mac", "audio-dev/notes.txt": b"hello"}
    evaluation = {f"audio-eval/test/{name}": CLIPS[name] for name in NAMES["test"]}
    return publish(tmp_path_factory.mktemp("zenodo") / "files", {DEV: dev | clutter, EVAL: evaluation}, ROWS)


@pytest.fixture(scope="module")
def expected(published: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """What the dataset step makes of the same data in a folder."""
    folder = tmp_path_factory.mktemp("expected")
    for name, content in CLIPS.items():
        (folder / "data/audio").mkdir(parents=True, exist_ok=True)
        (folder / "data/audio" / name).write_bytes(content)
    for name in sonyc_ust.TABLES:
        shutil.copy(published / name, folder / "data")
    return ingest(DEFAULTS.model_copy(update={"source": "folder", "path": str(folder / "data")}), folder / "out")


@pytest.fixture
def server(published: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Zenodo]:
    with zenodo.serving(published, 2019) as server:
        monkeypatch.setattr(sonyc_ust, "ZENODO", f"{server.address}/api/records")
        monkeypatch.setattr(download, "PAUSE_SECONDS", 0.01)
        yield server


def config(**changes: Any) -> Dataset:
    settings = DEFAULTS.model_dump(by_alias=True)
    settings |= {"source": "sonyc-ust", "sonyc_ust": {"version": 2019, "mirror": None, "keep": None} | changes}
    return Dataset.model_validate(settings)


def ingest(settings: Dataset, output: Path) -> tuple[Any, ...]:
    dataset.run(settings, output, recordings(output), Reporter(), 1)
    return outcome(output, recordings(output))


def fetch(folder: Path) -> dict[str, bytes]:
    return tree(sonyc_ust.open_record(config().sonyc_ust).fetch(folder, Reporter()))


def refusal(action: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as error:
        action()
    message = str(error.value)
    assert "\n" not in message
    return message


def once(name: str, fault: Fault, times: int = 1) -> Callable[[str, int], Fault | None]:
    return lambda asked, before: fault if asked == name and before < times else None


KEEP = """
import sys
from pathlib import Path
from iusp.sources import sonyc_ust
from iusp.config.dataset import SonycUst
from iusp.reporter import Reporter

sonyc_ust.ZENODO = sys.argv[1]
sonyc_ust.keep(SonycUst(version=2019, mirror=None, keep=sys.argv[2]), Reporter())
"""


# Sources --------------------------------------------------------------------------------------------------------------


def test_zenodo_gives_what_a_folder_gives(server: Zenodo, expected: Any, tmp_path: Path) -> None:
    assert ingest(config(), tmp_path / "out") == expected
    assert sorted(tmp_path.iterdir()) == [tmp_path / "out", recordings(tmp_path / "out")]
    wanted = ["annotations.csv", DEV, EVAL, "dcase-ust-taxonomy.yaml", "record.json"]
    assert sorted(name for name, _ in server.requests) == wanted


def test_what_is_kept_is_fetched_once(server: Zenodo, expected: Any, tmp_path: Path) -> None:
    settings = config(keep=str(tmp_path / "kept"))
    published_version = source_version(settings)
    assert ingest(settings, tmp_path / "out") == expected
    kept = tmp_path / "kept/sonyc-ust-2019"
    assert list((tmp_path / "kept").iterdir()) == [kept]
    assert {str(path) for path in map(Path, tree(kept))} == {
        *("annotations.csv", "dcase-ust-taxonomy.yaml", "record.json"),
        *(f"audio/audio-dev/{name}" for split in ("train", "validate") for name in NAMES[split]),
        *(f"audio/audio-eval/{name}" for name in NAMES["test"]),
    }
    asked = len(server.requests)
    version = source_version(settings)
    assert version != published_version
    assert ingest(settings, tmp_path / "again") == expected
    assert source_version(settings) == version
    assert len(server.requests) == asked
    # A copy each: what DVC does to its own must not change what is kept.
    assert all(path.stat().st_nlink == 1 for path in kept.rglob("*.wav"))
    assert "write elsewhere" in refusal(lambda: ingest(settings, kept / "audio"))
    # What is edited there is another source, and what the next run takes.
    (kept / "annotations.csv").write_text(annotations(ROWS[:-1]))
    assert source_version(settings) != version


def test_runs_that_share_the_kept_folder_fetch_it_once(
    server: Zenodo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each works in a place of its own, as on a cluster."""
    over = threading.Event()
    server.fault = once(DEV, Fault(keep=10_000, stall=over))
    command = [sys.executable, "-c", KEEP, f"{server.address}/api/records", str(tmp_path / "kept")]
    environments = [os.environ | {"IUSP_WORK": str(tmp_path / f"work{number}")} for number in range(2)]
    first = subprocess.Popen(command, env=environments[0])
    while not server.asked(DEV):
        assert first.poll() is None
        threading.Event().wait(0.05)
    second = subprocess.run(command, env=environments[1], capture_output=True, text=True, check=False)
    over.set()
    assert first.wait() == 0
    assert "sonyc-ust-2019.lock: another run of this step is using it; run again" in second.stderr
    asked = len(server.requests)
    subprocess.run(command, env=environments[1], check=True)
    assert len(server.requests) == asked
    assert list((tmp_path / "kept").iterdir()) == [tmp_path / "kept/sonyc-ust-2019"]


def test_what_another_run_has_just_fetched_is_not_fetched_again(
    server: Zenodo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, alone = config(keep=str(tmp_path / "kept")).sonyc_ust, files.alone

    def late(folder: Path) -> AbstractContextManager[None]:
        monkeypatch.setattr(files, "alone", alone)
        sonyc_ust.keep(settings, Reporter())
        return alone(folder)

    monkeypatch.setattr(files, "alone", late)
    sonyc_ust.keep(settings, Reporter())
    assert len(server.asked("record.json")) == 1


@pytest.mark.parametrize("kind", ["web", "folder", *s3_servers.KINDS])
def test_a_mirror_gives_the_same(
    kind: str,
    server: Zenodo,
    published: Path,
    expected: Any,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sonyc_ust, "ZENODO", "https://not.to.be.asked.invalid")
    if kind == "web":
        assert ingest(config(mirror=f"{server.address}/sonyc/"), tmp_path / "out") == expected
        return
    mirror = shutil.copytree(published, tmp_path / "mirror")
    (mirror / "record.json").write_bytes(zenodo.describe(published, 2019))
    if kind == "folder":
        assert ingest(config(mirror=str(mirror)), tmp_path / "out") == expected
        return
    with s3_servers.serving(kind, tmp_path_factory.mktemp("s3")) as address:
        for name, value in s3_servers.environment(address).items():
            monkeypatch.setenv(name, value)
        s3_servers.upload(address, mirror, "sonyc/2019/")
        settings = config(mirror=f"s3://{s3_servers.BUCKET}/sonyc/2019")
        # A download that was broken off goes on.
        part = tmp_path / "copy/archives" / f"{DEV}.partial"
        part.parent.mkdir(parents=True)
        part.write_bytes((published / DEV).read_bytes()[:20_000])
        sonyc_ust.open_record(settings.sonyc_ust).fetch(tmp_path / "copy", Reporter())
        assert (tmp_path / "copy/audio/audio-dev" / NAMES["train"][0]).read_bytes() == CLIPS[NAMES["train"][0]]
        assert ingest(settings, tmp_path / "out") == expected
        nowhere = config(mirror=f"s3://{s3_servers.BUCKET}/nowhere").sonyc_ust
        assert refusal(lambda: sonyc_ust.open_record(nowhere)).startswith(
            f"s3://{s3_servers.BUCKET}/nowhere/record.json: "
        )


def test_without_audio_of_test_validate_is_what_there_is(
    server: Zenodo, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = shutil.copytree(published, tmp_path / "mirror")
    (mirror / EVAL).unlink()
    server.folder = mirror
    notes: list[str] = []
    summary = dataset.run(
        config(), tmp_path / "out", tmp_path / "audio", Listener(lambda *call: notes.extend(filter(None, call[3:]))), 1
    )
    assert summary.clips == {"train": 2, "validate": 1, "test": 0}
    assert "the test split has no audio: results are reported on validate" in notes
    assert reasons(tmp_path / "out/unmatched.csv") == dict.fromkeys(NAMES["test"], NO_FILE)


def test_v23_has_nineteen_archives_and_keeps_place_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = dict(zip(PLACE_AND_TIME, ("1", "546", "40.72951", "-73.99388", "2017", "9", "3", "14"), strict=True))
    rows = [one | where | {"hour": str(number)} for number, one in enumerate(ROWS[1:])]
    published = publish(tmp_path / "files", nineteen(CLIPS), rows)
    with zenodo.serving(published, "v2.3") as server:
        monkeypatch.setattr(sonyc_ust, "ZENODO", f"{server.address}/api/records")
        # These are not the annotations of v2.3, whose MD5 is known.
        message = refusal(lambda: sonyc_ust.open_record(config(version="v2.3").sonyc_ust))
        assert "3966543: annotations.csv: MD5 differs from SONYC-UST v2.3's; to use changed files on purpose" in message
        stand_in = replace(sonyc_ust.VERSIONS["v2.3"], md5s=sonyc_ust.TAXONOMY)
        monkeypatch.setitem(sonyc_ust.VERSIONS, "v2.3", stand_in)
        ingest(config(version="v2.3", keep=str(tmp_path)), tmp_path / "out")
    index = pd.read_parquet(tmp_path / "out/index.parquet")
    assert list(index.columns) == [*INDEX, *PLACE_AND_TIME]
    assert len(index) == 4
    assert index.set_index("audio_filename").loc[NAMES["test"][0], ["hour", "latitude"]].tolist() == ["4", "40.72951"]
    assert (tmp_path / "sonyc-ust-v2.3/record.json").exists()


# Networks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "times", "ranges"),
    [
        (Fault(keep=10_000), 1, ["", "bytes=10000-"]),
        (Fault(keep=10_000), 3, ["", "bytes=10000-", "bytes=20000-", "bytes=30000-"]),
        (Fault(status=500), 2, ["", "", ""]),
        (Fault(status=520), 2, ["", "", ""]),
        (Fault(status=503, headers={"Retry-After": "0"}), 2, ["", "", ""]),
        (Fault(status=429, headers={"Retry-After": format_datetime(datetime.now(UTC))}), 2, ["", "", ""]),
        (Fault(status=429, headers={"Retry-After": "soon"}), 2, ["", "", ""]),
        (Fault(status=429, headers={"Retry-After": "9" * 5000}), 2, ["", "", ""]),
        (Fault(status=429, headers={"Retry-After": "Mon, 32 Jan 999999999999 99:99:99 GMT"}), 2, ["", "", ""]),
        (Fault(body=b"not what was stated"), 1, ["", "bytes=19-"]),
        (Fault(body=bytes(10**6)), 1, ["", ""]),
        (Fault(headers={"Content-Range": "bytes 7-8/9"}, status=206), 2, ["", "", ""]),
        (Fault(headers={"Content-Range": f"bytes {'9' * 5000}-8/9"}, status=206), 2, ["", "", ""]),
    ],
)
def test_what_passes_is_got_over(server: Zenodo, tmp_path: Path, fault: Fault, times: int, ranges: list[str]) -> None:
    undisturbed = fetch(tmp_path / "undisturbed")
    server.requests.clear()
    server.fault = once(DEV, fault, times)
    if fault.body == b"not what was stated":
        # Its beginning is wrong, which shows when all is there.
        assert fetch(tmp_path / "copy") == undisturbed
        assert server.asked(DEV) == [*ranges, ""]
        return
    assert fetch(tmp_path / "copy") == undisturbed
    assert server.asked(DEV) == ranges


def test_the_record_may_come_late(server: Zenodo, tmp_path: Path) -> None:
    server.fault = once("record.json", Fault(status=502), 3)
    fetch(tmp_path / "copy")
    assert len(server.asked("record.json")) == 4


def test_a_stalled_connection_is_broken_off_and_gone_on_with(
    server: Zenodo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "READ_SECONDS", 0.3)
    over = threading.Event()
    server.fault = once(DEV, Fault(keep=10_000, stall=over))
    fetch(tmp_path / "copy")
    over.set()
    assert server.asked(DEV) == ["", "bytes=10000-"]


def test_a_connection_that_drips_is_broken_off_and_gone_on_with(
    server: Zenodo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "READ_SECONDS", 0.2)
    server.fault = lambda name, before: (
        Fault(keep=20, drip=0.01) if before == 0 and name in (DEV, "record.json") else None
    )
    got = fetch(tmp_path / "copy")
    assert len(server.asked("record.json")) == 2
    first, second = server.asked(DEV)
    assert first == ""
    assert 20 < int(second.removeprefix("bytes=").removesuffix("-")) < 200
    assert got == fetch(tmp_path / "undisturbed")
    server.fault = lambda name, before: Fault(keep=20, drip=0.01)
    assert "less than 1 kB per second arrive, 6 times in a row; run again" in refusal(lambda: fetch(tmp_path / "again"))


def test_a_server_without_ranges_begins_anew(server: Zenodo, tmp_path: Path) -> None:
    server.fault = lambda name, before: Fault(keep=10_000 if before == 0 else None, ranges=False)
    got = fetch(tmp_path / "copy")
    assert len(server.asked(DEV)) == 2
    assert got == fetch(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("fault", "words", "requests"),
    [
        (
            Fault(status=500),
            f"the server answers 500, {download.FAILURES} times in a row; run again",
            download.FAILURES,
        ),
        (Fault(keep=0), f"stalled or broke off, {download.FAILURES} times in a row; run again", download.FAILURES),
        (Fault(status=404), r"refuses \(404\); correct the address", 1),
        (Fault(status=429, headers={"Retry-After": "7200"}), "429 and asks to wait; run again in 120 minutes", 1),
        (Fault(status=503, headers={"Retry-After": "86400"}), "503 and asks to wait; run again in 1440 minutes", 1),
        (Fault(status=302, headers={"Location": f"/moved/{EVAL}"}), "redirects without end; use", 31),
        (Fault(status=302, headers={"Location": "http://["}), "or the proxy in .* is not valid; correct it", 1),
        (
            Fault(status=302, headers={"Location": "https://\xff/"}),
            "or the proxy in .* is not valid; correct it",
            1,
        ),
        (
            Fault(body=bytes(10**6)),
            "more than the stated .* bytes arrived, 2 times: the server sends a different file",
            2,
        ),
        (Fault(body=b"short"), "fewer bytes than the record states, 2 times: the server sends a different file", 4),
    ],
)
def test_what_stays_is_refused_and_the_rest_is_kept(
    server: Zenodo, tmp_path: Path, fault: Fault, words: str, requests: int
) -> None:
    server.fault = lambda name, before: fault if name == EVAL else None
    with pytest.raises(InputError, match=f"{server.address}/.*{EVAL}/content: .*{words}") as error:
        fetch(tmp_path / "copy")
    assert "\n" not in str(error.value)
    assert len(server.asked(EVAL)) == requests
    server.requests.clear()
    server.fault = lambda name, before: None
    kept = set(tree(tmp_path / "copy"))
    fetch(tmp_path / "copy")
    assert {name for name, _ in server.requests} >= {"record.json", EVAL}
    assert all(f"archives/{name}" not in kept and name not in kept for name, _ in server.requests)


def test_a_wrong_checksum_is_refused(server: Zenodo, published: Path, tmp_path: Path) -> None:
    body = bytearray((published / DEV).read_bytes())
    body[1000] ^= 1
    server.fault = lambda name, before: Fault(body=bytes(body)) if name == DEV else None
    message = refusal(lambda: fetch(tmp_path / "copy"))
    assert message.endswith(
        "the file does not have the stated MD5, 2 times: the server sends a different file; use another mirror"
    )
    assert not (tmp_path / "copy/audio").exists()
    assert not list((tmp_path / "copy").rglob(f"{DEV}*"))


def test_what_is_damaged_on_this_disk_is_fetched_anew(server: Zenodo, published: Path, tmp_path: Path) -> None:
    for name, size in ((DEV, 10_000), (EVAL, 10**6)):
        (tmp_path / "copy/archives").mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy/archives" / f"{name}.partial").write_bytes(bytes(size))
    assert fetch(tmp_path / "copy") == fetch(tmp_path / "undisturbed")


def test_a_killed_download_is_gone_on_with(server: Zenodo, published: Path, expected: Any, tmp_path: Path) -> None:
    half, over = (published / DEV).stat().st_size // 2, threading.Event()
    server.fault = once(DEV, Fault(keep=half, stall=over))
    process = subprocess.Popen([sys.executable, "-c", KEEP, f"{server.address}/api/records", str(tmp_path / "kept")])

    def part() -> list[Path]:
        return [path for path in (tmp_path / "kept").rglob(f"{DEV}.partial") if path.stat().st_size == half]

    others = ("annotations.csv", "dcase-ust-taxonomy.yaml", EVAL)
    while not part() or not all(list((tmp_path / "kept").rglob(name)) for name in others):
        assert process.poll() is None
        threading.Event().wait(0.05)
    message = refusal(lambda: ingest(config(keep=str(tmp_path / "kept")), tmp_path / "out"))
    assert "another run of this step is using it; run again when that run has ended" in message
    process.kill()
    process.wait()
    over.set()
    server.requests.clear()
    assert ingest(config(keep=str(tmp_path / "kept")), tmp_path / "out") == expected
    assert server.requests == [("record.json", ""), (DEV, f"bytes={half}-")]
    assert sorted((tmp_path / "kept").iterdir()) == [tmp_path / "kept/sonyc-ust-2019"]


def test_progress_tells_megabytes_that_are_here(
    server: Zenodo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MEGABYTE", 1000)
    calls: list[tuple[Any, ...]] = []
    server.fault = once(DEV, Fault(status=404))
    with pytest.raises(InputError):
        sonyc_ust.open_record(config().sonyc_ust).fetch(tmp_path / "copy", Reporter())
    server.fault = lambda name, before: None
    sonyc_ust.open_record(config().sonyc_ust).fetch(tmp_path / "copy", Listener(lambda *call: calls.append(call)))
    task, done, total, message = calls[0]
    assert (task, message.startswith("SONYC-UST 2019 from Zenodo: ")) == ("download, MB", True)
    shown = [call[1] for call in calls if call[0] == task]
    assert shown == sorted(shown)
    assert shown[-1] == total
    assert {call[0] for call in calls} == {task, f"unpack {DEV}, MB", f"unpack {EVAL}, MB"}
    assert done >= 0


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(
    server: Zenodo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    message = refusal(lambda: fetch(tmp_path / "copy"))
    assert "SONYC-UST 2019 from Zenodo needs 0.0 GB more on this disk" in message
    assert [name for name, _ in server.requests] == ["record.json"]


def test_the_disk_must_also_hold_the_copy_but_not_what_a_killed_run_left(
    server: Zenodo, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, usage = sonyc_ust.open_record(config().sonyc_ust), shutil.disk_usage(tmp_path)
    packed = sum((published / name).stat().st_size for name in (DEV, EVAL))
    tables = sum((published / name).stat().st_size for name in sonyc_ust.TABLES)
    stale = tmp_path / "kept/audio/audio-dev.partial"
    stale.mkdir(parents=True)

    def free(path: Path) -> Any:
        return usage._replace(free=0 if stale.exists() else room)

    monkeypatch.setattr(shutil, "disk_usage", free)
    # Packed and, four times as large, unpacked; then the copy, in the place of what was packed.
    for needed, copy in ((5 * packed + tables, None), (8 * packed + tables, tmp_path / "data/recordings")):
        room = needed - 1
        message = refusal(lambda copy=copy: record.fetch(tmp_path / "kept", Reporter(), copy))
        assert "GB are free; make room, or set dataset.sonyc_ust.keep to a folder of another disk" in message
        assert not stale.exists()
    record.fetch(tmp_path / "kept", Reporter(), Path("/dev/recordings"))
    room, settings = 8 * packed + tables - 1, config(keep=str(tmp_path))
    assert "GB are free" in refusal(lambda: ingest(settings, tmp_path / "out"))
    room += 1
    ingest(settings, tmp_path / "out")


@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        ("socks5://127.0.0.1:1", "the proxy in HTTPS_PROXY or ALL_PROXY is a SOCKS proxy; set an http:// proxy"),
        ("http://", "this address, its redirect, or the proxy in HTTPS_PROXY or ALL_PROXY is not valid; correct it"),
        (
            "http://[",
            "this address, its redirect, or the proxy in HTTPS_PROXY or ALL_PROXY is not valid; correct it",
        ),
    ],
)
def test_a_proxy_that_cannot_be_used_is_told_at_once(monkeypatch: pytest.MonkeyPatch, proxy: str, words: str) -> None:
    def unsupported(*arguments: Any, **options: Any) -> None:
        raise InvalidSchema("Missing dependencies for SOCKS support.")

    monkeypatch.setattr(requests.adapters, "SOCKSProxyManager", unsupported)  # as requests does without PySocks
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setattr(sonyc_ust, "ZENODO", "https://example.invalid")
    assert refusal(lambda: sonyc_ust.open_record(config().sonyc_ust)).startswith(
        f"https://example.invalid/3338310: {words}"
    )


# What is not to be trusted --------------------------------------------------------------------------------------------


def test_no_server_leads_to_what_is_not_encrypted(server: Zenodo, tmp_path: Path) -> None:
    for place in ("http://example.org/annotations.csv", "ftp://example.org/x", f"{server.address}@example.org/x"):
        server.fault = lambda name, before, place=place: (
            Fault(status=302, headers={"Location": place}) if name == DEV else None
        )
        assert "redirects to an address that is not encrypted" in refusal(lambda: fetch(tmp_path / "copy"))
    server.fault = once(DEV, Fault(status=302, headers={"Location": f"{server.address}/moved/{DEV}"}))
    fetch(tmp_path / "copy")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (lambda record: b"<html>", r"not a record of Zenodo \(not JSON\)"),
        (lambda record: json.dumps(record | {"id": 3966543}).encode(), "record 3966543, but SONYC-UST 2019 is 3338310"),
        (lambda record: json.dumps(record | {"files": []}).encode(), "lacks annotations.csv, dcase-ust-"),
        (
            lambda record: json.dumps(
                record | {"files": [one | {"checksum": "x"} for one in record["files"]]}
            ).encode(),
            "files.0.checksum",
        ),
        (
            lambda record: json.dumps(
                record | {"files": [one | {"checksum": f"md5:{'0' * 32}"} for one in record["files"]]}
            ).encode(),
            "dcase-ust-taxonomy.yaml: MD5 differs from SONYC-UST 2019's; to use changed files on purpose, unpack the",
        ),
        (
            lambda record: json.dumps(
                record | {"files": [one | {"links": {"self": "/etc/passwd"}} for one in record["files"]]}
            ).encode(),
            "contains an address that is not encrypted",
        ),
        (lambda record: b" " * (sonyc_ust.RECORD_BYTES + 1), "larger than 1,048,576 bytes"),
    ],
)
def test_a_record_that_is_none(server: Zenodo, record: Callable[[Any], bytes], words: str) -> None:
    body = record(json.loads(server.content("record.json") or b""))
    server.fault = lambda name, before: Fault(body=body)
    with pytest.raises(InputError, match=words):
        sonyc_ust.open_record(config().sonyc_ust)


@pytest.mark.parametrize(
    "mirror",
    [
        *("http://example.org/sonyc", "ftp://example.org/sonyc", "https://me:secret@example.org/sonyc", "s3://x"),
        *("https://example.org/sonyc?sig=secret", "http://127.0.0.1@example.org/", "http://["),
    ],
)
def test_mirrors_that_are_refused(mirror: str) -> None:
    with pytest.raises(ValidationError, match="mirror must be"):
        config(mirror=mirror)


def member(name: str, content: bytes = b"", **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info, content


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes], kind: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w:gz", format=kind) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


GOOD = member("audio/good.wav", b"RIFF")
LIMITS = Limits(suffixes=SUFFIXES, members=20, file_bytes=2**20, total_bytes=2**22)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([member("../escaped.wav", b"x")], "a path that leads out of it"),
        ([member("audio/../../escaped.wav", b"x")], "a path that leads out of it"),
        ([member("/escaped.wav", b"x")], "a path that leads out of it"),
        ([member("a\\escaped.wav", b"x")], "an invalid file name"),
        ([member("audio/li\nne.wav", b"x")], "an invalid file name"),
        ([member("link.wav", type=tarfile.SYMTYPE, linkname="/etc/passwd")], "a link or device"),
        ([member("link.wav", type=tarfile.SYMTYPE, linkname="good.wav")], "a link or device"),
        ([member("link.wav", type=tarfile.LNKTYPE, linkname="audio/good.wav")], "a link or device"),
        ([member("null.wav", type=tarfile.CHRTYPE, devmajor=1, devminor=3)], "a link or device"),
        ([member("pipe.wav", type=tarfile.FIFOTYPE)], "a link or device"),
        ([member("other/good.wav", b"RIFF")], "two files of the same name"),
        ([member("large.wav", bytes(2**20 + 1))], "a file of 1,048,577 bytes"),
        ([member("large.bin", bytes(2**20 + 1))], "a file of 1,048,577 bytes"),
        ([member(f"{number}.wav", bytes(2**20)) for number in range(5)], "over 20 members or 4,194,304 bytes"),
        ([member(f"{number}.wav") for number in range(20)], "over 20 members or 4,194,304 bytes"),
        ([member("x.wav", pax_headers={"comment": "x" * 2**21})], "a header that is too long"),
    ],
)
def test_an_archive_that_is_not_to_be_trusted(tmp_path: Path, bad: list[Any], words: str) -> None:
    path = archive(tmp_path / "bad.tar.gz", GOOD, *bad)
    message = refusal(lambda: unpack(path, tmp_path / "in/out", LIMITS, lambda done: None))
    assert message.startswith(f"{path}: ")
    assert words in message
    assert sorted(tmp_path.rglob("*")) == [path, tmp_path / "in"]


def test_a_bomb_ends_before_it_is_large(tmp_path: Path) -> None:
    """A header that claims a terabyte, zeros without end, and a file that is none."""
    header = tarfile.TarInfo("huge.wav")
    header.size = 2**40
    pax = tarfile.TarInfo("x")
    pax.size, pax.type = 2**40, tarfile.XHDTYPE
    for raw in (header.tobuf() + bytes(2**16), pax.tobuf(tarfile.GNU_FORMAT) + bytes(2**16)):
        path = tmp_path / "bomb.tar.gz"
        path.write_bytes(gzip.compress(raw))
        refusal(lambda path=path: unpack(path, tmp_path / "out", LIMITS, lambda done: None))
        assert list(tmp_path.iterdir()) == [path]
    names = [member("d" * 3000 + str(number), type=tarfile.DIRTYPE) for number in range(3000)]
    path = archive(tmp_path / "bomb.tar.gz", *names)
    assert "members" in refusal(lambda: unpack(path, tmp_path / "out", LIMITS, lambda done: None))
    path.write_bytes(b"no gzip at all")
    assert "not a readable .tar.gz (BadGzipFile)" in refusal(
        lambda: unpack(path, tmp_path / "out", LIMITS, lambda done: None)
    )
    path.write_bytes(archive(tmp_path / "whole.tar.gz", member("a.wav", os.urandom(9999))).read_bytes()[:5000])
    assert "not a readable .tar.gz" in refusal(lambda: unpack(path, tmp_path / "out", LIMITS, lambda done: None))


def sparse(name: str, blocks: int) -> bytes:
    """GNU's header of a sparse file, whose map goes on for so many blocks."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[482] = blocks > 0
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
    piece = (b"%011o\0" % 512) * 42 + b"\1".ljust(8, b"\0")
    return bytes(header) + piece * blocks


def comments(count: int, kind: bytes) -> bytes:
    """Empty files, each after a header of 40 kB of its own."""
    pieces = []
    for number in range(count):
        pax = tarfile.TarInfo.create_pax_global_header({f"comment{number}": "x" * 40_000})
        info = tarfile.TarInfo.frombuf(pax[:512], "utf-8", "strict")
        info.type = kind
        pieces += [info.tobuf(tarfile.USTAR_FORMAT), pax[512:], tarfile.TarInfo(f"{number}.txt").tobuf()]
    return b"".join(pieces)


def sparse_10(count: int) -> bytes:
    """PAX's header of a sparse file, and a map of so many numbers before its content."""
    info = tarfile.TarInfo("sparse.wav")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    return info.tobuf(tarfile.PAX_FORMAT) + b"%d\n" % count + b"0\n" * count * 2


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (lambda: sparse("sparse.wav", 60_000), "a header that is too long"),
        (lambda: sparse("sparse.wav", 3) + bytes(2048), "contains a sparse file"),
        (lambda: sparse_10(8_000_000), "a header that is too long"),
        (lambda: sparse_10(100) + bytes(2048), "contains a sparse file"),
        (lambda: comments(1, tarfile.XGLTYPE)[:-512] * 40, "a header that is too long"),
        (lambda: comments(700, tarfile.XHDTYPE), None),
        (lambda: comments(700, tarfile.XGLTYPE), None),
    ],
)
def test_no_headers_fill_the_memory(tmp_path: Path, raw: Callable[[], bytes], words: str | None) -> None:
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(raw(), 1))
    limits = Limits(suffixes=SUFFIXES, members=1000, file_bytes=2**20, total_bytes=2**26)
    tracemalloc.start()
    if words:
        assert words in refusal(lambda: unpack(path, tmp_path / "out", limits, lambda done: None))
        assert list(tmp_path.iterdir()) == [path]
    else:
        unpack(path, tmp_path / "out", limits, lambda done: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_what_the_parser_stumbles_over_is_refused_and_a_full_disk_is_not_the_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bad.tar.gz"
    # The map of a sparse file ends before it has begun.
    path.write_bytes(gzip.compress(sparse("sparse.wav", 1)[:512]))
    message = refusal(lambda: unpack(path, tmp_path / "out", LIMITS, lambda done: None))
    assert message == f"{path}: not a readable .tar.gz (IndexError); check its origin"
    assert list(tmp_path.iterdir()) == [path]

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(archive(path, GOOD), tmp_path / "out", LIMITS, lambda done: None)


@hypothesis.given(
    strategies.lists(strategies.tuples(strategies.integers(0, 4095), strategies.integers(0, 255)), min_size=1)
)
def test_no_damage_leads_out_of_the_folder(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    long = member("d/" * 60 + "long.wav", b"long")
    raw = bytearray(gzip.decompress(archive(folder / "a.tar.gz", GOOD, long, kind=tarfile.GNU_FORMAT).read_bytes()))
    for place, value in damage:
        raw[place] = value
    for block in range(0, 4096, 512):  # so that headers count
        checksum = 256 + sum(raw[block : block + 148]) + sum(raw[block + 156 : block + 512])
        raw[block + 148 : block + 156] = b"%06o\0 " % checksum
    (folder / "a.tar.gz").write_bytes(gzip.compress(bytes(raw)))
    try:
        unpack(folder / "a.tar.gz", folder / "out", LIMITS, lambda done: None)
    except InputError:
        assert list(folder.iterdir()) == [folder / "a.tar.gz"]
    else:
        assert {path.parent for path in folder.rglob("*.wav")} <= {folder / "out"}
        assert sorted(path.name for path in folder.iterdir()) == ["a.tar.gz", "out"]


# Commands -------------------------------------------------------------------------------------------------------------


def test_dvc_fetches_once_and_finds_nothing_changed(published: Path, expected: Any, tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    mirror = shutil.copytree(published, tmp_path / "mirror")
    params = project.params()
    params["dataset"] |= {"source": "sonyc-ust"}
    params["dataset"]["sonyc_ust"] |= {"mirror": str(mirror)}
    project.write_params(params)
    project.commit()
    done = project.run("iusp", "dataset", check=False)
    assert (done.returncode, done.stderr) == (2, f"iusp: {mirror}/record.json: no such file; correct the folder\n")
    (mirror / "record.json").write_bytes(zenodo.describe(published, 2019))
    project.run("dvc", "repro", "dataset")
    assert outcome(project.folder / "data/dataset", project.folder / "data/recordings") == expected
    shutil.rmtree(mirror)
    assert "didn't change, skipping" in project.run("dvc", "repro", "dataset").stdout
    assert project.run("git", "status", "--porcelain").stdout.split() == ["??", "dvc.lock"]


def test_a_cluster_needs_a_place_for_it(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")

    def compile_(*changes: str) -> subprocess.CompletedProcess[str]:
        options = [option for change in ("dataset.source=sonyc-ust", *changes) for option in ("-S", change)]
        return project.run("python", "-m", "pipelines", "compile", "-o", "iusp.yaml", *options, check=False)

    refused = compile_()
    assert refused.returncode == 2
    assert "dataset.sonyc_ust.keep: recordings/sonyc-ust-2019 is on no volume of the cluster" in refused.stderr
    assert compile_("dataset.sonyc_ust.keep=null").returncode == 0
    volume = "kubeflow.volume={claim: recordings, path: /recordings}"
    assert compile_("dataset.sonyc_ust.keep=/recordings", volume).returncode == 0
