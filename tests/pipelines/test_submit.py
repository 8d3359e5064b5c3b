"""Submitting to Kubeflow Pipelines, over real HTTP to a server that keeps its contract; it is no cluster."""

import datetime
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kfp
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from kfp import compiler, dsl

from iusp.errors import InputError
from pipelines import submit as module
from pipelines.submit import Cluster, RunFailedError, Submission, submit
from tests.support.kubeflow_api import Failure, KubeflowApi, Progress
from tests.support.local_servers import environment, heed_interrupts
from tests.support.project import ROOT

pytestmark = pytest.mark.integration

SECRET = "s3cr3t.t0ken"
PASSWORD = "pa55word"


def two_tasks(message: str = "hello") -> Any:
    """A pipeline with a task, and one in a loop."""

    @dsl.component(base_image="python:3.11-slim", install_kfp_package=False)
    def first(text: str) -> str:
        return text

    @dsl.component(base_image="python:3.11-slim", install_kfp_package=False)
    def second(text: str, number: int) -> None:
        print(text, number)

    @dsl.pipeline(name="two-tasks")
    def pipeline() -> None:
        done = first(text=message)
        with dsl.ParallelFor([1, 2]) as number:
            second(text=done.output, number=number)

    return pipeline


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "two.yaml"
    compiler.Compiler().compile(two_tasks(), str(path))
    return path


@pytest.fixture(autouse=True)
def _a_user_without_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("KF_PIPELINES_") or name in module.AUTHORITIES:
            monkeypatch.delenv(name)
    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "home/context.json"))
    monkeypatch.setattr(module, "POLL", 0.01)
    monkeypatch.setattr(module, "PATIENCE", (0.01, 0.01, 0.01))
    monkeypatch.setattr(module, "TIMEOUT", (2, 2))


@pytest.fixture
def api() -> Iterator[KubeflowApi]:
    with KubeflowApi() as server:
        yield server


@dataclass
class User:
    """Somebody who submits, and what they have read."""

    package: Path
    lines: list[str] = field(default_factory=list)

    def submit(self, host: str, **changed: Any) -> list[str]:
        settings: dict[str, Any] = {"pipeline_name": "urban sounds", "experiment": "nightly", "run_name": "first run"}
        settings |= changed
        package, namespace = settings.pop("package", self.package), settings.pop("namespace", None)
        say = settings.pop("say", self.lines.append)
        before = len(self.lines)
        submit(package, Cluster(host, namespace), Submission(**settings), say)
        return self.lines[before:]

    def refused(self, host: str, **changed: Any) -> str:
        began = time.monotonic()
        with pytest.raises(InputError) as error:
            self.submit(host, **changed)
        assert time.monotonic() - began < 15
        message = str(error.value)
        assert "\n" not in message
        assert 20 < len(message) < 700
        assert error.value.__cause__ is None
        return message


@pytest.fixture
def user(package: Path) -> User:
    return User(package)


def single(things: dict[str, Any]) -> Any:
    assert len(things) == 1
    return next(iter(things.values()))


def test_a_package_is_uploaded_and_run(api: KubeflowApi, user: User) -> None:
    lines = user.submit(api.url)
    pipeline, version, experiment, run = map(single, (api.pipelines, api.versions, api.experiments, api.runs))
    assert pipeline["display_name"] == "urban sounds"
    assert version["pipeline_spec"] == yaml.safe_load(user.package.read_text())
    assert re.fullmatch(r"urban sounds-[0-9a-f]{12}", version["display_name"])
    assert experiment["display_name"] == "nightly"
    assert run["display_name"] == "first run"
    assert run["experiment_id"] == experiment["experiment_id"]
    assert run["pipeline_version_reference"] == {
        "pipeline_id": pipeline["pipeline_id"],
        "pipeline_version_id": version["pipeline_version_id"],
    }
    assert run["runtime_config"] == {"parameters": {}}
    assert lines[-1] == f"run first run: {api.url}/#/runs/details/{run['run_id']}"


def test_nothing_is_printed_nor_asked(api: KubeflowApi, user: User, capfd: pytest.CaptureFixture[str]) -> None:
    user.submit(api.url, wait=True)
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_sdk_finds_what_was_submitted(api: KubeflowApi, user: User) -> None:
    """The server is not only what this client takes for Kubeflow: kfp's own calls understand it too."""
    user.submit(api.url)
    client = kfp.Client(host=api.url)
    run_id = single(api.runs)["run_id"]
    assert client.get_pipeline_id("urban sounds") == single(api.pipelines)["pipeline_id"]
    assert client.get_experiment(experiment_name="nightly").experiment_id in api.experiments
    assert client.wait_for_run_completion(run_id, timeout=10, sleep_duration=0).state == "SUCCEEDED"
    again = client.upload_pipeline(str(user.package), "uploaded by the SDK")
    assert client.list_pipeline_versions(again.pipeline_id).total_size == 1


def test_the_same_package_is_uploaded_once(api: KubeflowApi, user: User, tmp_path: Path) -> None:
    user.submit(api.url)
    lines = user.submit(api.url, run_name="second run")
    assert "already uploaded" in lines[0]
    version = single(api.versions)
    assert len(api.pipelines) == len(api.experiments) == 1
    used = [run["pipeline_version_reference"]["pipeline_version_id"] for run in api.runs.values()]
    assert used == [version["pipeline_version_id"]] * 2
    other = tmp_path / "other.yaml"
    compiler.Compiler().compile(two_tasks("goodbye"), str(other))
    user.submit(api.url, package=other)
    assert len(api.pipelines) == 1
    assert len(api.versions) == 2
    assert list(api.runs.values())[2]["pipeline_version_reference"]["pipeline_version_id"] == list(api.versions)[1]


def caching(spec: dict[str, Any]) -> dict[str, bool]:
    graphs = [part["dag"]["tasks"] for part in (spec["root"], *spec["components"].values()) if "dag" in part]
    tasks = {name: task for graph in graphs for name, task in graph.items()}
    return {name: task.get("cachingOptions", {}).get("enableCache", False) for name, task in tasks.items()}


def test_without_caching_no_task_is_cached_not_even_in_a_loop(api: KubeflowApi, user: User) -> None:
    user.submit(api.url)
    user.submit(api.url, caching=False)
    cached, anew = api.versions.values()
    assert caching(cached["pipeline_spec"])["first"]
    assert caching(cached["pipeline_spec"])["second"]
    assert caching(anew["pipeline_spec"]) == dict.fromkeys(("first", "for-loop-2", "second"), False)
    used = [run["pipeline_version_reference"]["pipeline_version_id"] for run in api.runs.values()]
    assert used == [cached["pipeline_version_id"], anew["pipeline_version_id"]]


def test_caching_leaves_alone_what_the_package_never_caches(api: KubeflowApi, user: User, tmp_path: Path) -> None:
    spec = yaml.safe_load(user.package.read_text())
    spec["root"]["dag"]["tasks"]["first"]["cachingOptions"] = {}
    never = tmp_path / "never.yaml"
    never.write_text(yaml.safe_dump(spec))
    user.submit(api.url, package=never)
    assert not caching(single(api.versions)["pipeline_spec"])["first"]


def test_settings_of_the_platform_are_uploaded_too(api: KubeflowApi, user: User, tmp_path: Path) -> None:
    platform = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {"exec-first": {}}}}}}
    both = tmp_path / "both.yaml"
    both.write_text(f"{user.package.read_text()}\n---\n{yaml.safe_dump(platform)}")
    for cached in (True, False):
        user.submit(api.url, package=both, caching=cached)
        upload = api.sent("POST", "/pipelines/upload_version")[-1].body.decode()
        assert "exec-first: {}" in upload.partition("---\n")[2]


def test_a_namespace_is_where_everything_goes(user: User) -> None:
    with KubeflowApi(multi_user=True) as api:
        assert "must filter by namespace" in user.refused(api.url)
        user.submit(api.url, namespace="team-a")
        assert list(api.pipelines.values())[-1]["namespace"] == "team-a"
        assert single(api.experiments)["namespace"] == "team-a"
        assert single(api.runs)["experiment_id"] == single(api.experiments)["experiment_id"]
        user.submit(api.url, namespace="team-b")
        assert [one["namespace"] for one in api.experiments.values()] == ["team-a", "team-b"]


def test_links_go_where_people_look(api: KubeflowApi, user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "https://kubeflow.example.org/pipeline/")
    assert "https://kubeflow.example.org/pipeline/#/runs/details/run-" in user.submit(f"{api.url}/")[-1]


def test_an_address_may_have_a_path(user: User) -> None:
    with KubeflowApi(prefix="/pipeline") as api:
        user.submit(api.url)
        assert api.runs
        assert "ends in /pipeline" in user.refused(api.url.removesuffix("/pipeline"))


# Waiting.


def test_waiting_says_each_change_once(api: KubeflowApi, user: User) -> None:
    api.progress = [
        Progress("PENDING"),
        Progress("RUNNING"),
        Progress("RUNNING", {"first": "RUNNING"}),
        Progress("RUNNING", {"first": "SUCCEEDED", "second": "RUNNING", "second#2": "PENDING"}),
        Progress("RUNNING", {"first": "SUCCEEDED", "second": "RUNNING", "second#2": "PENDING"}),
        Progress("SUCCEEDED", {"first": "SUCCEEDED", "second": "SUCCEEDED", "second#2": "SKIPPED"}),
    ]
    assert user.submit(api.url, wait=True)[2:] == [
        "run first run: PENDING",
        "run first run: RUNNING",
        "task first: RUNNING",
        "task first: SUCCEEDED",
        "task second: RUNNING",
        "task second: PENDING",
        "run first run: SUCCEEDED",
        "task second: SUCCEEDED",
        "task second: SKIPPED",
    ]


def test_a_failure_names_the_tasks_and_their_messages(api: KubeflowApi, user: User) -> None:
    failed = {"first": "SUCCEEDED", "second": ("FAILED", "no space\nleft"), "second#2": ("FAILED", "OOMKilled")}
    api.progress = [Progress("RUNNING"), Progress("FAILED", failed, "2 of 3 tasks")]
    message = user.refused(api.url, wait=True)
    link = f"{api.url}/#/runs/details/{single(api.runs)['run_id']}"
    assert message == (
        "run first run: FAILED; task second: no space left; task second: OOMKilled; 2 of 3 tasks; its logs: " + link
    )


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        ({"second": "FAILED"}, "FAILED; task second: failed; its logs"),
        ({"second-driver": "FAILED"}, "FAILED; task second-driver: failed; its logs"),
        ({}, "FAILED; its logs"),
    ],
)
def test_a_failure_without_a_message_is_still_told(
    api: KubeflowApi, user: User, tasks: dict[str, Any], says: str
) -> None:
    api.progress = [Progress("FAILED", tasks)]
    with pytest.raises(RunFailedError, match=re.escape(says)):
        user.submit(api.url, wait=True)


@pytest.mark.parametrize("state", ["CANCELED", "SKIPPED"])
def test_what_did_not_succeed_has_failed(api: KubeflowApi, user: User, state: str) -> None:
    api.progress = [Progress("RUNNING"), Progress("CANCELING"), Progress(state)]
    with pytest.raises(RunFailedError, match=f"first run: {state}"):
        user.submit(api.url, wait=True)


@pytest.mark.parametrize("kind", [401, 429, 500, 503, "cut", "slow", "busy"])
def test_waiting_outlives_what_passes(
    api: KubeflowApi, user: User, kind: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", (2, 1))
    api.failures = [Failure("GET /apis/v2beta1/runs/", kind, times=2)]
    lines = user.submit(api.url, wait=True)
    assert sum("the run continues, retrying" in line for line in lines) == 2
    assert lines[-1] == "run first run: SUCCEEDED"


def test_waiting_ends_when_nothing_passes(api: KubeflowApi, user: User) -> None:
    api.failures = [Failure("GET /apis/v2beta1/runs/", 503)]
    message = user.refused(api.url, wait=True)
    assert "(503)" in message
    assert message.endswith(f"the run continues: {api.url}/#/runs/details/{single(api.runs)['run_id']}")
    assert len(api.failures) == 1
    assert len([one for one in api.requests if "/runs/run-" in one.path]) == len(module.PATIENCE) + 1


def test_a_run_that_was_deleted_is_not_waited_for(api: KubeflowApi, user: User) -> None:
    api.failures = [Failure("GET /apis/v2beta1/runs/", 404, message="Run not found")]
    assert "refused (404): Run not found" in user.refused(api.url, wait=True)


def test_a_token_renewed_while_waiting_is_used(user: User, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{SECRET}\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(path))
    with KubeflowApi(token=SECRET) as api:

        def say(line: str) -> None:
            user.lines.append(line)
            if line.endswith("RUNNING"):
                api.token = "another.token"
            elif "retrying in" in line:
                path.write_text("another.token\n")

        user.submit(api.url, wait=True, say=say)
    assert user.lines[-1] == "run first run: SUCCEEDED"
    assert any("retrying in" in line for line in user.lines)


def test_an_interrupt_leaves_the_run_and_says_so(api: KubeflowApi, user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        user.submit(api.url, wait=True)
    assert "the run continues" in user.lines[-1]
    assert single(api.runs)["run_id"] in user.lines[-1]
    assert not [one for one in api.requests if "terminate" in one.path]


# Schedules.


def test_a_schedule_makes_a_recurring_run(api: KubeflowApi, user: User) -> None:
    lines = user.submit(api.url, schedule="30 3 * * MON-FRI")
    assert not api.runs
    recurring = single(api.recurring_runs)
    assert recurring["trigger"] == {"cron_schedule": {"cron": "0 30 3 * * MON-FRI"}}
    assert recurring["status"] == "ENABLED"
    assert recurring["no_catchup"] is True
    assert recurring["max_concurrency"] == "1"
    assert recurring["experiment_id"] == single(api.experiments)["experiment_id"]
    assert recurring["pipeline_version_reference"]["pipeline_version_id"] == single(api.versions)["pipeline_version_id"]
    assert lines[-1].endswith(f"{api.url}/#/recurringrun/details/{recurring['recurring_run_id']}")


def test_a_schedule_is_applied_not_added(api: KubeflowApi, user: User) -> None:
    user.submit(api.url, schedule="0 3 * * *")
    first = single(api.recurring_runs)["recurring_run_id"]
    assert "already exists" in user.submit(api.url, schedule="0 0 3 * * *")[-1]
    assert single(api.recurring_runs)["recurring_run_id"] == first
    assert "replacing the previous" in user.submit(api.url, schedule="0 4 * * *")[-1]
    assert single(api.recurring_runs)["trigger"]["cron_schedule"]["cron"] == "0 0 4 * * *"
    user.submit(api.url, schedule="0 4 * * *", caching=False)
    assert single(api.recurring_runs)["pipeline_version_reference"]["pipeline_version_id"] == list(api.versions)[1]
    single(api.recurring_runs)["mode"] = "DISABLE"
    user.submit(api.url, schedule="0 4 * * *", caching=False)
    assert single(api.recurring_runs)["mode"] == "ENABLE"
    user.submit(api.url, schedule="0 4 * * *", run_name="another name")
    user.submit(api.url, schedule="0 4 * * *", experiment="another experiment")
    assert len(api.recurring_runs) == 3


def test_a_schedule_that_cannot_be_made_leaves_the_former(api: KubeflowApi, user: User) -> None:
    user.submit(api.url, schedule="0 3 * * *")
    former = dict(api.recurring_runs)
    api.failures = [Failure("POST /apis/v2beta1/recurringruns", 500)]
    user.refused(api.url, schedule="0 4 * * *")
    assert api.recurring_runs == former


def test_a_schedule_of_another_pipeline_is_not_replaced(api: KubeflowApi, user: User) -> None:
    user.submit(api.url, schedule="0 3 * * *")
    former = dict(api.recurring_runs)
    message = user.refused(api.url, schedule="0 3 * * *", pipeline_name="another pipeline")
    assert "runs another pipeline" in message
    assert next(iter(former)) in message
    assert api.recurring_runs == former


def test_a_schedule_made_by_hand_is_replaced_or_left(api: KubeflowApi, user: User) -> None:
    user.submit(api.url, schedule="0 3 * * *")
    single(api.recurring_runs)["trigger"] = {"periodic_schedule": {"interval_second": "3600"}}
    user.submit(api.url, schedule="0 3 * * *")
    by_hand = single(api.recurring_runs)
    assert by_hand["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * *"}}
    by_hand["pipeline_spec"] = single(api.versions)["pipeline_spec"]
    del by_hand["pipeline_version_reference"]
    assert "runs another pipeline" in user.refused(api.url, schedule="0 3 * * *")


@pytest.mark.parametrize(
    "schedule", ["0 3 * * 1", "*/15 * * * *", "0 0 9 ? * 2-6", "5,35 0-6/2 1,15 jan-mar sun", "00 03 * 09 *"]
)
def test_schedules_that_are_taken(schedule: str) -> None:
    fields = module._six_fields(schedule).split()
    assert fields[-5:] == schedule.split()[-5:]
    assert len(fields) == 6


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ("", "must have five fields"),
        ("@daily", "must have five fields"),
        ("0 3 * *", "must have five fields"),
        ("0 0 3 * * 1 2026", "must have five fields"),
        ("60 3 * * *", "'60' is not a valid minute (0 to 59)"),
        ("0 24 * * *", "'24' is not a valid hour (0 to 23)"),
        ("0 3 0 * *", "'0' is not a valid day of the month (1 to 31)"),
        ("0 3 * 13 *", "'13' is not a valid month"),
        ("0 3 * * 7", "'7' is not a valid day of the week (0 to 6)"),
        ("0 3 * * MON-SUN", "'MON-SUN' is not a valid day of the week"),
        ("30-10 3 * * *", "'30-10' is not a valid minute"),
        ("*/0 3 * * *", "'*/0' is not a valid minute"),
        ("1,,2 3 * * *", "'' is not a valid minute"),
        ("none 3 * * *", "'none' is not a valid minute"),
    ],
)
def test_schedules_that_are_refused_before_anything_is_sent(
    api: KubeflowApi, user: User, schedule: str, says: str
) -> None:
    assert says in user.refused(api.url, schedule=schedule)
    assert not api.requests


def test_a_schedule_cannot_be_waited_for(api: KubeflowApi, user: User) -> None:
    assert "--wait and --schedule cannot be combined" in user.refused(api.url, schedule="0 3 * * *", wait=True)
    assert not api.requests


# What goes wrong.


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        (b"", "not a compiled pipeline"),
        (b"just words", "not a compiled pipeline"),
        (b"a: [1", "not a compiled pipeline"),
        (b"\xff\xfe\x00", "not a compiled pipeline"),
        (b"steps: {}", "not a compiled pipeline"),
        (b"root: {dag: {tasks: {}}}", "not a compiled pipeline"),
        (b"components: {}\nroot: {dag: {tasks: {first: {}}}}", "not a compiled pipeline"),
    ],
)
def test_a_file_that_is_no_pipeline(
    api: KubeflowApi, user: User, tmp_path: Path, content: bytes | None, says: str
) -> None:
    path = tmp_path / "two.yaml"
    if content is not None:
        path.write_bytes(content)
    message = user.refused(api.url, package=path)
    assert message.startswith(f"{path}: {says}")
    assert not api.requests


@pytest.mark.parametrize(
    "where", ["GET /apis/v2beta1/healthz", "GET /apis/v2beta1/pipelines", "POST /apis/v2beta1/runs"]
)
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (400, "refused (400): injected"),
        (401, "requires authentication (401); set KF_PIPELINES_TOKEN"),
        (403, "not allowed (403): injected; ask its administrator"),
        (404, "refused (404): injected"),
        (409, "refused (409): injected"),
        (500, "the server failed (500): injected; try again"),
        ("busy", "the server failed (503); try again"),
        ("cut", "the connection was cut"),
        ("slow", "no answer in time"),
        ("login", "requires authentication (302)"),
    ],
)
def test_each_failure_is_one_line(api: KubeflowApi, user: User, where: str, kind: int | str, says: str) -> None:
    api.failures = [Failure(where, kind)]
    message = user.refused(api.url)
    assert message.startswith(f"{api.url}: cannot ")
    assert says in message
    # A run may have begun although nobody has heard so: the user must look before trying again.
    uncertain = kind in (401, 500, "busy", "cut", "slow") and "runs" in where
    assert ("first check whether the run has started" in message) == uncertain
    assert len([one for one in api.requests if where in f"{one.method} {one.path}"]) == 1


@pytest.mark.parametrize("where", ["healthz", "POST /apis/v2beta1/runs", "GET /apis/v2beta1/runs/"])
@pytest.mark.parametrize("kind", ["page", "latin"])
def test_a_web_page_is_not_kubeflow(api: KubeflowApi, user: User, where: str, kind: str) -> None:
    api.failures = [Failure(where, kind)]
    assert "it answers with a web page; check the address" in user.refused(api.url, wait=True)


def test_a_name_that_kubeflow_refuses(api: KubeflowApi, user: User) -> None:
    assert "The run name is empty" in user.refused(api.url, run_name="")
    assert "pipeline's name cannot be empty" in user.refused(api.url, pipeline_name=" ")


def test_a_missing_parameter_is_told_in_the_servers_words(api: KubeflowApi, user: User, tmp_path: Path) -> None:
    spec = yaml.safe_load(user.package.read_text())
    spec["root"]["inputDefinitions"] = {"parameters": {"epochs": {"parameterType": "NUMBER_INTEGER"}}}
    path = tmp_path / "parameter.yaml"
    path.write_text(yaml.safe_dump(spec))
    message = user.refused(api.url, package=path)
    assert (
        "cannot start run first run: refused (400): Invalid input error: parameters ['epochs'] are required" in message
    )


def test_an_upload_that_is_refused(api: KubeflowApi, user: User, tmp_path: Path) -> None:
    spec = yaml.safe_load(user.package.read_text())
    spec["schemaVersion"] = "1"
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(spec))
    message = user.refused(api.url, package=path)
    assert "refused (400): InvalidInputError: invalid pipeline spec" in message
    assert "stack" not in message


def test_nothing_listens(user: User) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        message = user.refused(url)
    assert message.startswith(f"{url}: cannot connect: connection refused or timed out")


@pytest.fixture
def _no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that answers at once, as not everybody's does."""

    def unknown(*_: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)


@pytest.mark.usefixtures("_no_names")
def test_no_such_host(user: User) -> None:
    message = user.refused("https://kubeflow.invalid")
    assert message.startswith("https://kubeflow.invalid: cannot connect: no such host")


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("", "must be like https://"),
        ("localhost:8080", "must be like https://"),
        ("ftp://localhost", "must be like https://"),
        ("https://", "must be like https://"),
        ("https://localhost:port", "must be like https://"),
        ("https://[::1", "must be like https://"),
        (f"https://me:{PASSWORD}@localhost", "leave name and password out"),
        ("https://localhost/pipeline/#/runs", "only the part of the address before"),
        (f"https://localhost/?key={PASSWORD}", "only the part of the address before"),
    ],
)
def test_addresses_that_are_refused(user: User, host: str, says: str) -> None:
    message = user.refused(host)
    assert says in message
    assert PASSWORD not in message


# Who asks.


@pytest.mark.parametrize("by_file", [False, True])
def test_a_token_is_sent(user: User, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by_file: bool) -> None:
    if by_file:
        (tmp_path / "token").write_text(f"{SECRET}\n")
        monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    else:
        monkeypatch.setenv("KF_PIPELINES_TOKEN", SECRET)
    with KubeflowApi(token=SECRET) as api:
        user.submit(api.url, wait=True)
    assert {one.headers.get("authorization") for one in api.requests} == {f"Bearer {SECRET}"}
    assert SECRET not in "\n".join(user.lines)


def test_a_token_that_is_missing_or_wrong(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    with KubeflowApi(token="the right one") as api:
        assert "set KF_PIPELINES_TOKEN to a token" in user.refused(api.url)
        monkeypatch.setenv("KF_PIPELINES_TOKEN", SECRET)
        message = user.refused(api.url)
    assert "does not accept the token" in message
    assert SECRET not in message


@pytest.mark.parametrize("secret", [SECRET, SECRET * 100])
@pytest.mark.parametrize("kind", ["echo", 400, 403, 500])
def test_a_token_that_the_server_repeats_is_not_shown(
    api: KubeflowApi, user: User, monkeypatch: pytest.MonkeyPatch, kind: int | str, secret: str
) -> None:
    monkeypatch.setenv("KF_PIPELINES_TOKEN", secret)
    api.failures = [Failure("GET /apis/v2beta1/runs/", kind, message=f"for Bearer {secret}")]
    message = user.refused(api.url, wait=True)
    assert SECRET not in message + "\n".join(user.lines)


@pytest.mark.usefixtures("_no_names")
@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://kubeflow.example.org", False),
        ("http://10.0.0.1:8888", False),
        ("http://localhost.example.org", False),
        ("http://svc", False),
        ("http://[::1]:9", True),
        ("http://127.1.2.3:9", True),
        ("http://ml-pipeline.kubeflow.svc:8888", True),
        ("https://kubeflow.invalid", True),
    ],
)
def test_a_token_is_not_sent_in_the_clear(user: User, monkeypatch: pytest.MonkeyPatch, url: str, sent: bool) -> None:
    monkeypatch.setenv("KF_PIPELINES_TOKEN", SECRET)
    message = user.refused(url)
    assert ("only over https://" in message) != sent
    assert SECRET not in message


@pytest.mark.parametrize("value", [f"Bearer {SECRET}", f"{SECRET}\nX-Header: 1", "tökén"])
@pytest.mark.parametrize("by_file", [False, True])
def test_a_token_that_cannot_be_one(
    api: KubeflowApi, user: User, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str, by_file: bool
) -> None:
    (tmp_path / "token").write_text(value)
    name, setting = (
        ("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token")) if by_file else ("KF_PIPELINES_TOKEN", value)
    )
    monkeypatch.setenv(name, setting)
    message = user.refused(api.url)
    assert message.startswith(name)
    assert "must contain only the token" in message
    assert SECRET not in message
    assert not api.requests


@pytest.mark.parametrize("name", ["KF_PIPELINES_SA_TOKEN_PATH", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_a_file_that_a_variable_names_is_missing(
    api: KubeflowApi, user: User, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "nowhere/file")
    assert user.refused(api.url).startswith(f"{name}=nowhere/file: ")


def test_no_browser_is_opened(api: KubeflowApi, user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IAP_OAUTH2_CLIENT_ID", "APP_OAUTH2_CLIENT_ID", "APP_OAUTH2_CLIENT_SECRET"):
        monkeypatch.setenv(f"KF_PIPELINES_{name}", "something")
    assert "get a token of Identity-Aware Proxy" in user.refused(api.url)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of one's own for localhost, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    today = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(encoding))
    (folder / "key.pem").write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    return folder / "certificate.pem", folder / "key.pem"


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_certificates_of_ones_own(
    user: User, monkeypatch: pytest.MonkeyPatch, authority: tuple[Path, Path], name: str
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority)
    with KubeflowApi(tls=context) as api:
        message = user.refused(api.url)
        assert "TLS failed" in message
        assert "name the certificate of your authority in SSL_CERT_FILE" in message
        assert not api.requests
        monkeypatch.setenv(name, str(authority[0]))
        user.submit(api.url)
        assert api.runs


def test_https_to_a_server_without_it(api: KubeflowApi, user: User) -> None:
    assert "TLS failed" in user.refused(api.url.replace("http:", "https:"))


def test_a_file_that_holds_no_certificate(
    api: KubeflowApi, user: User, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bundle.pem").write_text("no certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "bundle.pem"))
    assert "TLS failed" in user.refused(api.url.replace("http:", "https:"))


def test_ctrl_c_in_a_process(api: KubeflowApi, user: User) -> None:
    """A signal, not an exception: nothing swallows it, and the command ends."""
    api.progress = [Progress("RUNNING")]
    program = (
        "import sys; from pathlib import Path; from pipelines.submit import Cluster, Submission, submit\n"
        "submission = Submission('p', 'e', 'r', wait=True)\n"
        "submit(Path(sys.argv[1]), Cluster(sys.argv[2]), submission, lambda line: print(line, flush=True))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(user.package), api.url],
        cwd=ROOT,
        env={name: value for name, value in environment().items() if name not in module.AUTHORITIES},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    assert process.stdout
    while "RUNNING" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(2)
    out, _ = process.communicate(timeout=10)
    assert "no longer waiting; the run continues" in out
    assert process.returncode != 0
