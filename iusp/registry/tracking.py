"""MLflow runs: one for each step, under one parent for each execution of the pipeline.

An execution is named by what it computes (its params, code and data), or by IUSP_EXECUTION where an orchestrator sets
it: a killed pipeline that is started again goes on in the same runs, and nothing is counted twice. Where Kubeflow's own
MLflow plugin has made a parent, that one is joined.
"""

import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_PARENT_RUN_ID
from requests import RequestException
from sqlalchemy import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from iusp.artifacts.untyped import Digested
from iusp.config.params import Settings
from iusp.errors import InputError
from iusp.io.files import code_digest, digest, read_json
from iusp.io.text import one_line, without_secrets
from iusp.reporter import Reporter

# Progress bars of small files, and words about MLflow's own tables, are noise in a step's log; what MLflow logs of its
# database as an error, with a traceback, it raises as well.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# It prints the address of each run that ends, with the password that may be in it.
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
# Artifacts come through the server: it would send clients on to its storage, by a name that they may not know.
os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
# Its seven retries would let a wrong address pass for work for four minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
# It tells of every request that is repeated; what comes of it is one line of ours.
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)

DEFAULT_URI = "sqlite:///mlflow.db"
EXECUTION_TAG, STEP_TAG = "iusp.execution", "iusp.step"
BATCH_LIMIT = 1000  # metrics of one request
REASON_LENGTH = 300


class OutageError(InputError):
    """MLflow cannot be reached, fails or refuses."""


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or a database in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def connect() -> MlflowClient:
    """Return a client of the tracking server."""
    uri = tracking_uri()
    if uri.startswith("sqlite:///"):
        _create_database(make_url(uri))
    return MlflowClient(uri)


def _create_database(url: URL) -> None:
    """Let MLflow make a new database under another name: killed amid that, it could never open it again."""
    path = Path(url.database or ":memory:")
    if path.exists() or not path.parent.is_dir() or str(path).startswith((":memory:", "file:")):
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        MlflowClient(str(url.set(database=str(temporary)))).search_experiments(max_results=1)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass  # another process was faster
        except OSError:  # a file system without links
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def execution_name(settings: Mapping[str, Any], data: str) -> str:
    """Return the name under which the runs of these settings, this code and this data (a digest) are kept."""
    return os.environ.get("IUSP_EXECUTION") or digest([settings, code_digest(), data])[:12]


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn what MLflow and its database raise into one line that names the server.

    Raises:
        OutageError: instead.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError, RequestException, ModuleNotFoundError) as error:
        raise OutageError(f"{server_message(error)}; check MLFLOW_TRACKING_URI") from None


def server_message(error: Exception) -> str:
    """Return the tracking server's address and an error of MLflow or its database in one line, without credentials."""
    return _reason(f"MLflow at {tracking_uri()}: {error}")


def _reason(message: str) -> str:
    return without_secrets(one_line(message))[:REASON_LENGTH]


@contextmanager
def readable_storage(what: str) -> Iterator[None]:
    """Turn what MLflow's artifact storage raises, which differs from one kind to the next, into one line.

    Args:
        what: cannot be done.

    Raises:
        OutageError: instead.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise OutageError(f"{what} ({_reason(str(error))}); check MLflow's artifact storage") from None


def _git_commit() -> str | None:
    command = ["git", "rev-parse", "--show-cdup", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
    # Where the way up is not empty, this is an unpacked archive in somebody's repository.
    up, commit = answer.splitlines()
    return None if up else commit


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _now() -> int:
    return int(time.time() * 1000)


class StepRun:
    """The MLflow run of one step of one execution; logging the same thing twice leaves it there once."""

    def __init__(self, client: MlflowClient, run: Run) -> None:
        self._client = client
        self._metrics = run.data.metrics
        self._logged_epoch = run.data.metrics.get("epoch", 0)
        self._params = run.data.params
        # When what is logged afterwards is said to be of: others may log the same at once, and MLflow keeps a point of
        # the same time, step and value once.
        self._begun: int = run.info.start_time
        self.run_id: str = run.info.run_id

    def params(self, values: Mapping[str, Any]) -> None:
        """Log nested settings under dotted names."""
        flat = _flat(values)
        try:
            new = [Param(name, value) for name, value in flat.items() if name not in self._params]
            self._client.log_batch(self.run_id, params=new)
        except MlflowException:
            known = self._client.get_run(self.run_id).data.params
            if known == self._params:
                raise
            # Another process logged some of them in this moment.
            self._params = known
            self.params(values)
        else:
            self._params |= {param.key: param.value for param in new}

    def row(self, row: Mapping[str, float], live: bool = False) -> None:
        """Log one epoch of a training record, which has ended just now if it is `live`, unless it is there already."""
        if row["epoch"] > self._logged_epoch:
            self._log(row, int(row["epoch"]), _now() if live else self._begun)
            self._logged_epoch = row["epoch"]

    def metrics(self, values: Mapping[str, float]) -> None:
        """Log numbers that are not of an epoch, unless they are there already."""
        new = {name: value for name, value in values.items() if self._metrics.get(name) != value}
        self._log({name: value for name, value in new.items() if name not in self._metrics}, 0, self._begun)
        self._log({name: value for name, value in new.items() if name in self._metrics}, 0, _now())  # the latest counts

    def _log(self, values: Mapping[str, float], step: int, moment: int) -> None:
        metrics = [Metric(name, float(value), moment, step) for name, value in values.items()]
        for start in range(0, len(metrics), BATCH_LIMIT):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + BATCH_LIMIT])

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags."""
        self._client.log_batch(self.run_id, tags=[RunTag(name, str(value)) for name, value in values.items()])

    def artifacts(self, paths: Sequence[Path]) -> None:
        """Upload files and folders."""
        for path in paths:
            with readable_storage(f"{path} cannot be stored"):
                if path.is_dir():
                    self._client.log_artifacts(self.run_id, str(path), path.name)
                else:
                    self._client.log_artifact(self.run_id, str(path))


class Tracker:
    """The runs of one execution of the pipeline."""

    def __init__(self, experiment: str, execution: str) -> None:
        self.execution = execution
        self.client = connect()
        plugin = self._plugin_parent()
        if plugin:
            self.experiment_id = plugin.info.experiment_id
            self.parent = StepRun(self.client, plugin)
            self.parent.tags({EXECUTION_TAG: execution, STEP_TAG: "pipeline"})
        else:
            self.experiment_id = self._experiment(experiment)
            self.parent = self._find_or_create("pipeline", f"pipeline {execution}", None)

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        try:
            return found.experiment_id if found else self.client.create_experiment(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            # Another process created it in this moment.
            return self._experiment(name)

    @classmethod
    def of(cls, config: Settings, dataset: Path) -> "Tracker":
        """Return the runs of these settings, this code and the data in a folder, and say in the parent what they are.

        Args:
            config: the whole of params.yaml.
            dataset: folder that the dataset step wrote.

        Raises:
            InputError: there is no data set.
        """
        data = read_json(dataset / "dataset.json", form=Digested)["digest"]
        tracker = cls(config.registration.experiment, execution_name(config.settings(), data))
        tracker.describe(config)
        return tracker

    @classmethod
    def joined(cls) -> "Tracker":
        """Return the runs of the execution that the orchestrator names in IUSP_EXECUTION and MLFLOW_EXPERIMENT_NAME."""
        return cls(os.environ["MLFLOW_EXPERIMENT_NAME"], os.environ["IUSP_EXECUTION"])

    def _plugin_parent(self) -> Run | None:
        """Return the run that Kubeflow's MLflow plugin made for the whole pipeline.

        The plugin names the task's own run in MLFLOW_RUN_ID; its parent, or parent's parent (loops), is the pipeline's.
        """
        run_id = os.environ.get("MLFLOW_RUN_ID")
        run = None
        while run_id:
            run = self.client.get_run(run_id)
            run_id = run.data.tags.get(MLFLOW_PARENT_RUN_ID)
        return run

    def describe(self, config: Settings) -> None:
        """Log settings and versions of the execution."""
        self.parent.params(config.settings())
        versions = {"iusp.code": code_digest(), "iusp.version": version("iusp"), MLFLOW_GIT_COMMIT: _git_commit()}
        self.parent.tags({name: value for name, value in versions.items() if value})

    def _find(self, step: str) -> Run | None:
        named = f"tags.`{EXECUTION_TAG}` = '{self.execution}' and tags.`{STEP_TAG}` = '{step}'"
        found = self.client.search_runs([self.experiment_id], named, order_by=["attributes.start_time ASC"])
        # Two processes made it at once, or an answer was lost and MLflow's client asked again: the oldest counts.
        for double in found[1:]:
            with suppress(MlflowException):  # the other process was faster here, too
                self.client.delete_run(double.info.run_id)
        return found[0] if found else None

    def _find_or_create(self, step: str, name: str, parent: str | None) -> StepRun:
        found = self._find(step)
        tags = {EXECUTION_TAG: self.execution, STEP_TAG: step}
        if parent:
            tags[MLFLOW_PARENT_RUN_ID] = parent
        if not found:
            made = self.client.create_run(self.experiment_id, run_name=name, tags=tags)
            found = self._find(step) or made
        return StepRun(self.client, found)

    @contextmanager
    def step(self, name: str) -> Iterator[StepRun]:
        """Open the run of a step, begun or not, and end it as finished, failed or killed."""
        run = self._find_or_create(name, name, self.parent.run_id)
        self.client.update_run(run.run_id, status="RUNNING")
        try:
            yield run
        except GeneratorExit:  # given up by `TrackedReporter`: MLflow cannot be told
            raise
        except KeyboardInterrupt:
            self.client.set_terminated(run.run_id, "KILLED")
            raise
        except BaseException:
            self.client.set_terminated(run.run_id, "FAILED")
            raise
        self.client.set_terminated(run.run_id, "FINISHED")

    def finish(self, state: str) -> None:
        """End the execution's parent run.

        Args:
            state: of all steps together, in Kubeflow's words, which differ from version to version; where they say
                nothing (a state of tasks in a loop may stay RUNNING), the last step's run decides.
        """
        if state in ("CANCELED", "CANCELLED"):
            status = "KILLED"
        elif state in ("SUCCEEDED", "COMPLETE", "CACHED"):
            status = "FINISHED"
        elif state == "FAILED":
            status = "FAILED"
        else:
            last = self._find("registration")
            status = "FINISHED" if last and last.info.status == "FINISHED" else "FAILED"
        self.client.set_terminated(self.parent.run_id, status)


class TrackedReporter(Reporter):
    """Passes everything on to another reporter, and logs each epoch to MLflow.

    With `outage` `keep`, nothing is logged any more after the first failure of MLflow: the registration step delivers
    all of it later, from the training records, as it does for a step whose output DVC took from its cache.
    """

    def __init__(self, shown: Reporter, outage: str) -> None:
        self._shown = shown
        self._outage = outage
        self._stack = ExitStack()
        self._runs: dict[str, StepRun] = {}

    def progress(self, task: str, done: int, total: int, message: str = "") -> None:
        """Pass it on."""
        self._shown.progress(task, done, total, message)

    def warning(self, message: str) -> None:
        """Pass it on."""
        self._shown.warning(message)

    def epoch(self, network: str, row: Mapping[str, float], epochs: int) -> None:
        """Show the epoch and log it."""
        self._shown.epoch(network, row, epochs)
        if network in self._runs:
            self._attempt(lambda: self._runs[network].row(row, live=True))

    def _begin(self, open_tracker: Callable[[], Tracker], networks: Sequence[str]) -> None:
        tracker = open_tracker()
        self._runs.update((network, self._stack.enter_context(tracker.step(network))) for network in networks)

    def _attempt(self, action: Callable[[], Any]) -> None:
        try:
            with readable_errors():
                action()
        except OutageError as error:
            if self._outage == "fail":
                raise
            # A later epoch would make the earlier ones look logged, and each attempt takes time.
            self._runs.clear()
            self._stack.pop_all()
            self.warning(f"{error}. Training goes on; the registration step delivers what MLflow lacks")


@contextmanager
def tracked(
    shown: Reporter, open_tracker: Callable[[], Tracker], networks: Sequence[str], outage: str
) -> Iterator[TrackedReporter]:
    """Open the MLflow runs of networks that are about to be trained, and close them afterwards.

    Args:
        shown: also receives everything.
        open_tracker: returns the execution's runs.
        networks: names of the networks, as `Reporter.epoch` receives them.
        outage: `registration.outage` of params.yaml: what to do while MLflow fails.

    Raises:
        OutageError: MLflow fails, and `outage` is `fail`.
    """
    reporter = TrackedReporter(shown, outage)
    reporter._attempt(lambda: reporter._begin(open_tracker, networks))
    try:
        yield reporter
    except BaseException as error:
        # A second failure of MLflow must not hide this one.
        with suppress(OutageError), readable_errors():
            reporter._stack.__exit__(type(error), error, error.__traceback__)
        raise
    reporter._attempt(reporter._stack.close)
