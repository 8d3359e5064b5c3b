"""MLflow's server is killed (SIGKILL) before, while and after steps log to it, and its answers are lost.

Whatever was tried, what MLflow holds in the end is compared with what an undisturbed run leaves there: every metric's
whole history, params, tags, artifacts' bytes, versions and aliases.
"""

import json
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from mlflow import MlflowClient

from iusp.cli.main import main
from iusp.io.files import sha256
from tests.support import s3_servers
from tests.support.evidence import GOOD, evaluated
from tests.support.mlflow_server import Server, forking
from tests.support.project import ROOT, SMALL, Tried, merged
from tests.support.s3_servers import Fault, Proxy
from tests.support.sampling import often

KILLS = often(14, 4)
RECORD = "epoch,learning_rate,loss_labels,validate_micro_auprc\n"
RECORD += "".join(f"{n},0.001,{1 / n},{n / 10}\n" for n in range(1, 5))
DIFFERS = (
    "iusp.execution",
    "iusp.process",
    "mlflow.parentRunId",
    "mlflow.user",
)  # named by digest, by chance, by the machine
Serve = Callable[[str], tuple[Server, Proxy]]


@pytest.fixture(scope="module")
def forks() -> Iterator["subprocess.Popen[str]"]:
    with forking() as process:
        yield process


@pytest.fixture(scope="module")
def tables(forks: "subprocess.Popen[str]", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a server that has seen nothing: to make its tables takes longer than all else."""
    server = Server(forks, tmp_path_factory.mktemp("tables") / "server")
    server.start()
    MlflowClient(server.address).search_experiments()
    server.kill()
    return server.folder / "mlflow.db"


@pytest.fixture
def serve(
    forks: "subprocess.Popen[str]", tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Serve]:
    """A function that starts a new server, behind a proxy that MLFLOW_TRACKING_URI names."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    servers = []
    with ExitStack() as stack:

        def new(name: str) -> tuple[Server, Proxy]:
            server = Server(forks, tmp_path / name)
            shutil.copy(tables, server.folder)
            server.start()
            servers.append(server)
            proxy = stack.enter_context(s3_servers.proxying(server.address))
            monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.address)
            return server, proxy

        yield new
    for server in servers:
        server.kill()


def iusp(*arguments: str) -> Result:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code in (0, 2), (done.output, done.exception)
    assert "Traceback" not in done.output
    assert "View run" not in done.output  # with an address, which may hold a password
    return done


def good(*arguments: str) -> None:
    done = iusp(*arguments)
    assert done.exit_code == 0, done.output


def refused(done: Result) -> str:
    assert done.exit_code == 2, done.output
    lines = done.stderr.splitlines()
    assert len(lines) == 1, lines
    (line,) = lines
    assert line.startswith("iusp: ")
    assert "MLflow" in line
    return line


def holds(server: Server) -> dict[str, Any]:
    """Return all that a server's database and storage hold, but for names, times, and `registration.outage`."""
    client = MlflowClient(f"sqlite:///{server.folder}/mlflow.db")
    everything: dict[str, Any] = {"runs": [], "versions": []}
    experiment = client.get_experiment_by_name("iusp")
    assert experiment
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    steps = {run.info.run_id: run.data.tags["iusp.step"] for run in runs}
    for run in runs:
        params, tags = dict(run.data.params), dict(run.data.tags)
        params.pop("registration.outage", None)
        if steps[run.info.run_id] == "registration":
            params.pop("outage", None)
        parent = steps.get(tags.get("mlflow.parentRunId", ""))
        if parent is None:
            tags.pop("mlflow.runName")
        stored = server.folder / "artifacts" / experiment.experiment_id / run.info.run_id / "artifacts"
        everything["runs"].append(
            {
                "step": steps[run.info.run_id],
                "parent": parent,
                "status": run.info.status,
                "params": params,
                "tags": {name: value for name, value in tags.items() if name not in DIFFERS},
                "metrics": {
                    name: sorted((one.step, one.value) for one in client.get_metric_history(run.info.run_id, name))
                    for name in run.data.metrics
                },
                "artifacts": {
                    str(path.relative_to(stored)): sha256(path) for path in stored.rglob("*") if path.is_file()
                },
            }
        )
    everything["runs"].sort(key=lambda run: run["step"])
    aliases = client.get_registered_model("iusp-student").aliases
    for version in client.search_model_versions("name = 'iusp-student'"):
        named = sorted(alias for alias, number in aliases.items() if str(number) == str(version.version))
        everything["versions"].append([steps[version.run_id], dict(version.tags), named])
    return everything


def lost_and_doubled(found: dict[str, Any], expected: dict[str, Any]) -> int:
    """Return how many things one has and the other has not, of those that are counted one by one."""

    def things(one: dict[str, Any]) -> Counter[str]:
        counted = Counter(json.dumps(version) for version in one["versions"])
        for run in one["runs"]:
            counted += Counter([run["step"]])
            for kind in ("params", "tags", "artifacts"):
                counted += Counter(f"{run['step']} {kind} {item}" for item in run[kind].items())
            for name, history in run["metrics"].items():
                counted += Counter(f"{run['step']} {name} {point}" for point in history)
        return counted

    mine, theirs = things(found), things(expected)
    return ((mine - theirs) + (theirs - mine)).total()


def same(found: dict[str, Any], expected: dict[str, Any]) -> int:
    lost = lost_and_doubled(found, expected)
    assert found == expected
    return lost


def settings(folder: Path, outage: str) -> None:
    params = merged(yaml.safe_load((ROOT / "params.yaml").read_text()), SMALL)
    params["students"] = {"small": {"architecture": "plain", "parameters": 2500, "method": "iusp", "seeds": [0]}}
    params["registration"]["outage"] = outage
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where all steps but those that train have run; evaluation's outputs are made by hand."""
    folder = tmp_path_factory.mktemp("ready") / "project"
    folder.mkdir()
    settings(folder, "keep")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for step in ("dataset", "features"):
            good(step)
    evaluated(folder / "by-hand", GOOD)
    (folder / "by-hand/evaluation").rename(folder / "evaluation")
    for name in ("teacher", "small-seed-0"):
        (folder / "evaluation/networks" / name / "record.csv").write_text(RECORD)
    # requests sends an empty file in chunks, which the proxy does not know.
    for path in folder.rglob("*"):
        if path.is_file() and not path.stat().st_size:
            path.write_text("empty")
    (folder / "reports").mkdir()
    shutil.copytree(folder / "evaluation", folder / "reports/evaluation")
    return folder


@pytest.fixture
def project(ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(ready, folder)
    monkeypatch.chdir(folder)
    return folder


def test_killed_at_any_moment_of_registration(serve: Serve, project: Path, tried: Tried) -> None:
    server, proxy = serve("undisturbed")
    good("registration")
    expected = holds(server)
    proxy.requests.clear()
    good("registration")
    # Of what is there already, less is asked.
    asked = len(proxy.requests)
    assert holds(server) == expected
    assert len(expected["versions"]) == 1
    assert asked > 40
    metrics = {run["step"]: run["metrics"] for run in expected["runs"]}
    assert metrics["teacher"]["loss_labels"] == [(n, 1 / n) for n in range(1, 5)]

    (project / "reports/registration.json").unlink()
    # Each kill lets the step get a little further than the one before.
    chance = random.Random(2020)
    moments = sorted(chance.sample(range(asked), KILLS))
    server, proxy = serve("killed")
    kills = 0
    for moment in moments:
        before_it_answers = chance.random() < 0.5

        def fault(key: str, before: int, moment: int = moment, early: bool = before_it_answers) -> Fault | None:
            if len(proxy.requests) != moment + 1:
                return None
            if early:
                server.kill()
                return Fault(status=500, drop=True)
            return Fault(drop=True, after=server.kill)

        proxy.requests.clear()
        proxy.fault = fault
        done = iusp("registration")
        if len(proxy.requests) <= moment:  # the kills before had left fewer requests to make
            assert done.exit_code == 0, done.output
            (project / "reports/registration.json").unlink()
            continue
        kills += 1
        assert "check MLFLOW_TRACKING_URI" in (line := refused(done)) or "artifact storage" in line
        # The step ended soon: the one request was repeated once, and nothing was asked after that, but for the end of
        # a run.
        assert len(proxy.requests) <= moment + 5
        assert not (project / "reports/registration.json").exists()
        server.start()
    proxy.fault = lambda key, before: Fault(status=500, drop=True)
    # Nor does a process of its own say more than a line.
    done = subprocess.run(["iusp", "models"], env=os.environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n"), done.stderr[:6]) == (2, 1, "iusp: ")
    proxy.fault = lambda key, before: None
    good("registration")
    lost = same(holds(server), expected)
    assert kills > KILLS / 2
    outcome = "registration fails; when it runs again, MLflow has every entry once"
    tried("MLflow's server is killed during registration", kills, outcome, lost)


def test_an_answer_that_is_lost_doubles_nothing(serve: Serve, project: Path, tried: Tried) -> None:
    """MLflow's client asks again; the server has done it already."""
    server, _ = serve("undisturbed")
    good("registration")
    expected = holds(server)
    server, proxy = serve("deaf")
    writing = ("POST ", "PUT ", "PATCH ", "DELETE ")
    # Every second request that writes is answered at its second time.
    told: Counter[str] = Counter()

    def fault(key: str, before: int) -> Fault | None:
        if not key.startswith(writing) or "search" in key:
            return None
        told["writes"] += 1
        if told["writes"] % 2:
            told["lost"] += 1
            return Fault(drop=True)
        return None

    proxy.fault = fault
    good("registration")
    assert told["lost"] > 30
    lost = same(holds(server), expected)
    outcome = "the client repeats the request; MLflow has every entry once"
    tried("MLflow's server writes an entry, but its response is lost", told["lost"], outcome, lost)


def trained(folder: Path) -> None:
    """Let evaluation's outputs be of what was trained."""
    shutil.rmtree(folder / "reports/evaluation", ignore_errors=True)
    shutil.copytree(folder / "evaluation", folder / "reports/evaluation")
    made = {"teacher": "models/teacher", "small-seed-0": "models/students/small/seed-0"}
    for name, source in made.items():
        for file in ("config.json", "record.csv"):
            shutil.copy(folder / source / file, folder / "reports/evaluation/networks" / name)


def models(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in (folder / "models").rglob("*") if path.is_file()}


class Outage:
    """Kills a server at the n-th time that an epoch, or a run's end, is logged; `answered`: after it has written."""

    def __init__(self, server: Server, proxy: Proxy, what: str, answered: bool) -> None:
        self.server, self.what, self.answered, self.times = server, what, answered, 0
        self.seen, self.left = 0, 0
        proxy.fault = self.fault

    def fault(self, key: str, before: int) -> Fault | None:
        if not self.left or not key.endswith(self.what):
            return None
        self.left -= 1
        if self.left:
            return None
        self.times += 1
        if self.answered:
            return Fault(drop=True, after=self.server.kill)
        self.server.kill()
        return Fault(status=500, drop=True)


def test_training_goes_on_or_fails_at_once_as_params_say(serve: Serve, project: Path, tried: Tried) -> None:
    server, proxy = serve("undisturbed")
    for step in (["teacher"], ["student", "small"]):
        good(*step)
    trained(project)
    good("registration")
    expected, bytes_ = holds(server), models(project)
    metrics = {run["step"]: run["metrics"] for run in expected["runs"]}
    assert len(metrics["teacher"]["loss_labels"]) == len(metrics["small-seed-0"]["loss_iusp"]) == 3

    lost = {"keep": 0, "fail": 0}
    times = {"keep": 0, "fail": 0}
    # Where it is killed: at the start, at the second epoch before and after it is written, and at the run's end.
    middle = [("runs/log-batch", 2, False), ("runs/log-batch", 2, True)]
    moments: dict[tuple[str, int, bool] | None, str] = {
        None: "before",
        **dict.fromkeys(middle, "during"),
        ("runs/update", 2, False): "at the end of",
    }
    # Training a student takes a process more, and so its time.
    student = {"keep": (None, middle[0]), "fail": (middle[0],)}
    for outage in ("keep", "fail"):
        settings(project, outage)
        for number, moment in enumerate(moments):
            server, proxy = serve(f"{outage}-{number}")
            epochs = Outage(server, proxy, *(moment[0], moment[2])) if moment else None
            (project / "reports/registration.json").unlink(missing_ok=True)
            steps = [["teacher"], ["student", "small"]] if moment in student[outage] else [["teacher"]]
            for step in steps:
                shutil.rmtree(project / "models" / {"teacher": "teacher", "student": "students/small"}[step[0]])
                if moment and epochs:
                    # The parent's params come first, in a request of the same kind.
                    epochs.left = moment[1] + (moment[0] == "runs/log-batch") * 2
                    proxy.fault = epochs.fault
                else:
                    server.kill()
                done = iusp(*step)
                times[outage] += 1
                assert not epochs or not epochs.left
                if outage == "keep":
                    assert done.exit_code == 0, done.output
                    (line,) = done.stderr.splitlines()
                    assert line.startswith("iusp: MLflow at http://127.0.0.1:")
                    assert line.endswith("Training continues; the registration step logs what is missing in MLflow")
                    assert "3/3" in done.stdout
                    if step != steps[-1]:
                        server.start()
                else:
                    assert "check MLFLOW_TRACKING_URI" in refused(done)
                    server.start()
                    proxy.fault = lambda key, before: None
                    good(*step)
            trained(project)
            if outage == "keep":
                # Nothing of it is kept in one process: it is all on the disk.
                refused(iusp("registration"))
                server.start()
                proxy.fault = lambda key, before: None
            good("registration")
            assert models(project) == bytes_
            lost[outage] += same(holds(server), expected)
    assert times == {"keep": len(moments) + 2, "fail": len(moments) + 1}
    *early, end = dict.fromkeys(moments.values())
    for outage, outcome in (
        ("keep", "training continues; registration logs the missing entries"),
        ("fail", "training fails; when it runs again, it continues"),
    ):
        when = f"{', '.join(early)} and {end} the training of a teacher"
        when += f", and {' and '.join(moments[moment] for moment in student[outage])} the training of a student"
        tried(f"MLflow's server is killed {when} (setting `outage: {outage}`)", times[outage], outcome, lost[outage])
