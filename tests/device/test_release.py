"""From the registry to a device through real S3 servers: interrupted, raced, corrupted, hostile, offline."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mlflow import MlflowClient

from iusp.device import release
from iusp.device.release import LATEST, Fetched, Manifest
from iusp.errors import InputError
from iusp.io import s3
from iusp.io.files import sha256
from iusp.registry.versions import fetch_artifacts
from iusp.reporter import Reporter
from tests.support import s3_servers
from tests.support.local_servers import environment, free_port
from tests.support.project import ROOT
from tests.support.releases import MODEL, NAMES, bucket, content, device_folder, put
from tests.support.s3_servers import BUCKET, KEY, SECRET, Fault, Proxy, use

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of three versions; version n is at n - 1."""
    folder = tmp_path_factory.mktemp("devices")
    return [device_folder(folder / str(version), f"version {version}") for version in (1, 2, 3)]


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A place in the bucket for each test."""
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name)


@pytest.fixture
def uri(prefix: str) -> str:
    return f"s3://{BUCKET}/{prefix}"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where a device keeps its releases."""
    return tmp_path / "device"


def publish(devices: list[Path], version: int, uri: str, key: Path | None = None) -> Manifest:
    return release.publish(devices[version - 1], MODEL, version, uri, key, Reporter())


def fetch(uri: str, home: Path, key: Path | None = None) -> Fetched:
    return release.fetch(uri, home, key, Reporter())


def refusal(action: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as error:
        action()
    message = str(error.value)
    assert message.isprintable()
    assert KEY not in message
    assert SECRET not in message
    return message


def iusp(*arguments: str | Path, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    env = environment() | aws | variables
    return subprocess.run(["iusp", *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False)


def killed_when(reached: Callable[[], bool], code: str, *arguments: str | Path) -> None:
    """Run Python code in a process of its own, and kill it at a point that it cannot see coming."""
    process = subprocess.Popen([sys.executable, "-c", f"import sys; from pathlib import Path; {code}", *arguments])
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


# By hand --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry(devices: list[Path], tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    """A real registry with three versions, of which the second is the champion and the third lacks its files."""
    folder = tmp_path_factory.mktemp("registry")
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.create_experiment("iusp", artifact_location=(folder / "artifacts").as_uri())
    client.create_registered_model(MODEL)
    for version in (1, 2, 3):
        run = client.create_run(experiment)
        student = folder / "students" / str(version)
        (student / "evaluation").mkdir(parents=True)
        rows = "".join(f"{clip}.wav,{clip / 60}\n" for clip in range(60))
        (student / "evaluation/predictions.csv").write_text(f"audio_filename,1_engine\n{rows}")
        if version != 3:
            shutil.copytree(devices[version - 1], student / "device")
        client.log_artifacts(run.info.run_id, str(student), "student")
        client.create_model_version(MODEL, f"{run.info.artifact_uri}/student", run.info.run_id)
    client.set_registered_model_alias(MODEL, "champion", "2")
    return client


def test_the_champion_reaches_a_device_by_two_commands(
    server: str, registry: MlflowClient, devices: list[Path], uri: str, home: Path
) -> None:
    done = iusp("release", "--to", uri, MLFLOW_TRACKING_URI=registry.tracking_uri)
    assert done.returncode == 0, done.stderr
    assert f"{uri}: latest is {MODEL} version 2, 5 files in 2-" in done.stdout
    for word in ("new", "unchanged"):
        done = iusp("fetch", uri, "--to", home)
        assert done.returncode == 0, done.stderr
        assert f"{home}/current: {MODEL} version 2 of 20" in done.stdout
        assert done.stdout.endswith(f", {word}\n")
    assert content(home / "current") == content(devices[1])


def test_artifacts_are_those_of_the_alias_or_the_version(
    registry: MlflowClient, devices: list[Path], tmp_path: Path
) -> None:
    assert fetch_artifacts(registry, MODEL, "champion", "device", tmp_path / "two") == 2
    assert content(tmp_path / "two/device") == content(devices[1])
    for version in (1, "1"):
        assert fetch_artifacts(registry, MODEL, version, "device/device.json", tmp_path / "one") == 1
    assert list((tmp_path / "one/device").iterdir()) == [tmp_path / "one/device/device.json"]


def test_the_champion_is_what_new_scores_are_compared_with(registry: MlflowClient, tmp_path: Path) -> None:
    rows = "".join(f"{clip}.wav,{0.3 + clip / 100}\n" for clip in range(60))
    (tmp_path / "new.csv").write_text(f"audio_filename,1_engine\n{rows}")
    done = iusp("monitor", tmp_path / "new.csv", "--json", MLFLOW_TRACKING_URI=registry.tracking_uri)
    assert done.returncode == 1, done.stderr
    (engine,) = json.loads(done.stdout)
    assert engine["threshold"] == 0.4
    assert engine["reference"]["count"] == 60
    assert (engine["reference"]["above"], engine["new"]["above"]) == (0.6, pytest.approx(50 / 60))


@pytest.mark.parametrize(
    ("model", "version", "path", "words"),
    [
        (MODEL, "nobody", "device", f"{MODEL}: has no version or alias nobody; register or promote one first"),
        (MODEL, 9, "device", f"{MODEL}: has no version or alias 9"),
        ("nothing", "champion", "device", "nothing: has no version or alias champion"),
        (MODEL, 3, "device", f"{MODEL} version 3: has no artifact device; run the evaluation"),
        (MODEL, 3, "device/device.json", f"{MODEL} version 3: has no artifact device/device.json"),
    ],
)
def test_what_is_not_in_the_registry_is_one_line(
    registry: MlflowClient, tmp_path: Path, model: str, version: str | int, path: str, words: str
) -> None:
    assert words in refusal(lambda: fetch_artifacts(registry, model, version, path, tmp_path))


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_artifacts_that_cannot_be_fetched_are_not_said_to_be_missing(
    server: str, registry: MlflowClient, tmp_path: Path
) -> None:
    registry.create_registered_model("elsewhere")
    registry.create_model_version("elsewhere", "s3://no-such-bucket/student")
    message = refusal(lambda: fetch_artifacts(registry, "elsewhere", 1, "device", tmp_path))
    assert message.startswith("elsewhere version 1: device cannot be fetched (")
    assert "The specified bucket does not exist" in message
    assert message.endswith("); check MLflow's artifact storage")


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_without_a_champion_nothing_is_released(server: str, uri: str, prefix: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    done = iusp("release", "--to", uri, cwd=tmp_path)
    assert done.returncode == 2
    assert "iusp: there is no registry: sqlite:///mlflow.db does not exist; run the pipeline" in done.stderr
    assert not (tmp_path / "mlflow.db").exists()
    create = "from iusp.registry.tracking import connect_or_create; connect_or_create().search_registered_models()"
    subprocess.run([sys.executable, "-c", create], cwd=tmp_path, env=environment(), check=True)
    done = iusp("release", "--to", uri, cwd=tmp_path)
    assert done.returncode == 2
    assert f"iusp: MLflow has no registered model {MODEL}; run the registration step" in done.stderr
    assert bucket(server, prefix) == {}


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_fetch_needs_neither_torch_nor_mlflow(server: str, devices: list[Path], uri: str, home: Path) -> None:
    publish(devices, 1, uri)
    code = (
        "import sys; from iusp.cli.main import main; main(sys.argv[1:], standalone_mode=False);"
        "print({'torch', 'mlflow', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, "fetch", uri, "--to", home], capture_output=True, text=True)
    assert done.stdout.endswith("set()\n"), done.stderr


# What a release is ----------------------------------------------------------------------------------------------------


def test_released_and_fetched_and_again(proxy: Proxy, devices: list[Path], uri: str, prefix: str, home: Path) -> None:
    manifests = {}
    for version in (1, 2, 3):
        manifests[version] = publish(devices, version, uri)
        assert fetch(uri, home) == Fetched(manifests[version], "new")
        assert content(home / "current") == content(devices[version - 1])
        if version > 1:
            assert content(home / "previous") == content(devices[version - 2])
    written = [key for key in proxy.requests if key.startswith("PUT ")]
    assert written[-1] == written[5] == written[11] == f"PUT {prefix}/{LATEST}"
    assert written.count(written[-1]) == 3
    # Two releases are kept, and nothing else.
    assert {path.name for path in home.iterdir()} == {
        ".lock", "current", "previous", manifests[2].folder, manifests[3].folder,
    }  # fmt: skip
    # Version 2 is released again, and is here already: no file is fetched twice.
    again = publish(devices, 2, uri)
    assert again.folder == manifests[2].folder
    proxy.requests.clear()
    assert fetch(uri, home).state == "new"
    assert proxy.requests == [f"{prefix}/{LATEST}"]
    assert content(home / "current") == content(devices[1])
    assert content(home / "previous") == content(devices[2])
    # What the disk has damaged is fetched anew, and is not kept as the one before.
    (home / "current/int8.onnx").write_bytes(b"damaged")
    assert fetch(uri, home).state == "new"
    assert content(home / "current") == content(devices[1])
    assert content(home / "previous") == content(devices[2])


def test_the_manifest_says_what_is_there(server: str, devices: list[Path], uri: str, prefix: str) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    publish(devices, 1, uri)
    there = bucket(server, prefix)
    manifest = json.loads(there.pop(LATEST))
    assert before <= datetime.fromisoformat(manifest["created"]) <= datetime.now(UTC)
    assert (manifest["model"], manifest["version"]) == (MODEL, 1)
    assert set(manifest["files"]) == {*NAMES, "device.json"}
    for name, file in manifest["files"].items():
        path = devices[0] / name
        assert file == {"sha256": sha256(path), "bytes": path.stat().st_size}
    (folder,) = {name.partition("/")[0] for name in there}
    assert folder.startswith("1-")
    assert {name.partition("/")[2]: body for name, body in there.items()} == content(devices[0])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "int8.onnx").write_bytes(b"another"),
        lambda folder: (folder / "int8.onnx").unlink(),
        lambda folder: (folder / "more.onnx").write_bytes(b"more"),
    ],
)
@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_what_device_json_does_not_describe_is_not_released(
    server: str, devices: list[Path], uri: str, prefix: str, tmp_path: Path, spoil: Callable[[Path], Any]
) -> None:
    shutil.copytree(devices[0], tmp_path / "copy")
    spoil(tmp_path / "copy")
    message = refusal(lambda: release.publish(tmp_path / "copy", MODEL, 1, uri, None, Reporter()))
    assert message.startswith("device.json does not describe '")
    assert bucket(server, prefix) == {}


@pytest.mark.parametrize("address", ["bucket/prefix", "s3://", "s3://B/x", "https://example.org/x", "s3://user:p@b/x"])
def test_an_address_that_is_none(devices: list[Path], home: Path, address: str) -> None:
    for action in (lambda: publish(devices, 1, address), lambda: fetch(address, home)):
        assert refusal(action) == "the address must be s3://bucket/prefix, without credentials; correct it"


# Interruptions --------------------------------------------------------------------------------------------------------

PUBLISH = (
    "from iusp.device.release import publish; from iusp.reporter import Reporter;"
    "publish(Path(sys.argv[1]), 'iusp-student', 2, sys.argv[2], None, Reporter())"
)
FETCH = (
    "from iusp.device.release import fetch; from iusp.reporter import Reporter;"
    "fetch(sys.argv[1], Path(sys.argv[2]), None, Reporter())"
)


@pytest.mark.parametrize("point", [0, 3, 5])  # of six files that are written; the last is latest.json
def test_a_killed_release_leaves_the_one_before_and_is_repeated(
    proxy: Proxy, server: str, devices: list[Path], uri: str, prefix: str, home: Path, point: int
) -> None:
    publish(devices, 1, uri)
    proxy.requests.clear()
    reached, go_on = threading.Event(), threading.Event()

    def fault(key: str, before: int) -> Fault | None:
        if sum(one.startswith("PUT ") for one in proxy.requests) == point + 1 and not reached.is_set():
            reached.set()
            go_on.wait(60)
            return Fault(status=500)
        return None

    proxy.fault = fault
    killed_when(reached.is_set, PUBLISH, devices[1], uri)
    go_on.set()
    there = bucket(server, prefix)
    assert json.loads(there[LATEST])["version"] == 1
    assert len(there) == 1 + 5 + point
    assert fetch(uri, home).manifest.version == 1
    publish(devices, 2, uri)
    assert fetch(uri, home).manifest.version == 2
    assert content(home / "current") == content(devices[1])


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_a_release_whose_answer_was_lost_is_no_other_one(
    proxy: Proxy, devices: list[Path], uri: str, prefix: str, home: Path
) -> None:
    publish(devices, 1, uri)
    last = f"PUT {prefix}/{LATEST}"
    proxy.fault = lambda key, before: Fault(status=503, late=True) if key == last and before == 1 else None
    assert publish(devices, 2, uri).version == 2
    assert proxy.requests.count(last) == 3
    assert fetch(uri, home).manifest.version == 2


@pytest.mark.parametrize("point", [LATEST, "LICENSE", "int8.onnx"])
@pytest.mark.parametrize("server", ["rclone"], indirect=True)
def test_a_killed_fetch_leaves_the_current_release_and_goes_on(
    proxy: Proxy, devices: list[Path], uri: str, home: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(devices, 1, uri)
    fetch(uri, home)
    manifest = publish(devices, 2, uri)
    proxy.requests.clear()
    reached, go_on = threading.Event(), threading.Event()

    def fault(key: str, before: int) -> Fault | None:
        if key.endswith(f"/{point}"):
            reached.set()
            go_on.wait(60)
        return None

    proxy.fault = fault
    work = home / f".{manifest.folder}.work-{manifest.folder[2:]}"

    def others_are_there() -> bool:
        return reached.is_set() and (point == LATEST or len(content(work)) == 4)

    killed_when(others_are_there, FETCH, uri, home)
    go_on.set()
    assert content(home / "current") == content(devices[0])
    # Files that arrived whole, but are damaged since, are fetched anew.
    if point == "LICENSE":
        (work / "int8.onnx").write_bytes(b"damaged")
    proxy.fault = lambda key, before: None
    proxy.requests.clear()
    assert fetch(uri, home) == Fetched(manifest, "new")
    assert content(home / "current") == content(devices[1])
    assert content(home / "previous") == content(devices[0])
    fetched = {key.rpartition("/")[2] for key in proxy.requests} - {LATEST, ""}
    assert fetched == {
        LATEST: {*NAMES, "device.json"}, "LICENSE": {"LICENSE", "int8.onnx"}, "int8.onnx": {"int8.onnx"},
    }[point]  # fmt: skip
    assert {path.name[0] for path in home.iterdir()} == {".", "c", "p", "1", "2"}
    assert not list(home.rglob("*.part"))


@pytest.mark.parametrize("server", ["moto"], indirect=True)
@pytest.mark.parametrize("step", ["previous", "current"])
def test_a_swap_that_breaks_off_is_completed(
    server: str, devices: list[Path], uri: str, home: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in (1, 2):
        publish(devices, version, uri)
        fetch(uri, home)
    publish(devices, 3, uri)
    point = release._point

    def breaks_off(link: Path, target: Path) -> None:
        if link.name == step:
            raise KeyboardInterrupt
        point(link, target)

    monkeypatch.setattr(release, "_point", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        fetch(uri, home)
    monkeypatch.setattr(release, "_point", point)
    assert content(home / "current") == content(devices[1])
    assert fetch(uri, home).state == "new"
    assert content(home / "current") == content(devices[2])
    assert content(home / "previous") == content(devices[1])


# Two at once ----------------------------------------------------------------------------------------------------------


def test_two_releases_at_once(
    proxy: Proxy, server: str, devices: list[Path], uri: str, prefix: str, home: Path, request: pytest.FixtureRequest
) -> None:
    publish(devices, 1, uri)
    both = threading.Barrier(2)

    def fault(key: str, before: int) -> Fault | None:
        # Each has read latest.json before any has written it.
        if key == f"{prefix}/{LATEST}" and before in (1, 2):
            both.wait(60)
        return None

    proxy.fault = fault

    def attempt(version: int) -> str:
        try:
            return str(publish(devices, version, uri).version)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(attempt, (2, 3)))
    there = bucket(server, prefix)
    assert len(there) == 1 + 3 * 5
    won = json.loads(there[LATEST])["version"]
    if "moto" in request.node.name:
        assert str(won) in outcomes
        (lost,) = set(outcomes) - {str(won)}
        assert lost.startswith(f"{uri}/{LATEST}: another release was published at the same time")
    else:
        assert outcomes == ["2", "3"]
    assert fetch(uri, home).manifest.version == won
    assert content(home / "current") == content(devices[won - 1])


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_two_fetches_at_once_do_not_meet(proxy: Proxy, devices: list[Path], uri: str, prefix: str, home: Path) -> None:
    publish(devices, 1, uri)
    messages = []

    def fault(key: str, before: int) -> Fault | None:
        if key == f"{prefix}/{LATEST}" and not messages:
            messages.append(refusal(lambda: fetch(uri, home)))
        return None

    proxy.fault = fault
    assert fetch(uri, home).state == "new"
    assert messages == [f"{home}: another iusp fetch uses this folder; wait for it"]


# What is refused ------------------------------------------------------------------------------------------------------


def test_a_corrupted_object_is_refused_and_current_stays(
    server: str, devices: list[Path], uri: str, prefix: str, home: Path
) -> None:
    publish(devices, 1, uri)
    fetch(uri, home)
    manifest = publish(devices, 2, uri)
    key = f"{prefix}/{manifest.folder}/int8.onnx"
    whole = (devices[1] / "int8.onnx").read_bytes()
    for damaged, words in (
        (b"X" + whole[1:], "SHA-256 differs from the manifest; delete it and publish the release again"),
        (whole[:-1], f"has {len(whole) - 1} of {len(whole)} bytes; publish the release again"),
    ):
        put(server, key, damaged)
        for _ in range(2):
            assert refusal(lambda: fetch(uri, home)) == f"s3://{BUCKET}/{key}: {words}"
        assert content(home / "current") == content(devices[0])
        assert fetch_current_offline(home) == 1
    if "moto" in prefix:  # rclone writes over it, with what belongs there
        message = refusal(lambda: publish(devices, 2, uri))
        assert message.startswith(f"s3://{BUCKET}/{key}: ")
    s3_servers.client(server).delete_object(Bucket=BUCKET, Key=key)
    message = refusal(lambda: fetch(uri, home))
    assert message == f"s3://{BUCKET}/{key}: has 0 of {len(whole)} bytes; publish the release again"
    publish(devices, 2, uri)
    assert fetch(uri, home).manifest.version == 2


def fetch_current_offline(home: Path) -> int:
    """Return the version that is whole on the device."""
    found = release._current(home)
    assert found
    return found.version


@pytest.mark.parametrize("server", ["rclone"], indirect=True)  # moto keeps no SHA-256
def test_what_the_network_damages_is_fetched_again_or_refused(
    proxy: Proxy, devices: list[Path], uri: str, home: Path
) -> None:
    publish(devices, 1, uri)
    proxy.fault = lambda key, before: Fault(flip=True)
    assert f"S3's checksum, {s3.DOWNLOADS} times in a row" in refusal(lambda: fetch(uri, home))
    proxy.requests.clear()
    proxy.fault = lambda key, before: Fault(flip=True) if key and before < 2 else None
    fetch(uri, home)
    assert content(home / "current") == content(devices[0])


@pytest.mark.parametrize("server", ["rclone"], indirect=True)  # moto checks no signature
def test_wrong_credentials(
    server: str, devices: list[Path], uri: str, home: Path, registry: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(devices, 1, uri)
    fetch(uri, home)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "MISTYPED")
    for done in (
        iusp("release", "--to", uri, MLFLOW_TRACKING_URI=registry.tracking_uri),
        iusp("fetch", uri, "--to", home),
    ):
        assert done.returncode == 2
        assert done.stderr.startswith(f"iusp: {uri}/{LATEST}: the server refuses the secret key; check AWS_ACCESS_KEY")
        assert done.stderr.count("\n") == 1
        assert "MISTYPED" not in done.stdout + done.stderr
    assert content(home / "current") == content(devices[0])


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_no_bucket_and_no_release(server: str, devices: list[Path], home: Path) -> None:
    assert refusal(lambda: fetch(f"s3://{BUCKET}/none", home)) == (
        f"s3://{BUCKET}/none/{LATEST}: there is no release; publish one with iusp release, or correct the address"
    )
    for action in (lambda: fetch("s3://no-bucket/x", home), lambda: publish(devices, 1, "s3://no-bucket/x")):
        assert refusal(action).startswith(f"s3://no-bucket/x/{LATEST}: there is no such bucket; correct the address")


GOOD = {"sha256": "0" * 64, "bytes": 1}
HOSTILE_NAMES = (
    "../x", "/etc/x", "a/b", "a\\b", "..\\x", "..", ".", "", ".bashrc", "C:x", LATEST, "x\x1b[31m", "x\n", "x" * 300,
)  # fmt: skip
MALFORMED: dict[str, Any] = {
    **{f"name {name[:9]!r}": {"files": {name: GOOD, "device.json": GOOD}} for name in HOSTILE_NAMES},
    "no files": {"files": {}},
    "files are a list": {"files": ["a"]},
    "negative size": {"files": {"a": {"sha256": "0" * 64, "bytes": -1}}},
    "no digest": {"files": {"a": {"sha256": "../../x", "bytes": 1}}},
    "more keys": {"folder": "../../x"},
    "a version that is text": {"version": "../../x"},
    "version zero": {"version": 0},
    "no time": {"created": "2026-01-01T00:00:00Z\n\x1b[2J"},
}


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_a_manifest_is_never_trusted(
    server: str, devices: list[Path], uri: str, prefix: str, home: Path, tmp_path: Path
) -> None:
    good = publish(devices, 1, uri).model_dump(exclude={"signature"})
    fetch(uri, home)
    before = sorted(tmp_path.rglob("*"))
    contents = {name: json.dumps(good | changes).encode() for name, changes in MALFORMED.items()}
    contents |= {"no JSON": b"{", "a list": b"[]", "nothing": b"", "bytes": b"\xff\xfe", "deep": b"[" * 10**5}
    contents["missing"] = json.dumps({"version": 2}).encode()
    for name, body in contents.items():
        put(server, f"{prefix}/{LATEST}", body)
        message = refusal(lambda: fetch(uri, home))
        assert message.startswith(f"{uri}/{LATEST}: is not a valid release ("), name
    put(server, f"{prefix}/{LATEST}", b" " * (release.MANIFEST_BYTES + 1))
    assert "is larger than 1,048,576 bytes" in refusal(lambda: fetch(uri, home))
    # Names that are one file on some systems.
    both = Manifest.model_validate(good | {"files": {"A.onnx": GOOD, "a.onnx": GOOD}})
    for name in both.files:
        put(server, f"{prefix}/{both.folder}/{name}", b"x")
    put(server, f"{prefix}/{LATEST}", both.model_dump_json(exclude_none=True).encode())
    assert "names no files can have side by side" in refusal(lambda: fetch(uri, home))
    work = [path for path in tmp_path.rglob("*") if ".work-" in str(path)]
    assert sorted(tmp_path.rglob("*")) == sorted([*before, *work])
    assert content(home / "current") == content(devices[0])


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_links_on_the_device_lead_nowhere_else(
    server: str, devices: list[Path], uri: str, home: Path, tmp_path: Path
) -> None:
    """A folder of a release that somebody has replaced by a link is not written through, nor removed."""
    manifest = publish(devices, 1, uri)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/kept").write_text("mine")
    home.mkdir()
    (home / "9-0123456789abcdef").symlink_to(tmp_path / "elsewhere")
    assert fetch(uri, home).manifest == manifest
    assert content(tmp_path / "elsewhere") == {"kept": b"mine"}
    (home / "current").unlink()
    (home / "current").mkdir()
    done = iusp("fetch", uri, "--to", home)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "current" in done.stderr


# Signatures -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key pairs `mine` and `theirs`, and keys that are of no use."""
    folder = tmp_path_factory.mktemp("keys")
    plain, pem = serialization.NoEncryption(), serialization.Encoding.PEM
    private, public = serialization.PrivateFormat.PKCS8, serialization.PublicFormat.SubjectPublicKeyInfo
    for name in ("mine", "theirs"):
        key = Ed25519PrivateKey.generate()
        (folder / f"{name}.key").write_bytes(key.private_bytes(pem, private, plain))
        (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(pem, public))
    encrypted = serialization.BestAvailableEncryption(b"password")
    (folder / "encrypted.key").write_bytes(key.private_bytes(pem, private, encrypted))
    other = rsa.generate_private_key(65537, 2048)
    (folder / "rsa.key").write_bytes(other.private_bytes(pem, private, plain))
    (folder / "rsa.pub").write_bytes(other.public_key().public_bytes(pem, public))
    for name in ("text.key", "text.pub"):
        (folder / name).write_text("no key")
    return folder


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_only_what_is_signed_with_the_key_is_taken(
    server: str, devices: list[Path], uri: str, prefix: str, home: Path, keys: Path
) -> None:
    publish(devices, 1, uri)
    unsigned = bucket(server, prefix)[LATEST]
    refused = f"{uri}/{LATEST}: is not signed with the key of {keys / 'mine.pub'}; do not trust it"
    assert refusal(lambda: fetch(uri, home, keys / "mine.pub")) == refused
    publish(devices, 1, uri, keys / "theirs.key")
    assert refusal(lambda: fetch(uri, home, keys / "mine.pub")) == refused
    publish(devices, 1, uri, keys / "mine.key")
    signed = bucket(server, prefix)[LATEST]
    assert fetch(uri, home, keys / "mine.pub").state == "new"
    other = json.loads(unsigned) | {"signature": json.loads(signed)["signature"]}
    for changes in ({"version": 2}, {"files": {"device.json": GOOD}}, {"signature": "no base64"}, {"signature": ""}):
        put(server, f"{prefix}/{LATEST}", json.dumps(json.loads(signed) | changes).encode())
        assert refusal(lambda: fetch(uri, home, keys / "mine.pub")) == refused
    # How it is written makes no difference; when it was made does.
    put(server, f"{prefix}/{LATEST}", json.dumps(dict(reversed(json.loads(signed).items()))).encode())
    assert fetch(uri, home, keys / "mine.pub").state == "same"
    put(server, f"{prefix}/{LATEST}", json.dumps(other | {"created": "2020-01-01T00:00:00Z"}).encode())
    assert refusal(lambda: fetch(uri, home, keys / "mine.pub")) == refused
    # openssl agrees on what is signed.
    (home / "signed").write_bytes(Manifest.model_validate_json(signed).signed)
    (home / "signature").write_bytes(base64.b64decode(json.loads(signed)["signature"]))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-rawin", "-inkey"]
    files = [keys / "mine.pub", "-in", home / "signed", "-sigfile", home / "signature"]
    assert b"Verified Successfully" in subprocess.run([*command, *files], capture_output=True, check=True).stdout


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_an_old_release_is_not_replayed(
    server: str, devices: list[Path], uri: str, prefix: str, home: Path, keys: Path
) -> None:
    key = Ed25519PrivateKey.from_private_bytes(
        serialization.load_pem_private_key((keys / "mine.key").read_bytes(), None).private_bytes_raw()
    )
    publish(devices, 2, uri, keys / "mine.key")
    fetch(uri, home, keys / "mine.pub")
    manifest = publish(devices, 1, uri)
    created = datetime.fromisoformat(manifest.created) - timedelta(hours=1)
    old = manifest.model_copy(update={"created": created.strftime("%Y-%m-%dT%H:%M:%SZ"), "signature": None})
    signature = base64.b64encode(key.sign(old.signed)).decode()
    put(server, f"{prefix}/{LATEST}", old.model_copy(update={"signature": signature}).model_dump_json().encode())
    assert "is older than the current release" in refusal(lambda: fetch(uri, home, keys / "mine.pub"))
    assert content(home / "current") == content(devices[1])
    # Released anew, an older version is taken.
    publish(devices, 1, uri, keys / "mine.key")
    assert fetch(uri, home, keys / "mine.pub").manifest.version == 1


@pytest.mark.parametrize("name", ["encrypted", "rsa", "text"])
def test_keys_that_are_of_no_use(devices: list[Path], uri: str, home: Path, keys: Path, name: str) -> None:
    private, public = keys / f"{name}.key", keys / f"{name}.pub"
    message = refusal(lambda: publish(devices, 1, uri, private))
    assert message == f"{private}: is not an unencrypted private Ed25519 key in PEM; create one with openssl genpkey"
    if name != "encrypted":
        message = refusal(lambda: fetch(uri, home, public))
        assert message == f"{public}: is not a public Ed25519 key in PEM; write it with openssl pkey -pubout"


# Offline --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_offline_a_device_works_with_what_it_has(
    server: str, devices: list[Path], uri: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(devices, 1, uri)
    nowhere = f"http://127.0.0.1:{free_port()}"
    done = iusp("fetch", uri, "--to", home, AWS_ENDPOINT_URL=nowhere)
    assert done.returncode == 2
    assert done.stderr == (
        f"iusp: {uri}/{LATEST}: the server cannot be reached; check the network and AWS_ENDPOINT_URL; and there is no "
        f"complete release in {home}\n"
    )
    fetch(uri, home)
    publish(devices, 2, uri)
    done = iusp("fetch", uri, "--to", home, AWS_ENDPOINT_URL=nowhere)
    assert done.returncode == 0
    assert done.stderr == (
        f"iusp: {uri}/{LATEST}: the server cannot be reached; check the network and AWS_ENDPOINT_URL; the current "
        "release stays in use\n"
    )
    assert done.stdout.startswith(f"{home}/current: {MODEL} version 1 of 20")
    assert content(home / "current") == content(devices[0])
    # What the disk has lost is no release to work with; online, it is fetched anew.
    (home / "current/int8.onnx").write_bytes(b"damaged")
    use(monkeypatch, nowhere)
    assert "there is no complete release" in refusal(lambda: fetch(uri, home))
    use(monkeypatch, server)
    publish(devices, 1, uri)
    assert fetch(uri, home).state == "new"
    assert content(home / "current") == content(devices[0])


@pytest.mark.parametrize("server", ["moto"], indirect=True)
@pytest.mark.parametrize("point", [LATEST, "", "int8.onnx"])
def test_a_server_that_fails_is_as_good_as_none(
    proxy: Proxy, devices: list[Path], uri: str, home: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "REQUESTS", 1)
    publish(devices, 1, uri)
    fetch(uri, home)
    publish(devices, 2, uri)
    proxy.fault = lambda key, before: Fault(status=503, code="SlowDown") if key.rpartition("/")[2] == point else None
    fetched = fetch(uri, home)
    assert (fetched.state, fetched.manifest.version) == ("offline", 1)
    assert "the server fails (503, SlowDown)" in fetched.reason
    assert content(home / "current") == content(devices[0])
