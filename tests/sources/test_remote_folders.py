"""Data elsewhere: S3 servers as they are and as networks make them, and versions that DVC tracks."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from boto3.s3.transfer import TransferConfig
from pydantic import ValidationError

from iusp.artifacts.dataset import DatasetSummary
from iusp.config.dataset import Dataset
from iusp.errors import InputError
from iusp.io import s3
from iusp.reporter import Reporter
from iusp.sources import dvc_repository
from iusp.sources.folder import CONTENT, is_part
from iusp.steps import dataset
from tests.support import outcomes, s3_servers
from tests.support.datasets import DEFAULTS, RATE, make, recordings, row
from tests.support.files import tree
from tests.support.listener import Listener
from tests.support.local_servers import free_port
from tests.support.project import Project
from tests.support.s3_servers import BUCKET, KEY, SECRET, Fault, Proxy, use

pytestmark = pytest.mark.slow

URI = f"s3://{BUCKET}/esc/ust"
PREFIX = "esc/ust/"
CLIPS = [f"clip{number:02d}.wav" for number in range(24)]
ROWS = [row(name, ("train", "validate")[number % 2], 0) for number, name in enumerate(CLIPS)]
NOT_PART = ("readme.txt", "notes/clip00.wav", "audio.wav", "taxonomy.yaml.bak")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with a folder below `audio` and a clip in its split's folder."""
    folder = make(tmp_path_factory.mktemp("source") / "data", ROWS)
    (folder / "audio/deeper").mkdir()
    (folder / "audio" / CLIPS[2]).rename(folder / "audio/deeper" / CLIPS[2])
    (folder / "validate").mkdir()
    (folder / "audio" / CLIPS[1]).rename(folder / "validate" / CLIPS[1])
    return folder


@pytest.fixture(scope="module")
def servers(servers: dict[str, str], source: Path) -> dict[str, str]:
    """Each kind of server with the data set, and more that is no part of it."""
    for server in servers.values():
        s3_servers.upload(server, source, PREFIX)
        for name in NOT_PART:
            s3_servers.client(server).put_object(Bucket=BUCKET, Key=PREFIX + name, Body=b"x")
        s3_servers.client(server).put_object(Bucket=BUCKET, Key="esc/ust-old/annotations.csv", Body=b"x")
    s3_servers.client(servers["moto"]).put_object(Bucket=BUCKET, Key=f"{PREFIX}audio/", Body=b"")
    return servers


def forget_credentials(monkeypatch: pytest.MonkeyPatch, empty: Path) -> None:
    empty.touch()
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(empty))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)


def config(**changes: Any) -> Dataset:
    return Dataset.model_validate(DEFAULTS.model_dump(by_alias=True) | {"source": "s3", "s3": URI} | changes)


def listed(uri: str = URI) -> s3.Folder:
    return s3.list_folder(s3.connect(uri), uri, is_part, CONTENT)


def ingest(settings: Dataset, output: Path) -> DatasetSummary:
    return dataset.run(settings, output, recordings(output), Reporter(), 1)


def outcome(output: Path) -> tuple[Any, ...]:
    return outcomes.outcome(output, recordings(output))


def refusal(action: Any) -> str:
    with pytest.raises(InputError) as error:
        action()
    message = str(error.value)
    assert "\n" not in message
    assert KEY not in message
    assert SECRET not in message
    return message


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    ingest(DEFAULTS.model_copy(update={"source": "folder", "path": str(source)}), output)
    return output


def test_what_belongs_to_the_folder_arrives_as_it_is(server: str, source: Path, tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []
    assert listed().fetch(tmp_path / "copy", Listener(lambda *call: calls.append(call[:3]))) == tmp_path / "copy"
    assert tree(tmp_path / "copy") == tree(source)
    assert calls == [("fetch", done, len(CLIPS) + 2) for done in range(len(CLIPS) + 3)]


def test_a_bucket_may_be_the_folder(server: str, source: Path, tmp_path: Path) -> None:
    s3_servers.client(server).create_bucket(Bucket="all-of-it")
    s3_servers.upload(server, source, "", "all-of-it")
    for uri in ("s3://all-of-it", "s3://all-of-it/"):
        assert tree(listed(uri).fetch(tmp_path / "copy", Reporter())) == tree(source)


def test_the_same_data_give_the_same_bytes_from_a_folder_and_from_s3(
    server: str, undisturbed: Path, tmp_path: Path
) -> None:
    summary = ingest(config(), tmp_path / "out")
    assert outcome(tmp_path / "out") == outcome(undisturbed)
    assert summary.digest == json.loads((undisturbed / "dataset.json").read_text())["digest"]
    assert sorted(tmp_path.iterdir()) == [tmp_path / "out", recordings(tmp_path / "out")]
    # Taken over by link: what was fetched is not on the disk twice.
    assert all(path.stat().st_nlink == 1 for path in recordings(tmp_path / "out").iterdir())


def test_a_long_listing_has_pages(proxy: Proxy, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PAGE_OBJECTS", 7)
    assert {entry.name: entry.size for entry in listed().objects} == {
        name: len(content) for name, content in tree(source).items()
    }
    assert len(proxy.requests) >= 4


def test_any_change_there_changes_the_works_key(server: str, source: Path, tmp_path: Path) -> None:
    client = s3_servers.client(server)
    s3_servers.upload(server, source, "changing/")
    uri = f"s3://{BUCKET}/changing"
    settings = config(s3=uri)
    before = listed(uri)
    key = dataset.work_key(settings, before)
    assert dataset.work_key(settings, listed(uri)) == key
    content = (source / "audio" / CLIPS[0]).read_bytes()
    client.put_object(Bucket=BUCKET, Key=f"changing/audio/{CLIPS[0]}", Body=content[:-1] + b"!")
    assert dataset.work_key(settings, listed(uri)) != key
    client.delete_object(Bucket=BUCKET, Key=f"changing/audio/{CLIPS[3]}")
    for changed in (CLIPS[0], CLIPS[3]):
        one = replace(before, objects=tuple(entry for entry in before.objects if entry.name == f"audio/{changed}"))
        message = refusal(lambda one=one: one.fetch(tmp_path / "copy", Reporter()))
        assert message.startswith(f"{uri}/audio/{changed}: it was ")
        assert "run again when nobody writes there" in message
    assert tree(tmp_path / "copy") == {}


# Errors ---------------------------------------------------------------------------------------------------------------


def test_no_such_bucket_and_nothing_below_the_prefix(server: str) -> None:
    assert refusal(lambda: listed("s3://no-such-bucket/x")).startswith("s3://no-such-bucket/x: there is no such bucket")
    for uri in (f"s3://{BUCKET}/nowhere", f"s3://{BUCKET}/esc", f"s3://{BUCKET}/esc/us"):
        assert refusal(lambda uri=uri: listed(uri)).startswith(f"{uri}: contains no annotations CSV, taxonomy YAML or")


@pytest.mark.parametrize(
    ("name", "words"), [("AWS_SECRET_ACCESS_KEY", "refuses the secret key"), ("AWS_ACCESS_KEY_ID", "does not know the")]
)
def test_wrong_credentials(servers: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    use(monkeypatch, servers["rclone"], **{name: "WRONG"})
    begun = time.monotonic()
    message = refusal(listed)
    assert time.monotonic() - begun < 5
    assert words in message
    assert "WRONG" not in message


def test_wrong_credentials_on_the_command_line(servers: dict[str, str], tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    params = project.params()
    params["dataset"] |= {"source": "s3", "s3": URI}
    project.write_params(params)
    variables = s3_servers.environment(servers["rclone"], secret="MISTYPED")
    done = project.run("iusp", "dataset", check=False, **variables)
    assert done.returncode == 2
    assert done.stderr.startswith(f"iusp: {URI}: the server refuses the secret key; check AWS_ACCESS_KEY_ID")
    assert done.stderr.count("\n") == 1
    assert "MISTYPED" not in done.stdout + done.stderr
    assert not (project.folder / "data").exists()


@pytest.mark.parametrize("server", ["moto"], indirect=True)  # which does not matter: the proxy answers
@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "AccessDenied", "access is denied; check"),
        (403, "SignatureDoesNotMatch", "refuses the secret key"),
        (403, "InvalidAccessKeyId", "does not know the access key"),
        (403, "RequestTimeTooSkewed", "clock of this machine is wrong"),
        (400, "ExpiredToken", "credentials have expired"),
        (400, "AuthorizationHeaderMalformed", "another region; set AWS_DEFAULT_REGION"),
        (418, f"{SECRET}\n{KEY}", "the server refuses (418, no code)"),
    ],
)
def test_a_refusal_is_told_without_the_servers_words(
    proxy: Proxy, tmp_path: Path, status: int, code: str, words: str
) -> None:
    folder = listed()
    proxy.fault = lambda key, before: Fault(status=status, code=code, message=f"{KEY} {SECRET} of 10.1.2.3")
    for action in (listed, lambda: folder.fetch(tmp_path / "copy", Reporter())):
        message = refusal(action)
        assert words in message
        assert "10.1.2.3" not in message
    assert tree(tmp_path / "copy") == {}


def test_no_credentials(servers: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, servers["moto"])
    forget_credentials(monkeypatch, tmp_path / "empty")
    assert "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in refusal(listed)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    assert "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in refusal(listed)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "AWS_PROFILE" in refusal(listed)


def test_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, f"http://user:{SECRET.replace('/', '')}@127.0.0.1:{free_port()}")
    begun = time.monotonic()
    assert refusal(listed) == f"{URI}: the server cannot be reached; check the network and AWS_ENDPOINT_URL"
    assert time.monotonic() - begun < 15
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"minio:9000 {SECRET}")
    assert "AWS_ENDPOINT_URL is not an address" in refusal(listed)


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_a_server_of_another_kind(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "REQUESTS", 1)
    proxy.fault = lambda key, before: Fault(status=200, code="</html><html>")
    assert "check AWS_ENDPOINT_URL" in refusal(listed)


# Networks -------------------------------------------------------------------------------------------------------------

FIRST = f"{PREFIX}audio/{CLIPS[0]}"
PASSING = {
    "cut": Fault(keep=1000),
    "damaged": Fault(flip=True),
    "stalled": Fault(wait=1.5),
    "server error": Fault(status=500),
    "throttled": Fault(status=503, code="SlowDown"),
}


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_got_over(
    proxy: Proxy, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(s3, "READ_SECONDS", 0.5)
    proxy.fault = lambda key, before: PASSING[fault] if key == FIRST and before < 2 else None
    assert tree(listed().fetch(tmp_path / "copy", Reporter())) == tree(source)
    assert proxy.requests.count(FIRST) == 3


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("cut", f"broke off, {s3.DOWNLOADS} times in a row; run again to continue where it stopped"),
        ("damaged", f"S3's checksum, {s3.DOWNLOADS} times in a row; run again to continue where it stopped"),
        ("throttled", "the server fails (503, SlowDown); run again to continue where it stopped (or check AWS"),
    ],
)
def test_what_stays_is_refused_and_the_rest_is_kept(
    proxy: Proxy, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    monkeypatch.setattr(s3, "THREADS", 2)
    monkeypatch.setattr(s3, "REQUESTS", 2)
    last = f"{PREFIX}audio/{CLIPS[-1]}"
    proxy.fault = lambda key, before: PASSING[fault] if key == last else None
    folder = listed()
    message = refusal(lambda: folder.fetch(tmp_path / "copy", Reporter()))
    assert message.startswith(f"s3://{BUCKET}/{last}: ")
    assert words in message
    kept = tree(tmp_path / "copy")
    assert f"audio/{CLIPS[-1]}" not in kept
    assert len(kept) >= len(CLIPS) - 2
    assert not list(tmp_path.rglob("*.part"))
    proxy.requests.clear()
    proxy.fault = lambda key, before: None
    assert tree(folder.fetch(tmp_path / "copy", Reporter())) == tree(source)
    assert set(proxy.requests) == {PREFIX + name for name in tree(source)} - {PREFIX + name for name in kept}


def test_an_object_without_s3s_checksum_is_verified_by_its_etag(proxy: Proxy, tmp_path: Path) -> None:
    folder = listed()
    entry = next(entry for entry in folder.objects if entry.name == f"audio/{CLIPS[0]}")
    one = replace(folder, objects=(entry,))
    hidden = {"x-amz-checksum-crc32": ""}
    proxy.fault = lambda key, before: Fault(flip=True, headers=hidden)
    assert "the ETag's MD5" in refusal(lambda: one.fetch(tmp_path / "copy", Reporter()))


def test_what_only_the_size_can_verify_is_counted(
    servers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, servers["moto"])
    content = os.urandom(6 * 2**20)
    in_parts = TransferConfig(multipart_threshold=2**20, multipart_chunksize=5 * 2**20)
    client = s3_servers.client(servers["moto"])
    client.upload_fileobj(io.BytesIO(content), BUCKET, "parts/audio/large.wav", Config=in_parts)
    messages: list[str] = []
    folder = listed(f"s3://{BUCKET}/parts").fetch(
        tmp_path / "copy", Listener(lambda *call: messages.extend(filter(None, call[3:])))
    )
    assert (folder / "audio/large.wav").read_bytes() == content
    assert messages == ["1 objects have no checksum that can be verified, only a size"]


# Runs the step as the command line does.
STEP = """
import sys
from pathlib import Path
from iusp.config.dataset import Dataset
from iusp.reporter import Reporter
from iusp.steps import dataset

if __name__ == "__main__":
    output = Path(sys.argv[2])
    dataset.run(
        Dataset.model_validate_json(sys.argv[1]), output, output.with_name(f"{output.name}-recordings"), Reporter(), 1
    )
"""


def begin(folder: Path, settings: Dataset, output: Path, **environment: str) -> subprocess.Popen[bytes]:
    (folder / "step.py").write_text(STEP)
    command = [sys.executable, folder / "step.py", settings.model_dump_json(by_alias=True), output]
    return subprocess.Popen(command, env=os.environ | environment)


def until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_run_fetches_nothing_twice(proxy: Proxy, undisturbed: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed/out"
    # The last one hangs; a kill -9 then finds it half-way.
    last = f"{PREFIX}audio/{CLIPS[-1]}"
    slow = Fault(wait=20)
    proxy.fault = lambda key, before: slow if key == last and not before else None
    process = begin(tmp_path, config(), output)
    fetched = ".out.work-*/source/**"
    # All but the last are whole, and it has begun.
    until(lambda: len(list(output.parent.glob(f"{fetched}/[!.]*.*"))) == len(CLIPS) + 1)
    until(lambda: len(list(output.parent.glob(f"{fetched}/.*.part"))) == 1)
    process.kill()
    process.wait()
    [work] = output.parent.glob(".out.work-*")
    kept = {name for name in tree(work / "source") if not name.endswith(".part")}
    assert len(kept) == len(CLIPS) + 1
    assert len(list(work.rglob(".*.part"))) == 1

    proxy.requests.clear()
    proxy.fault = lambda key, before: None
    ingest(config(), output)
    assert [key for key in proxy.requests if key] == [last]
    assert outcome(output) == outcome(undisturbed)
    assert sorted(output.parent.iterdir()) == [output, recordings(output)]


# Names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ["audio/../../evil.wav"],
        ["audio/.."],
        ["audio//evil.wav"],
        ["audio/./evil.wav"],
        ["audio/a\\b.wav"],
        ["audio/C:evil.wav"],
        ["audio/new\nline.wav"],
        ["audio/nul\0.wav"],
        [f"audio/{'x' * 300}.wav"],
        ["audio/clip.wav", "audio/Clip.wav"],
        ["audio/é.wav", "audio/é.wav"],
        ["audio/clip.wav", "audio/clip.wav/other.wav"],
    ],
)
def test_names_that_files_cannot_have_are_refused(names: list[str]) -> None:
    names = ["annotations.csv", *names, "audio/good.wav"]
    message = refusal(lambda: s3._check_names(URI, names))
    assert message.startswith(f"{URI}: objects whose names no files can have side by side: 'audio/")
    assert "good.wav" not in message


def test_no_key_leaves_the_folder(servers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, servers["moto"])
    client = s3_servers.client(servers["moto"])
    for key in ("audio/../../evil.wav", "/annotations.csv", "../taxonomy.yaml"):
        client.put_object(Bucket=BUCKET, Key=f"evil/{key}", Body=b"x")
    assert "'audio/../../evil.wav'; rename them" in refusal(lambda: listed(f"s3://{BUCKET}/evil"))


# DVC ------------------------------------------------------------------------------------------------------------------


class Tracked:
    """A git repository whose recordings lie in a DVC remote on S3."""

    def __init__(self, folder: Path, source: Path, endpoint: str) -> None:
        self.folder = folder
        self.endpoint = endpoint
        folder.mkdir()
        self.run("git", "init", "--quiet")
        self.run("dvc", "init", "--quiet")
        self.run("dvc", "remote", "add", "--quiet", "--default", "store", f"s3://{BUCKET}/dvc")
        shutil.copytree(source, folder / "data")
        self.first = self.commit("v1", "data/audio", "data/validate")
        # In its second version a recording is another, and all is tracked by DVC.
        soundfile.write(folder / "data/audio" / CLIPS[0], np.zeros(RATE), RATE)
        for name in ("audio.dvc", "validate.dvc", ".gitignore"):
            (folder / "data" / name).unlink()
        self.run("git", "rm", "--quiet", "--cached", "-r", "data")
        self.second = self.commit("v2", "data")

    def run(self, *command: str) -> str:
        from tests.support.project import environment

        variables = environment() | s3_servers.environment(self.endpoint) | {"DVC_NO_ANALYTICS": "1"}
        done = subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def commit(self, tag: str, *tracked: str) -> str:
        self.run("dvc", "add", *tracked)
        self.run("git", "add", ".")
        self.run("git", "commit", "--quiet", "--message", tag)
        self.run("git", "tag", "--annotate", tag, "--message", tag)
        self.run("dvc", "push")
        return self.run("git", "rev-parse", "HEAD")


@pytest.fixture(scope="module")
def tracked(source: Path, servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    made = Tracked(tmp_path_factory.mktemp("tracked") / "repository", source, servers["moto"])
    # Nothing is found without its remote.
    shutil.rmtree(made.folder / ".dvc/cache")
    shutil.rmtree(made.folder / "data")
    return made


def versioned(tracked: Tracked, revision: str = "v1", **changes: str) -> Dataset:
    place = {"url": str(tracked.folder), "revision": revision, "path": "data"} | changes
    return config(source="dvc", s3=None, dvc=place)


def opened(tracked: Tracked, revision: str, url: str | None = None, path: str = "data") -> dvc_repository.Version:
    return dvc_repository.open_version(url or str(tracked.folder), revision, path)


def test_a_version_gives_the_same_bytes_as_its_folder(
    tracked: Tracked, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, tracked.endpoint)
    calls: list[tuple[Any, ...]] = []
    dataset.run(
        versioned(tracked),
        tmp_path / "out",
        recordings(tmp_path / "out"),
        Listener(lambda *call: calls.append(call)),
        1,
    )
    assert outcome(tmp_path / "out") == outcome(undisturbed)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "out", recordings(tmp_path / "out")]
    assert calls[0] == ("fetch", 0, len(CLIPS) + 2, f"{tracked.folder} at {tracked.first[:10]}")
    assert ("verify", len(CLIPS) + 2, len(CLIPS) + 2, "") in calls


def test_a_revision_is_pinned_to_its_commit(tracked: Tracked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, tracked.endpoint)
    first = opened(tracked, "v1")
    branch = tracked.run("git", "branch", "--show-current")
    second = opened(tracked, branch, url=f"file://{tracked.folder}")
    assert (first.commit, second.commit) == (tracked.first, tracked.second)
    assert set(first.names) == set(second.names)
    assert first.names["annotations.csv"] is None  # by git itself
    assert len(second.names["annotations.csv"] or "") == 32
    assert first.identity != second.identity
    fetched = second.fetch(tmp_path / "copy", Reporter())
    assert soundfile.info(fetched / "audio" / CLIPS[0]).frames == RATE
    assert tree(second.fetch(tmp_path / "copy", Reporter())) == tree(fetched)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"url": "nowhere/at/all"}, "nowhere/at/all: Failed to clone repo 'nowhere/at/all': No git"),
        ({"url": "http://127.0.0.1:9/data.git"}, "http://127.0.0.1:9/data.git: Failed to clone repo"),
        ({"revision": "v3"}, "unknown Git revision 'v3'; correct dataset.dvc"),
        ({"path": "elsewhere"}, "there is no elsewhere in it at v1; correct dataset.dvc"),
        ({"path": "."}, ". at v1 has no annotations CSV, taxonomy YAML or audio; correct dataset.dvc"),
    ],
)
def test_a_version_that_is_not_there(
    tracked: Tracked, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], words: str
) -> None:
    use(monkeypatch, tracked.endpoint)
    message = refusal(lambda: opened(tracked, **({"revision": "v1"} | changes)))
    assert words in message
    assert "/tmp" not in message.replace(str(tracked.folder), "")


def test_a_remote_that_refuses(
    tracked: Tracked, servers: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, servers["rclone"], AWS_SECRET_ACCESS_KEY="WRONG")
    message = refusal(lambda: opened(tracked, "v1"))
    assert "403" in message
    assert "WRONG" not in message
    use(monkeypatch, tracked.endpoint)
    forget_credentials(monkeypatch, tmp_path / "empty")
    assert "credentials" in refusal(lambda: opened(tracked, "v1"))


def test_a_remote_that_lacks_or_damages_files(
    tracked: Tracked, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, tracked.endpoint)
    client = s3_servers.client(tracked.endpoint)
    version = opened(tracked, "v2")
    md5 = version.names[f"audio/{CLIPS[5]}"]
    assert md5
    key = f"dvc/files/md5/{md5[:2]}/{md5[2:]}"
    client.delete_object(Bucket=BUCKET, Key=key)
    message = refusal(lambda: version.fetch(tmp_path / "copy", Reporter()))
    assert CLIPS[5] in message or "more" in message
    assert "check that its DVC remote has them (dvc push), and run again" in message
    assert str(tmp_path) not in message

    content = (source / "audio" / CLIPS[5]).read_bytes()
    client.put_object(Bucket=BUCKET, Key=key, Body=content[:-1] + bytes([content[-1] ^ 1]))
    message = refusal(lambda: version.fetch(tmp_path / "copy", Reporter()))
    assert f"its DVC remote holds damaged files (audio/{CLIPS[5]}); push them again" in message

    client.put_object(Bucket=BUCKET, Key=key, Body=content)
    assert (version.fetch(tmp_path / "copy", Reporter()) / "audio" / CLIPS[5]).read_bytes() == content


def test_a_killed_run_leaves_a_dvc_that_is_waited_for(
    tracked: Tracked, source: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "killed/out"
    with s3_servers.proxying(tracked.endpoint) as proxy:
        use(monkeypatch, proxy.address)
        md5 = hashlib.md5((source / "audio" / CLIPS[-1]).read_bytes()).hexdigest()
        last = f"dvc/files/md5/{md5[:2]}/{md5[2:]}"
        proxy.fault = lambda key, before: Fault(wait=3) if key == last and not before else None
        process = begin(tmp_path, versioned(tracked), output)
        until(lambda: last in proxy.requests)
        process.kill()
        process.wait()
        ingest(versioned(tracked), output)
        objects = [key for key in proxy.requests if "/files/md5/" in key and not key.endswith(".dir")]
        assert len(objects) == len(set(objects)) == len(CLIPS)
    assert outcome(output) == outcome(undisturbed)


# Settings -------------------------------------------------------------------------------------------------------------

PLACE = {"url": "https://example.org/data.git", "revision": "v1", "path": "data"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "s3", "s3": None}, "source s3 needs s3: s3://bucket/prefix"),
        ({"s3": f"s3://{KEY}:{SECRET}@bucket/prefix"}, "s3 must be s3://bucket/prefix, without credentials"),
        ({"s3": "https://bucket.example.org/prefix"}, "s3 must be s3://bucket/prefix"),
        ({"s3": "s3:///prefix"}, "s3 must be s3://bucket/prefix"),
        ({"source": "dvc", "dvc": None}, "source dvc needs dvc: {url: "),
        ({"dvc": {"url": "https://example.org/data.git", "path": "data"}}, "revision"),
        ({"dvc": PLACE | {"url": f"https://user:{SECRET}@example.org/data.git"}}, "url must not contain credentials"),
        ({"dvc": PLACE | {"url": f"https://{KEY}@example.org/data.git"}}, "url must not contain credentials"),
        ({"dvc": PLACE | {"url": f"ssh://git:{SECRET}@example.org/data.git"}}, "url must not contain credentials"),
        ({"dvc": PLACE | {"url": "--config=evil"}}, "url"),
        ({"dvc": PLACE | {"revision": "--config"}}, "revision"),
        ({"dvc": PLACE | {"path": "../data"}}, "relative to its root"),
        ({"dvc": PLACE | {"path": "/etc"}}, "relative to its root"),
    ],
)
def test_settings_that_make_no_source_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as error:
        config(**changes)
    problems = " ".join(f"{detail['loc']} {detail['msg']}" for detail in error.value.errors())
    assert words in problems
    assert SECRET not in problems
    assert KEY not in problems


@pytest.mark.parametrize("url", ["git@example.org:data.git", "ssh://git@example.org:22/data.git", ".", "/a folder/git"])
def test_addresses_without_secrets_are_fine(url: str) -> None:
    assert config(source="dvc", s3=None, dvc=PLACE | {"url": url}).dvc is not None


def test_only_who_reads_s3_imports_boto3() -> None:
    lines = "import sys, iusp.steps.dataset, iusp.sources.dvc_repository; sys.exit('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", lines], check=False).returncode == 0
