"""S3 fails in every way that it is known for, for everything that is read from it or written to it.

Real servers, behind a proxy that does to answers what networks and overloaded services do.
"""

import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from botocore.retries.standard import ExponentialBackoff
from mlflow import MlflowClient

from iusp.cli.console import readable_failures
from iusp.config.dataset import SonycUst
from iusp.device import release
from iusp.io import download, s3
from iusp.registry.versions import fetch_artifacts, register
from iusp.reporter import Reporter
from iusp.sources import sonyc_ust
from tests.support import s3_servers, zenodo
from tests.support.files import tree
from tests.support.project import Tried
from tests.support.releases import MODEL, bucket, content, device_folder, put
from tests.support.s3_servers import BUCKET, KEY, SECRET, Fault, Proxy
from tests.support.sampling import sampled
from tests.support.sonyc_ust import CLIPS, DEV, EVAL, NAMES, ROWS, publish

MANY = 24  # seeded runs in which anything may fail


@dataclass(frozen=True)
class Operation:
    """Something that is done with S3.

    Attributes:
        run: does it.
        whole: tells whether it is done, and right.
        untouched: tells whether everybody sees what was there before.
        requests: that it may make if each fails.
    """

    run: Callable[[], Any]
    whole: Callable[[], bool]
    untouched: Callable[[], bool]
    requests: int


@dataclass(frozen=True)
class Sources:
    """Folders: what is published, and what is there to fetch."""

    devices: list[Path]
    mirror: Path
    recordings: Path


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("sources")
    archives = {
        DEV: {f"audio-dev/{split}/{name}": CLIPS[name] for split in ("train", "validate") for name in NAMES[split]},
        EVAL: {f"audio-eval/test/{name}": CLIPS[name] for name in NAMES["test"]},
    }
    mirror = publish(folder / "mirror", archives, ROWS)
    (mirror / "record.json").write_bytes(zenodo.describe(mirror, 2019))
    (folder / "recordings/audio").mkdir(parents=True)
    for number in range(6):
        (folder / f"recordings/audio/clip{number}.wav").write_bytes(random.Random(number).randbytes(3000))
    devices = [device_folder(folder / str(version), f"version {version}") for version in (1, 2)]
    return Sources(devices, mirror, folder / "recordings")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What boto3 would have waited between requests; nobody waits here."""
    asked: list[float] = []
    genuine = ExponentialBackoff.delay_amount

    def noted(self: Any, context: Any) -> float:
        asked.append(genuine(self, context))
        return 0.0

    monkeypatch.setattr(ExponentialBackoff, "delay_amount", noted)
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(s3, "PAUSE_SECONDS", 0.001)
    return asked


Prepare = Callable[[str, str], Operation]
OPERATIONS = ("release", "fetch", "recordings", "mirror")


@pytest.fixture
def prepare(proxy: Proxy, server: str, sources: Sources, tmp_path: Path, pauses: list[float]) -> Prepare:
    """A function that makes an operation ready, of a kind and in a place of a name."""

    def release_of(prefix: str) -> Operation:
        uri = f"s3://{BUCKET}/{prefix}"
        release.publish(sources.devices[0], MODEL, 1, uri, None, Reporter())

        def latest(version: int) -> bool:
            """What any device would get now."""
            home = tmp_path / f"{prefix}-{version}"
            fetched = release.fetch(uri, home, None, Reporter())
            return fetched.manifest.version == version and content(home / "current") == content(
                sources.devices[version - 1]
            )

        return Operation(
            lambda: release.publish(sources.devices[1], MODEL, 2, uri, None, Reporter()),
            lambda: latest(2),
            lambda: latest(1),
            s3.REQUESTS,
        )

    def fetch_of(prefix: str) -> Operation:
        uri, home = f"s3://{BUCKET}/{prefix}", tmp_path / prefix
        release.publish(sources.devices[1], MODEL, 2, uri, None, Reporter())
        return Operation(
            lambda: release.fetch(uri, home, None, Reporter()),
            lambda: content(home / "current") == content(sources.devices[1]),
            lambda: not (home / "current").exists(),
            s3.REQUESTS,
        )

    def recordings_of(prefix: str) -> Operation:
        uri, target = f"s3://{BUCKET}/{prefix}", tmp_path / prefix
        s3_servers.upload(server, sources.recordings, f"{prefix}/")
        return Operation(
            lambda: s3.list_folder(s3.connect(uri), uri, lambda name: True, "audio").fetch(target, Reporter()),
            lambda: tree(target) == tree(sources.recordings),
            # What has its name is whole.
            lambda: tree(target).items() <= tree(sources.recordings).items(),
            s3.REQUESTS,
        )

    def mirror_of(prefix: str) -> Operation:
        target = tmp_path / prefix / "2019"
        s3_servers.upload(server, sources.mirror, f"{prefix}/")
        settings = SonycUst(version=2019, mirror=f"s3://{BUCKET}/{prefix}", keep=str(target.parent))
        clips = {*(name for split in NAMES for name in NAMES[split])}
        return Operation(
            lambda: sonyc_ust.keep(settings, Reporter()),
            lambda: (
                {path.name: path.read_bytes() for path in settings.folder.rglob("*.wav")}  # type: ignore[union-attr]
                == {name: CLIPS[name] for name in clips}
            ),
            lambda: settings.folder is not None and not settings.folder.exists(),
            s3.REQUESTS * download.FAILURES,
        )

    made = {"release": release_of, "fetch": fetch_of, "recordings": recordings_of, "mirror": mirror_of}

    def ready(kind: str, prefix: str) -> Operation:
        proxy.fault = lambda key, before: None
        operation = made[kind](prefix)
        proxy.requests.clear()
        return operation

    return ready


NEVER = "accepts and never answers"
FAULTS = {
    "answers 500": Fault(status=500),
    "throttles (503 SlowDown)": Fault(status=503, code="SlowDown"),
    "answers 500 after all is done": Fault(status=500, late=True),
    "breaks off without an answer": Fault(status=500, drop=True),
    "breaks off after all is done": Fault(drop=True),
    "breaks off in the midst": Fault(keep=3),
    "sends too little": Fault(shorten=3),
    "sends a wrong bit": Fault(flip=True),
    "sends a wrong checksum": Fault(headers={"x-amz-checksum-crc32": "AAAAAA=="}),
    NEVER: Fault(),
}
STAYING = ("answers 500", "throttles (503 SlowDown)", "breaks off without an answer", "breaks off in the midst")
STAYING += ("sends a wrong bit", NEVER)
OF_BODIES = ("breaks off in the midst", "sends too little", "sends a wrong bit", "sends a wrong checksum")


def one_line(operation: Operation, capsys: pytest.CaptureFixture[str]) -> str:
    """Run it as a command does; return the line that it fails with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended, readable_failures():
        operation.run()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("iusp: ")
    assert KEY not in line
    assert SECRET not in line
    return line


@contextmanager
def failing(proxy: Proxy, name: str, strikes: Callable[[str, int], bool]) -> Iterator[Counter[str]]:
    """Let the proxy fail where `strikes`, asked with a key and how often it was asked for before, says so; count it."""
    struck: Counter[str] = Counter()
    over = threading.Event()

    def fault(key: str, before: int) -> Fault | None:
        # Nothing vouches for the body of a listing, and that of an answer to a PUT says nothing.
        if not strikes(key, before) or (name in OF_BODIES and ("." not in key or key.startswith("PUT "))):
            return None
        struck[key] += 1
        if name != NEVER:
            return FAULTS[name]
        over.wait(60)
        return Fault(status=500, drop=True)

    proxy.fault = fault
    try:
        with pytest.MonkeyPatch.context() as patch:
            if name == NEVER:
                patch.setattr(s3, "READ_SECONDS", 1)
            yield struck
    finally:
        over.set()
        proxy.fault = lambda key, before: None


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_what_passes_is_got_over(proxy: Proxy, prepare: Prepare, pauses: list[float], tried: Tried) -> None:
    times = 0
    for number, name in sampled(enumerate(FAULTS), 4):
        # All of a file of SONYC-UST's that is damaged twice is another file: they are large.
        often = 1 if name in (NEVER, "sends a wrong bit", "sends a wrong checksum") else 2
        for kind in OPERATIONS:
            operation = prepare(kind, f"{kind}-{number}")
            pauses.clear()
            with failing(proxy, name, lambda key, before, often=often: before < often) as struck:
                operation.run()
            assert operation.whole(), f"{kind}: {name}"
            assert set(struck.values()) == {often}, f"{kind}: {name}"
            assert pauses or name in OF_BODIES
            times += struck.total()
    outcome = "the requests are retried with exponential backoff; the result is complete"
    tried(f"S3 fails once or twice for each object, in one of {len(list(sampled(FAULTS, 4)))} ways", times, outcome)


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_what_stays_ends_in_a_line_and_is_never_used(
    proxy: Proxy,
    prepare: Prepare,
    pauses: list[float],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tried: Tried,
) -> None:
    times, most = 0, 0
    for number, name in sampled(enumerate(STAYING), 3):
        for kind in OPERATIONS:
            if name == NEVER:
                monkeypatch.setattr(download, "FAILURES", 2)
            operation = prepare(kind, f"always-{kind}-{number}")
            pauses.clear()
            with failing(proxy, name, lambda key, before: True):
                line = one_line(operation, capsys)
            assert f"s3://{BUCKET}/" in line, line
            asked = max(Counter(proxy.requests).values())
            assert asked <= operation.requests, f"{kind}: {name}: {proxy.requests}"
            # A pause may be twice as long as the one before.
            assert all(pause <= 2 ** (place % (s3.REQUESTS - 1)) for place, pause in enumerate(pauses))
            assert operation.untouched(), f"{kind}: {name}"
            most, times = max(most, asked), times + 1
        operation.run()
        assert operation.whole(), name
    assert s3.REQUESTS == s3.DOWNLOADS == 4
    outcome = f"the command stops with a one-line error after at most {most} requests for each object"
    tried(f"S3 always fails, in one of {len(list(sampled(STAYING, 3)))} ways", times, outcome)


@pytest.mark.parametrize("server", ["moto", "rclone"], indirect=True)
def test_whatever_fails_at_random_the_outcome_is_whole_or_nothing(
    proxy: Proxy,
    prepare: Prepare,
    capsys: pytest.CaptureFixture[str],
    tried: Tried,
    request: pytest.FixtureRequest,
) -> None:
    kinds = [name for name in FAULTS if name != NEVER]
    outcomes: Counter[str] = Counter()
    struck = 0
    for seed in range(MANY // 2):
        likely = (0.1, 0.4, 0.9)[seed % 3]
        operation = prepare(OPERATIONS[seed % 4], f"chance-{seed}")

        def fault(key: str, before: int, seed: int = seed, likely: float = likely) -> Fault | None:
            nonlocal struck
            # The same in whatever order threads ask.
            chance = random.Random(f"{seed} {key} {before}")
            if chance.random() > likely:
                return None
            struck += 1
            return FAULTS[chance.choice(kinds)]

        proxy.fault = fault
        with suppress(SystemExit), readable_failures():
            operation.run()
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) <= 1
        done = not lines
        proxy.fault = lambda key, before: None
        outcomes["whole" if done else "nothing"] += 1
        if not done and not operation.untouched():
            # The release went through, and only the answer was lost.
            assert operation.whole()
        if not done:
            operation.run()
        assert operation.whole(), f"seed {seed}"
    assert outcomes["whole"]
    assert outcomes["nothing"]
    said = (
        f"{outcomes['whole']} operations complete; {outcomes['nothing']} operations stop with a one-line error and "
        "complete when they run again"
    )
    tried(f"S3 ({request.node.callspec.params['server']}) fails at random, {struck} times in total", MANY // 2, said)


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_mlflows_own_storage_in_s3(
    proxy: Proxy,
    server: str,
    sources: Sources,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tried: Tried,
) -> None:
    """MLflow reads and writes it by a boto3 client of its own, which retries with pauses of its own."""
    monkeypatch.setattr("botocore.retryhandler.delay_exponential", lambda *arguments, **options: 0.0)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.create_experiment("iusp", artifact_location=f"s3://{BUCKET}/mlflow")
    student = tmp_path / "student"
    shutil.copytree(sources.devices[0], student / "device")
    (student / "extra_files").mkdir()
    for name in ("weights.safetensors", "config.json"):
        (student / "extra_files" / name).write_text(name)
    run = client.create_run(experiment)
    stays = {name: Fault(status=500) for name in ("500",)} | {"503": Fault(status=503, code="SlowDown")}
    stays |= {"dropped": Fault(status=500, drop=True)}
    times = 0

    def keeping() -> int:
        return register(client, MODEL, run.info.run_id, student, {}, Reporter())

    def fetching() -> int:
        return fetch_artifacts(client, MODEL, 1, "device", tmp_path / "fetched")

    for action, words in ((keeping, "cannot be stored ("), (fetching, "device cannot be fetched (")):
        for fault in stays.values():
            proxy.requests.clear()
            proxy.fault = lambda key, before, fault=fault: fault
            nothing = Operation(action, lambda: True, lambda: True, 10)
            assert words in one_line(nothing, capsys)
            assert max(Counter(proxy.requests).values()) <= nothing.requests
            times += 1
        proxy.fault = lambda key, before: Fault(status=503, code="SlowDown") if before < 2 else None
        assert action() == 1
        proxy.fault = lambda key, before: None
    assert len(client.search_model_versions(f"name = '{MODEL}'")) == 1
    assert content(tmp_path / "fetched/device") == content(sources.devices[0])
    # What the storage has damaged is not released.
    damaged = next(name for name in bucket(server, "mlflow") if name.endswith("device/int8.onnx"))
    put(server, f"mlflow/{damaged}", b"damaged")
    shutil.rmtree(tmp_path / "fetched")
    fetching()
    uri = f"s3://{BUCKET}/from-mlflow"
    refuses = Operation(
        lambda: release.publish(tmp_path / "fetched/device", MODEL, 1, uri, None, Reporter()),
        lambda: True,
        lambda: True,
        0,
    )
    assert "device.json does not describe 'int8.onnx'" in one_line(refuses, capsys)
    assert bucket(server, "from-mlflow") == {}
    outcome = "the command stops with a one-line error; nothing is released"
    tried("MLflow's own storage in S3 always fails, or its content is damaged", times + 1, outcome)
