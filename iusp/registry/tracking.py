"""MLflow runs: one run for each step, under one parent run for each execution of the pipeline.

An execution is named after what it computes (settings, code and data), or by IUSP_EXECUTION where an orchestrator sets
it. A pipeline that is killed and started again continues in the same runs, and nothing is logged twice. If Kubeflow's
own MLflow plugin has created a parent run, that run is used.
"""

import logging
import os
import platform
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException, RestException
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_PARENT_RUN_ID
from mlflow.utils.uri import is_local_uri
from requests import RequestException
from sqlalchemy import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from iusp.artifacts.dataset import DatasetFolder
from iusp.config.params import Settings
from iusp.errors import InputError
from iusp.io.files import code_digest, digest
from iusp.io.text import one_line, without_secrets
from iusp.reporter import Reporter

DEFAULT_URI = "sqlite:///mlflow.db"
EXECUTION_TAG, STEP_TAG, PROCESS_TAG = "iusp.execution", "iusp.step", "iusp.process"
BATCH_LIMIT = 1000  # metrics of one request
REASON_LENGTH = 300
DEFAULTS = {
    # Progress bars of small files are noise in a step's log.
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Download through the server, which may know its storage by a name that clients cannot resolve.
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    # MLflow's seven retries would hide a wrong address for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
}
MLFLOW_ERRORS = (MlflowException, SQLAlchemyError, RequestException)
# Error codes of MLflow for requests whose content it refuses.
CONTENT_ERRORS = (
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_CONFLICT",
    "RESOURCE_DOES_NOT_EXIST",
)
# Loggers of what an error message repeats: a database's errors, with a traceback, and every HTTP retry.
QUIET_LOGGERS = {"mlflow.store.db.utils": logging.CRITICAL, "urllib3.connectionpool": logging.ERROR}


class OutageError(InputError):
    """MLflow cannot be reached, fails or refuses a request."""


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or the address of a database in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def _configure() -> None:
    """Set what MLflow takes from environment variables alone."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    # MLflow would print the address of each run that ends, with the password in it. No user may switch that on.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    for name, level in QUIET_LOGGERS.items():
        logging.getLogger(name).setLevel(level)


def connect() -> MlflowClient:
    """Return a client of the tracking server.

    Raises:
        InputError: MLFLOW_TRACKING_URI, or its default, names a database or a folder that does not exist.
    """
    _configure()
    uri = tracking_uri()
    path = _database(uri) or _folder(uri)
    if path and not path.exists():
        raise InputError(
            f"there is no registry: {uri} does not exist; run the pipeline (make run or dvc repro), or set "
            "MLFLOW_TRACKING_URI"
        )
    return MlflowClient(uri)


def _folder(uri: str) -> Path | None:
    """Return the local folder that an address names, or None."""
    if not is_local_uri(uri):  # type: ignore[no-untyped-call]
        return None
    return Path(local_file_uri_to_path(uri))  # type: ignore[no-untyped-call]


def connect_or_create() -> MlflowClient:
    """Return a client of the tracking server; a database that is a file is created."""
    _configure()
    uri = tracking_uri()
    if path := _database(uri):
        _create_database(make_url(uri), path)
    return MlflowClient(uri)


def _database(uri: str) -> Path | None:
    """Return the file of an SQLite database; None for other addresses and databases in memory."""
    if not uri.startswith("sqlite"):
        return None
    path = make_url(uri).database or ":memory:"
    return None if path.startswith((":memory:", "file:")) else Path(path)


def _create_database(url: URL, path: Path) -> None:
    """Let MLflow create a database under a temporary name: after a kill, it could not open a half-created one."""
    if path.exists() or not path.parent.is_dir():
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        MlflowClient(str(url.set(database=str(temporary)))).search_experiments(max_results=1)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass  # another process created it first
        except OSError:  # a file system without hard links
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def execution_name(settings: Mapping[str, object], data: str) -> str:
    """Return the name of an execution, from its settings, this code and the digest of its data."""
    return os.environ.get("IUSP_EXECUTION") or digest([settings, code_digest(), data])[:12]


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn errors of MLflow and its database into one line that names the server.

    Raises:
        OutageError: MLflow or its database raised an error.
    """
    try:
        yield
    except (*MLFLOW_ERRORS, ModuleNotFoundError) as error:
        advice = "" if _about_content(error) else "; check MLFLOW_TRACKING_URI"
        raise OutageError(f"{server_message(error)}{advice}") from None


def _about_content(error: Exception) -> bool:
    """Return whether MLflow understood a request and refused its content; the address is right then."""
    if not isinstance(error, MlflowException) or error.error_code not in CONTENT_ERRORS:
        return False
    # A server that is not MLflow answers with HTTP 404 and without MLflow's JSON.
    return isinstance(error, RestException) or not tracking_uri().startswith("http")


def server_message(error: Exception) -> str:
    """Return the tracking server's address and an error of MLflow or its database in one line, without credentials."""
    return _reason(f"MLflow at {tracking_uri()}: {error}")


def _reason(message: str) -> str:
    return without_secrets(one_line(message))[:REASON_LENGTH]


@contextmanager
def readable_storage(what: str) -> Iterator[None]:
    """Turn errors of MLflow's artifact storage into one line; each kind of storage has its own classes of errors.

    Args:
        what: start of the message, such as `report.html cannot be stored`.

    Raises:
        OutageError: the storage raised an error.
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
    # If the path up to the root is not empty, this folder is an unpacked archive inside another repository.
    up, commit = answer.splitlines()
    return None if up else commit


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Return nested settings by names joined with dots; MLflow refuses some characters, which become underscores."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = prefix + re.sub(r"[^\w. -]", "_", key)
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = str(value)
    return flat


def _now() -> int:
    return int(time.time() * 1000)


class StepRun:
    """The MLflow run of one step of one execution. What is logged twice is stored once."""

    def __init__(self, client: MlflowClient, run: Run) -> None:
        self._client = client
        self._metrics = run.data.metrics
        self._logged_epoch = run.data.metrics.get("epoch", 0)
        self._params = run.data.params
        # Time stamp of metrics that are logged after the fact. MLflow stores points of the same time, step and value
        # once, even if two processes log them at once.
        self._begun: int = run.info.start_time
        self.run_id: str = run.info.run_id

    def params(self, values: Mapping[str, object]) -> None:
        """Log nested settings under dotted names."""
        flat = _flat(values)
        try:
            new = [Param(name, value) for name, value in flat.items() if name not in self._params]
            self._client.log_batch(self.run_id, params=new)
        except MlflowException:
            logged = self._client.get_run(self.run_id).data.params
            if logged == self._params:
                raise
            # Another process has just logged some of them.
            self._params = logged
            self.params(values)
        else:
            self._params |= {param.key: param.value for param in new}

    def row(self, row: Mapping[str, float], live: bool = False) -> None:
        """Log one epoch of a training record, unless it is logged already.

        Args:
            row: the epoch's row of the record.
            live: whether the epoch has ended just now; its points then get the current time.
        """
        if row["epoch"] > self._logged_epoch:
            self._log(row, int(row["epoch"]), _now() if live else self._begun)
            self._logged_epoch = row["epoch"]

    def metrics(self, values: Mapping[str, float]) -> None:
        """Log numbers that belong to no epoch, unless they are logged already."""
        new = {name: value for name, value in values.items() if self._metrics.get(name) != value}
        self._log({name: value for name, value in new.items() if name not in self._metrics}, 0, self._begun)
        # MLflow shows the newest value.
        self._log({name: value for name, value in new.items() if name in self._metrics}, 0, _now())

    def _log(self, values: Mapping[str, float], step: int, moment: int) -> None:
        metrics = [Metric(name, float(value), moment, step) for name, value in values.items()]
        for start in range(0, len(metrics), BATCH_LIMIT):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + BATCH_LIMIT])

    def tags(self, values: Mapping[str, object]) -> None:
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


def _local_storage(experiment: Experiment) -> Path | None:
    """Return the folder that holds an experiment's artifacts, if MLflow's database is a file of this machine."""
    return _folder(experiment.artifact_location) if tracking_uri().startswith("sqlite") else None


def _check_experiment(experiment: Experiment) -> None:
    """Refuse an experiment that is deleted, or whose artifacts belong into a folder that was moved.

    MLflow stores the absolute path of an experiment's folder and cannot change it. It would create the old folder
    again.

    Raises:
        OutageError: the experiment cannot be used.
    """
    name, ways_out = experiment.name, "set another registration.experiment in params.yaml"
    if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        raise OutageError(
            f"MLflow's experiment {name} is deleted; restore it (mlflow experiments restore --experiment-id "
            f"{experiment.experiment_id}), or {ways_out}"
        )
    folder = _local_storage(experiment)
    if folder and not folder.exists() and not folder.is_relative_to(Path.cwd()):
        raise OutageError(
            f"MLflow's experiment {name} keeps its files in {folder}, which does not exist; if the project was moved, "
            f"move it back or link its old path to the new one; otherwise, {ways_out}"
        )


class _TerminatedError(SystemExit):
    """SIGTERM or SIGHUP was received; the exit status is that of the signal."""


def _raise_terminated(number: int, _frame: object) -> None:
    raise _TerminatedError(128 + number)


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exception, unless this program handles or ignores them otherwise."""
    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGHUP) if main else ()
    replaced = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in replaced:
        signal.signal(number, _raise_terminated)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process
        return True
    return True


def _host() -> str:
    return re.sub(r"[^\w.-]", "", platform.node())


class Tracker:
    """The runs of one execution of the pipeline."""

    def __init__(self, experiment: str, execution: str) -> None:
        self.execution = execution
        self._reachable = True
        self.client = connect_or_create()
        plugin = self._plugin_parent()
        if plugin:
            self.experiment_id = plugin.info.experiment_id
            self.parent = StepRun(self.client, plugin)
            self.parent.tags({EXECUTION_TAG: execution, STEP_TAG: "pipeline"})
        else:
            self.experiment_id = self._experiment(experiment)
            self.parent = self._find_or_create("pipeline", f"pipeline {execution}", None)
            self._end_abandoned()

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found:
            _check_experiment(found)
            return str(found.experiment_id)
        try:
            created = self.client.get_experiment(self.client.create_experiment(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            # Another process has just created it.
            return self._experiment(name)
        if folder := _local_storage(created):
            # `_check_experiment` takes a missing folder for that of a project that was moved.
            folder.mkdir(parents=True, exist_ok=True)
        return str(created.experiment_id)

    @classmethod
    def of(cls, config: Settings, dataset: Path) -> "Tracker":
        """Open the runs of an execution that these settings, this code and this data name, and log the settings.

        Args:
            config: all settings.
            dataset: folder that the dataset step wrote.

        Raises:
            InputError: the folder holds no data set.
        """
        data = DatasetFolder(dataset).digest
        tracker = cls(config.registration.experiment, execution_name(config.settings(), data))
        tracker.describe(config)
        return tracker

    @classmethod
    def joined(cls) -> "Tracker":
        """Open the runs of the execution that the orchestrator names in IUSP_EXECUTION and MLFLOW_EXPERIMENT_NAME."""
        return cls(os.environ["MLFLOW_EXPERIMENT_NAME"], os.environ["IUSP_EXECUTION"])

    def _plugin_parent(self) -> Run | None:
        """Return the run that Kubeflow's MLflow plugin created for the whole pipeline.

        MLFLOW_RUN_ID holds the run of the task. The pipeline's run is its parent, or in a loop its parent's parent.
        """
        run_id = os.environ.get("MLFLOW_RUN_ID")
        run = None
        while run_id:
            run = self.client.get_run(run_id)
            run_id = run.data.tags.get(MLFLOW_PARENT_RUN_ID)
        return run

    def describe(self, config: Settings) -> None:
        """Log the settings of the execution and the versions of the code."""
        self.parent.params(config.settings())
        versions = {"iusp.code": code_digest(), "iusp.version": version("iusp"), MLFLOW_GIT_COMMIT: _git_commit()}
        self.parent.tags({name: value for name, value in versions.items() if value})

    def _find(self, step: str) -> Run | None:
        named = f"tags.`{EXECUTION_TAG}` = '{self.execution}' and tags.`{STEP_TAG}` = '{step}'"
        found = self.client.search_runs([self.experiment_id], named, order_by=["attributes.start_time ASC"])
        # Two processes may have created a run at once, or MLflow's client repeated a request whose answer was lost: the
        # oldest run counts.
        for double in found[1:]:
            with suppress(MlflowException):  # the other process has deleted it
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
        elif parent and found.data.tags.get(MLFLOW_PARENT_RUN_ID) != parent:  # its parent was deleted
            self.client.set_tag(found.info.run_id, MLFLOW_PARENT_RUN_ID, parent)
        return StepRun(self.client, found)

    @contextmanager
    def step(self, name: str) -> Iterator[StepRun]:
        """Open the run of a step, or resume it, and end it as finished, failed or killed."""
        run = self._find_or_create(name, name, self.parent.run_id)
        with self.ended_badly(run):
            yield run
        self.client.set_terminated(run.run_id, "FINISHED")

    @contextmanager
    def ended_badly(self, run: StepRun) -> Iterator[None]:
        """Mark a run as running, and end it as failed after an exception, or as killed after Ctrl-C or SIGTERM."""
        self.client.update_run(run.run_id, status="RUNNING")
        # By this tag, a later execution sees that a process was killed before it could end its run.
        run.tags({PROCESS_TAG: f"{_host()} {os.getpid()}"})
        try:
            with _signals_as_exceptions():
                yield
        except GeneratorExit:  # `TrackedReporter` gave up, because MLflow cannot be reached
            raise
        except (KeyboardInterrupt, _TerminatedError):
            self._end(run, "KILLED")
            raise
        except BaseException:
            self._end(run, "FAILED")
            raise

    def _end(self, run: StepRun, status: str) -> None:
        """End a run after an error; a failure of MLflow must not hide that error, and is not waited for twice."""
        if self._reachable:
            try:
                self.client.set_terminated(run.run_id, status)
            except MLFLOW_ERRORS:
                self._reachable = False

    def _end_abandoned(self) -> None:
        """Mark the running runs of other executions as killed, if their process on this machine no longer exists.

        A run of this execution stays: it is continued. A parent run whose next step has yet to start is marked too,
        and the next step marks it as running again.
        """
        running = f"attributes.status = 'RUNNING' and tags.`{PROCESS_TAG}` LIKE '{_host()} %'"
        for run in self.client.search_runs([self.experiment_id], running):
            process = run.data.tags[PROCESS_TAG].rpartition(" ")[2]
            if run.data.tags.get(EXECUTION_TAG) != self.execution and not _exists(int(process)):
                self.client.set_terminated(run.info.run_id, "KILLED")

    def finish(self, state: str) -> None:
        """End the execution's parent run.

        Args:
            state: final state of the pipeline as Kubeflow names it, which differs from version to version. Where the
                state is not final (with tasks in a loop it may stay RUNNING), the run of the last step decides.
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
        running = f"attributes.status = 'RUNNING' and tags.`{EXECUTION_TAG}` = '{self.execution}'"
        for run in self.client.search_runs([self.experiment_id], running):
            if run.info.run_id != self.parent.run_id:
                self.client.set_terminated(run.info.run_id, "KILLED")  # a step that was killed with its pod
        self.client.set_terminated(self.parent.run_id, status)


class TrackedReporter(Reporter):
    """Passes everything on to another reporter, and logs each epoch to MLflow.

    If `outage` is `keep`, logging stops after the first failure of MLflow. The registration step logs what is missing
    later, from the training records, as it does for a step whose output DVC took from its cache.
    """

    def __init__(self, shown: Reporter, outage: str) -> None:
        self._shown = shown
        self._outage = outage
        self._stack = ExitStack()
        self._runs: dict[str, StepRun] = {}

    def progress(self, task: str, done: int, total: int, message: str = "") -> None:
        """Pass progress on."""
        self._shown.progress(task, done, total, message)

    def warning(self, message: str) -> None:
        """Pass a warning on."""
        self._shown.warning(message)

    def epoch(self, network: str, row: Mapping[str, float], epochs: int) -> None:
        """Show the epoch and log it."""
        self._shown.epoch(network, row, epochs)
        if network in self._runs:
            self._attempt(lambda: self._runs[network].row(row, live=True))

    def _begin(self, open_tracker: Callable[[], Tracker], networks: Sequence[str]) -> None:
        tracker = open_tracker()
        self._stack.enter_context(tracker.ended_badly(tracker.parent))
        self._runs.update((network, self._stack.enter_context(tracker.step(network))) for network in networks)

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            with readable_errors():
                action()
        except OutageError as error:
            if self._outage == "fail":
                raise
            # If a later epoch were logged, the missing ones would seem to be logged too; and each attempt takes time.
            self._runs.clear()
            self._stack.pop_all()
            self.warning(f"{error}. Training continues; the registration step logs what is missing in MLflow")


@contextmanager
def tracked(
    shown: Reporter, open_tracker: Callable[[], Tracker], networks: Sequence[str], outage: str
) -> Iterator[TrackedReporter]:
    """Open the MLflow runs of networks that are about to be trained, and close them afterwards.

    Args:
        shown: reporter that everything is passed on to.
        open_tracker: function that opens the runs of the execution.
        networks: names of the networks, as `Reporter.epoch` receives them.
        outage: `registration.outage` of params.yaml: what to do if MLflow fails.

    Raises:
        OutageError: MLflow fails, and `outage` is `fail`.
    """
    reporter = TrackedReporter(shown, outage)
    reporter._attempt(lambda: reporter._begin(open_tracker, networks))
    try:
        yield reporter
    except BaseException as error:
        # A failure of MLflow must not hide this error.
        with suppress(OutageError), readable_errors():
            reporter._stack.__exit__(type(error), error, error.__traceback__)
        raise
    reporter._attempt(reporter._stack.close)
