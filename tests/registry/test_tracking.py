"""MLflow runs on a real sqlite store: one parent for each execution, nothing twice."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iusp.config.params import load
from iusp.errors import InputError
from iusp.io.files import write_json
from iusp.registry.tracking import Tracker, connect_or_create, readable_errors
from tests.support.project import ROOT

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(autouse=True)
def _store(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("IUSP_EXECUTION", raising=False)
    monkeypatch.chdir(tmp_path)


def tracker(folder: Path, data: str) -> Tracker:
    write_json(folder / data / "dataset.json", {"digest": data})
    return Tracker.of(load(ROOT / "params.yaml"), folder / data)


def test_an_execution_is_found_again_and_other_data_are_another_one(tmp_path: Path) -> None:
    first = tracker(tmp_path, "one")
    assert tracker(tmp_path, "one").parent.run_id == first.parent.run_id
    assert tracker(tmp_path, "two").parent.run_id != first.parent.run_id


def test_an_orchestrator_may_name_the_execution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IUSP_EXECUTION", "workflow-7")
    assert tracker(tmp_path, "three").parent.run_id == tracker(tmp_path, "four").parent.run_id


def test_what_is_logged_twice_is_there_once(tmp_path: Path) -> None:
    for _ in range(2):
        one = tracker(tmp_path, "five")
        with one.step("teacher") as run:
            run.params({"training": {"epochs": 2}, "seed": 0})
            for epoch in (1, 2):
                run.row({"epoch": epoch, "loss_labels": 0.5 / epoch})
            run.metrics({"coarse.micro_auprc": 0.5})
    history = one.client.get_metric_history(run.run_id, "loss_labels")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 0.25)]
    assert len(one.client.get_metric_history(run.run_id, "coarse.micro_auprc")) == 1
    assert one.client.get_run(run.run_id).data.params == {"training.epochs": "2", "seed": "0"}


def test_what_two_log_at_once_is_there_once_and_what_changes_later_counts(tmp_path: Path) -> None:
    one, other = tracker(tmp_path, "at once"), tracker(tmp_path, "at once")
    with one.step("teacher") as run, other.step("teacher") as second:  # neither has seen what the other logs
        for each in (run, second):
            each.row({"epoch": 1, "loss_labels": 0.5})
            each.metrics({"coarse.micro_auprc": 0.5})
            time.sleep(0.01)
    for name in ("loss_labels", "coarse.micro_auprc"):
        assert len(one.client.get_metric_history(run.run_id, name)) == 1
    with one.step("teacher") as run:
        run.metrics({"coarse.micro_auprc": 0.25})
    assert one.client.get_run(run.run_id).data.metrics["coarse.micro_auprc"] == 0.25


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (InputError, "FAILED")])
def test_a_step_that_ends_badly_says_so(tmp_path: Path, error: type[BaseException], status: str) -> None:
    one = tracker(tmp_path, "six")
    with pytest.raises(error), one.step("teacher") as run:
        raise error
    assert one.client.get_run(run.run_id).info.status == status


STEP = """
import os, signal, sys
from pathlib import Path
from iusp.registry.tracking import tracked
from iusp.reporter import Reporter
from tests.registry.test_tracking import tracker
# The shell that runs the tests may ignore signals.
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
with tracked(Reporter(), lambda: tracker(Path(sys.argv[1]), sys.argv[2]), ["teacher"], "fail"):
    os.kill(os.getpid(), signal.Signals[sys.argv[3]])
"""


def statuses(one: Tracker) -> dict[str, str]:
    named = f"tags.`iusp.execution` = '{one.execution}'"
    found = one.client.search_runs([one.experiment_id], named)
    return {run.data.tags["iusp.step"]: run.info.status for run in found}


@pytest.mark.parametrize(
    ("ended_by", "exit_status", "status"),
    [("SIGTERM", 143, "KILLED"), ("SIGHUP", 129, "KILLED"), ("SIGINT", -2, "KILLED"), ("SIGKILL", -9, "RUNNING")],
)
def test_no_run_stays_running_after_a_signal(tmp_path: Path, ended_by: str, exit_status: int, status: str) -> None:
    command = [sys.executable, "-c", STEP, str(tmp_path), ended_by, ended_by]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == exit_status, done.stderr
    one = tracker(tmp_path, ended_by)
    assert statuses(one) == {"pipeline": status, "teacher": status}
    # The same step continues in the same run. A step of another execution marks what is left, but nothing that runs.
    other = tracker(tmp_path, f"after {ended_by}")
    assert statuses(one) == {"pipeline": "KILLED", "teacher": "KILLED"}
    with one.ended_badly(one.parent), one.step("teacher"):
        tracker(tmp_path, f"meanwhile {ended_by}")
        assert statuses(one) == {"pipeline": "RUNNING", "teacher": "RUNNING"}
    one.finish("SUCCEEDED")
    assert statuses(one) == {"pipeline": "FINISHED", "teacher": "FINISHED"}
    assert other.parent.run_id != one.parent.run_id


def test_when_the_pipeline_has_ended_no_step_is_running(tmp_path: Path) -> None:
    one = tracker(tmp_path, "pods")
    one.client.update_run(one._find_or_create("teacher", "teacher", one.parent.run_id).run_id, status="RUNNING")
    one.finish("FAILED")
    assert statuses(one) == {"pipeline": "FAILED", "teacher": "KILLED"}


def test_passwords_do_not_reach_a_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+nodriver://user:s3/cr@t@127.0.0.1:9/mlflow")
    with pytest.raises(InputError) as error, readable_errors():
        tracker(tmp_path, "seven")
    assert "cr@t" not in str(error.value)
    assert "s3" not in str(error.value)


def test_git_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    one = tracker(tmp_path, "eight")
    assert "mlflow.source.git.commit" not in one.client.get_run(one.parent.run_id).data.tags


@pytest.mark.parametrize(
    ("state", "registered", "status"),
    [
        ("SUCCEEDED", True, "FINISHED"),
        ("COMPLETE", True, "FINISHED"),  # what servers say that keep their books in ML Metadata
        ("RUNNING", True, "FINISHED"),  # what they say of loops
        ("RUNNING", False, "FAILED"),
        ("FAILED", False, "FAILED"),
        ("CANCELED", False, "KILLED"),
        ("CANCELLED", False, "KILLED"),
    ],
)
def test_how_the_pipeline_ended_in_kubeflow_s_words(tmp_path: Path, state: str, registered: bool, status: str) -> None:
    one = tracker(tmp_path, f"{state} {registered}")
    if registered:
        with one.step("registration"):
            pass
    one.finish(state)
    assert one.client.get_run(one.parent.run_id).info.status == status


def test_nothing_is_sent_home() -> None:
    # In an environment in which MLflow takes itself for neither tested nor in CI, where it sends nothing anyway.
    code = "import iusp.registry.tracking\nfrom mlflow.telemetry.client import get_telemetry_client as f\nprint(f())"
    done = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True)
    assert done.stdout == "None\n", done.stderr


def test_mlflow_is_configured_when_the_library_connects_and_keeps_what_the_user_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "false")
    connect_or_create()
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"
    assert os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] == "true"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    connect_or_create()
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "5"


def test_importing_the_library_does_not_configure_mlflow() -> None:
    code = "import os, iusp.registry.tracking as t\nprint(sorted(os.environ.keys() & t.DEFAULTS.keys()))"
    done = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
