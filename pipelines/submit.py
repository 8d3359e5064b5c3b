"""Upload a compiled pipeline to Kubeflow Pipelines and run it there, once or on a schedule.

The token comes from KF_PIPELINES_TOKEN, or from the file that KF_PIPELINES_SA_TOKEN_PATH names. The file is read for
each request, because Kubeflow renews it in its notebooks. SSL_CERT_FILE or REQUESTS_CA_BUNDLE names a file of
certificates. KF_PIPELINES_UI_ENDPOINT is the address for links, if people reach Kubeflow at another address.
"""

import hashlib
import ipaddress
import json
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kfp
import urllib3
import yaml
from google.protobuf import json_format
from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials
from kfp.pipeline_spec import pipeline_spec_pb2
from kfp_server_api import (
    ApiException,
    V2beta1CronSchedule,
    V2beta1Experiment,
    V2beta1Pipeline,
    V2beta1PipelineVersionReference,
    V2beta1RecurringRun,
    V2beta1Run,
    V2beta1RuntimeConfig,
    V2beta1Trigger,
)

from iusp.errors import InputError
from iusp.io.text import one_line

TIMEOUT = (5, 30)  # seconds to connect, seconds between two bytes of the answer
POLL = 5.0  # seconds
PATIENCE = (5, 10, 20, 40, 60, 60, 60)  # seconds before each retry while following a run, because a server may restart
TOKEN, TOKEN_PATH = "KF_PIPELINES_TOKEN", "KF_PIPELINES_SA_TOKEN_PATH"
AUTHORITIES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
ADDRESS = "check the address, which on a dashboard ends in /pipeline"
PAGE = f"it answers with a web page; {ADDRESS}, and the token"
FINAL_STATES = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}
CRON = (
    ("second", 0, 59, ()),
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")),
    ("day of the week", 0, 6, ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")),
)


class RunFailedError(InputError):
    """The run did not succeed. The message names the failed tasks, the reasons and the link of the run."""


class _UnavailableError(InputError):
    """The server cannot answer now; a retry may succeed."""


@dataclass(frozen=True)
class Cluster:
    """A Kubeflow installation.

    Attributes:
        host: http:// or https:// address of Kubeflow Pipelines: the address of its pages up to /#/.
        namespace: Kubernetes namespace, if several users share Kubeflow.
    """

    host: str
    namespace: str | None = None


@dataclass(frozen=True)
class Submission:
    """What is run on a cluster, and how.

    Attributes:
        pipeline_name: the pipeline's name in Kubeflow.
        experiment: name of the experiment that the run belongs to.
        run_name: name of the run or of the recurring run.
        caching: whether tasks may use Kubeflow's cache, as the package says.
        wait: whether to return only when the run has succeeded, and to report each change of state until then.
        schedule: CRON expression, in the cluster's time zone (UTC by default), of five fields, or six with seconds.
    """

    pipeline_name: str
    experiment: str
    run_name: str
    caching: bool = True
    wait: bool = False
    schedule: str | None = None


def submit(package: Path, cluster: Cluster, submission: Submission, say: Callable[[str], None]) -> None:
    """Upload a compiled pipeline and run it.

    The pipeline and the experiment are created if they do not exist. The digest of the package is the name of the
    version, so the same package is uploaded only once.

    An experiment has at most one recurring run of a name. If it already runs this package at these times, it is kept;
    otherwise it is replaced. Runs that it has started continue. Times that pass while the cluster is down, or while a
    run is in progress, are skipped.

    Args:
        package: YAML file that the Kubeflow compiler wrote.
        cluster: the Kubeflow installation.
        submission: what is run, and how.
        say: called with each line that people should read.

    Raises:
        RunFailedError: the submission waits and the run did not succeed.
        InputError: an argument is invalid, or Kubeflow cannot be reached or rejects the request.
    """
    wait, schedule, run_name = submission.wait, submission.schedule, submission.run_name
    if wait and schedule is not None:
        raise InputError("--wait and --schedule cannot be combined, because a recurring run does not end")
    cron = None if schedule is None else _six_fields(schedule)
    content, tasks = _read(package, submission.caching)
    server = _Server(cluster.host, cluster.namespace)
    name = submission.pipeline_name
    version = server.version(server.pipeline(name), name, content, say)
    experiment_id = server.experiment(submission.experiment)
    if cron is not None:
        server.schedule(version, experiment_id, run_name, cron, say)
        return
    run_id = server.run(version, experiment_id, run_name)
    link = f"{server.pages}/#/runs/details/{run_id}"
    say(f"run {run_name}: {link}")
    if not wait:
        return
    try:
        _follow(server, run_id, run_name, tasks, link, say)
    except KeyboardInterrupt:
        say(f"no longer waiting; the run continues: {link}")
        raise


def _six_fields(schedule: str) -> str:
    """Check a CRON expression, and return it with the leading field of seconds that Kubeflow expects."""
    fields = schedule.split()
    if len(fields) == 5:
        fields.insert(0, "0")
    if len(fields) != 6:
        raise InputError(
            f"schedule {schedule!r}: must have five fields (minute, hour, day of the month, month, day of the week), "
            f"or six with the second before them; '0 3 * * 1' is Mondays at 3:00"
        )
    for field, (unit, low, high, names) in zip(fields, CRON, strict=True):
        numbers = {str(number): number for number in range(low, high + 1)}
        numbers |= {name: low + index for index, name in enumerate(names)}
        for item in field.split(","):
            match = re.fullmatch(r"(?:[*?]|(\w+)(?:-(\w+))?)(?:/0*([1-9]\d*))?", item)
            ends = match.groups()[:2] if match else ("none", None)
            values = [numbers.get(end.upper().lstrip("0") or "0", -1) for end in ends if end]
            if -1 in values or values != sorted(values):
                raise InputError(f"schedule {schedule!r}: {item!r} is not a valid {unit} ({low} to {high})")
    return " ".join(fields)


def _read(package: Path, caching: bool) -> tuple[bytes, set[str]]:
    """Return the bytes to upload of a compiled pipeline, and the names of its tasks that run in containers."""
    try:
        content = package.read_bytes()
        documents = list(yaml.safe_load_all(content))
        spec = documents[0]
        json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
        graphs = [part["dag"]["tasks"] for part in (spec["root"], *spec["components"].values()) if "dag" in part]
        refs = [(name, task["componentRef"]["name"]) for graph in graphs for name, task in graph.items()]
        tasks = {name for name, ref in refs if "executorLabel" in spec["components"][ref]}
    except FileNotFoundError:
        raise InputError(f"{package}: no such file; compile the pipeline first") from None
    except (
        yaml.YAMLError,
        json_format.ParseError,
        LookupError,
        TypeError,
        AttributeError,
        UnicodeDecodeError,
    ) as error:
        reason = one_line(error, 200)
        raise InputError(f"{package}: not a compiled pipeline ({reason}); compile it again") from None
    if not caching:
        # Kubeflow cannot disable the cache for a run of an uploaded version, and kfp's switch misses tasks in loops.
        for graph in graphs:
            for task in graph.values():
                task["cachingOptions"] = {}
        content = yaml.safe_dump_all(documents, sort_keys=False).encode()
    return content, tasks


def _token() -> str | None:
    token, path = os.environ.get(TOKEN), os.environ.get(TOKEN_PATH)
    source = TOKEN
    if not token and path:
        source = f"{TOKEN_PATH}={path}"
        try:
            token = Path(path).read_text()
        except (OSError, UnicodeDecodeError):
            raise InputError(f"{source}: cannot be read; unset it or name a file that holds a token") from None
    token = token and token.strip()
    if token and not re.fullmatch(r"[!-~]+", token):
        raise InputError(f"{source}: must contain only the token, without blanks and without 'Bearer'")
    return token


def _authorities() -> str | None:
    for name in AUTHORITIES:
        path = os.environ.get(name)
        if path and not Path(path).is_file():
            raise InputError(f"{name}={path}: no such file; unset it or name a file of certificates (PEM)")
        if path:
            return path
    return None


def _checked(host: str, token: str | None) -> str:
    """Check the address of Kubeflow, and return it without a slash at its end."""
    try:
        parts = urlsplit(host)
        name = parts.hostname
        _ = parts.port
    except ValueError:
        name = None
    if not name or parts.scheme not in ("http", "https"):
        raise InputError("the address of Kubeflow must be like https://kubeflow.example.org or http://localhost:8080")
    if parts.username is not None:
        raise InputError(f"{name}: leave name and password out of the address, and set {TOKEN} to a token")
    if parts.query or parts.fragment:
        raise InputError(f"{name}: give only the part of the address before /#/")
    if token and parts.scheme == "http" and not _is_private(name):
        raise InputError(f"{name}: a token is sent only over https://; give an https:// address")
    return host.rstrip("/")


def _is_private(name: str) -> bool:
    """Return whether a host is this machine, or a service in the same cluster."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith((".svc", ".svc.cluster.local"))


class _Client(kfp.Client):  # type: ignore[misc]
    """kfp.Client without its own retries, which repeat hopeless requests for half a minute and print tracebacks."""

    def _load_config(self, *arguments: Any) -> Any:
        configuration = super()._load_config(*arguments)
        configuration.retries = urllib3.Retry(0, redirect=False)
        return configuration

    def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
        return self._healthz_api.healthz_service_get_healthz(_request_timeout=TIMEOUT)


class _Server:
    """Kubeflow Pipelines at one address. Each of its errors becomes a one-line message."""

    def __init__(self, host: str, namespace: str | None) -> None:
        self._token = _token()
        self.host = _checked(host, self._token)
        self.pages = (os.environ.get("KF_PIPELINES_UI_ENDPOINT") or self.host).rstrip("/")
        if not self._token and os.environ.get("KF_PIPELINES_IAP_OAUTH2_CLIENT_ID"):
            # Otherwise kfp.Client opens a browser and waits.
            raise InputError(f"{host}: get a token of Identity-Aware Proxy, and set {TOKEN} to it")
        from_file = self._token and not os.environ.get(TOKEN)
        with self._readable("connect"), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # every kfp.Client warns that it supports version 2 only
            self._client = _Client(
                host=self.host,
                namespace=namespace or "kubeflow",
                existing_token=None if from_file else self._token,
                credentials=ServiceAccountTokenVolumeCredentials() if from_file else None,
                ssl_ca_cert=_authorities(),
            )
        self._ask("connect", self._client.healthzs.healthz_service_get_healthz)
        self._namespace = namespace or self._client.get_user_namespace() or None

    @contextmanager
    def _readable(self, what: str) -> Iterator[None]:
        try:
            yield
        except ApiException as error:
            kind = _UnavailableError if error.status in (401, 429) or error.status >= 500 else InputError
            raise kind(f"{self.host}: cannot {what}: {self._refusal(error)}") from None
        except urllib3.exceptions.HTTPError as error:
            raise _UnavailableError(f"{self.host}: cannot {what}: {_silence(error)}") from None
        except UnicodeDecodeError:
            raise _UnavailableError(f"{self.host}: cannot {what}: {PAGE}") from None

    def _ask(self, what: str, request: Callable[..., Any], **arguments: Any) -> Any:
        with self._readable(what):
            answer = request(_request_timeout=TIMEOUT, **arguments)
        # kfp accepts a web page as an answer, and then returns an object full of None.
        if "json" not in str(self._client._run_api.api_client.last_response.getheader("content-type")):
            raise _UnavailableError(f"{self.host}: cannot {what}: {PAGE}")
        return answer

    def _refusal(self, error: Any) -> str:
        """Return why the server rejected a request, and what to do."""
        body = error.body or ""
        said = _words(body.replace(self._token, "***") if self._token else body)
        if error.status == 401 or 300 <= error.status < 400:
            return (
                f"it does not accept the token in {TOKEN} or {TOKEN_PATH} ({error.status}); get a new one"
                if self._token
                else f"it requires authentication ({error.status}); set {TOKEN} to a token"
            )
        if error.status == 403:
            return f"not allowed (403){said}; ask its administrator, or name a namespace of yours"
        if error.status == 404 and not said:
            return f"there is no Kubeflow Pipelines (404); {ADDRESS}"
        if error.status >= 500 or error.status == 429:
            return f"the server failed ({error.status}){said}; try again in a minute"
        return f"refused ({error.status}){said}"

    def _find(self, what: str, request: Callable[..., Any], name: str, **arguments: Any) -> Any:
        """List the objects that have a name."""
        predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
        return self._ask(what, request, filter=json.dumps({"predicates": [predicate]}), **arguments)

    def pipeline(self, name: str) -> str:
        """Find or create a pipeline, and return its identifier."""
        api, what = self._client.pipelines, f"find pipeline {name}"
        found = self._find(what, api.pipeline_service_list_pipelines, name, **self._place()).pipelines
        if found:
            return str(found[0].pipeline_id)
        # An upload that also creates the pipeline would give its first version the name of the pipeline.
        pipeline = V2beta1Pipeline(display_name=name, namespace=self._namespace)
        created = self._ask(f"create pipeline {name}", api.pipeline_service_create_pipeline, pipeline=pipeline)
        return str(created.pipeline_id)

    def _place(self) -> dict[str, str]:
        return {"namespace": self._namespace} if self._namespace else {}

    def version(self, pipeline_id: str, pipeline_name: str, content: bytes, say: Callable[[str], None]) -> Any:
        """Find or upload the version with this content, and return the reference that runs take."""
        name = f"{pipeline_name}-{hashlib.sha256(content).hexdigest()[:12]}"
        request = self._client.pipelines.pipeline_service_list_pipeline_versions
        found = self._find(f"find version {name}", request, name, pipeline_id=pipeline_id).pipeline_versions
        if found:
            say(f"version {name}: already uploaded")
            version = found[0]
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "pipeline.yaml"
                path.write_bytes(content)
                version = self._ask(
                    f"upload version {name}",
                    self._client.pipeline_uploads.upload_pipeline_version,
                    uploadfile=str(path),
                    name=name,
                    pipelineid=pipeline_id,
                )
            say(f"version {name}: uploaded")
        return V2beta1PipelineVersionReference(pipeline_id=pipeline_id, pipeline_version_id=version.pipeline_version_id)

    def experiment(self, name: str) -> str:
        """Find or create an experiment, and return its identifier."""
        api, what = self._client.experiments, f"find experiment {name}"
        found = self._find(what, api.experiment_service_list_experiments, name, **self._place()).experiments
        if found:
            return str(found[0].experiment_id)
        experiment = V2beta1Experiment(display_name=name, namespace=self._namespace)
        request = api.experiment_service_create_experiment
        return str(self._ask(f"create experiment {name}", request, experiment=experiment).experiment_id)

    def run(self, version: Any, experiment_id: str, name: str) -> str:
        """Start a run, and return its identifier."""
        run = V2beta1Run(
            display_name=name,
            experiment_id=experiment_id,
            pipeline_version_reference=version,
            runtime_config=V2beta1RuntimeConfig(parameters={}),
        )
        try:
            return str(self._ask(f"start run {name}", self._client.runs.run_service_create_run, run=run).run_id)
        except _UnavailableError as error:
            raise InputError(f"{error}; first check whether the run has started: {self.pages}/#/runs") from None

    def look(self, run_id: str) -> Any:
        """Return the current state of a run."""
        return self._ask("read the state of the run", self._client.runs.run_service_get_run, run_id=run_id)

    def schedule(self, version: Any, experiment_id: str, name: str, cron: str, say: Callable[[str], None]) -> None:
        """Create a recurring run that replaces those with the same name."""
        api, what = self._client.recurring_runs, f"find recurring run {name}"
        listed = self._find(what, api.recurring_run_service_list_recurring_runs, name, experiment_id=experiment_id)
        old = listed.recurring_runs or []
        page = f"{self.pages}/#/recurringrun/details/"
        trigger = V2beta1Trigger(cron_schedule=V2beta1CronSchedule(cron=cron))
        for one in old:
            link, other = f"{page}{one.recurring_run_id}", one.pipeline_version_reference
            if other is None or other.pipeline_id != version.pipeline_id:
                raise InputError(
                    f"recurring run {name} runs another pipeline; delete it, or choose another name: {link}"
                )
            if len(old) == 1 and (one.mode, other, one.trigger) == ("ENABLE", version, trigger):
                say(f"recurring run {name}, at '{cron}', already exists: {link}")
                return
        recurring = V2beta1RecurringRun(
            display_name=name,
            experiment_id=experiment_id,
            pipeline_version_reference=version,
            runtime_config=V2beta1RuntimeConfig(parameters={}),
            trigger=trigger,
            mode="ENABLE",
            max_concurrency="1",
            no_catchup=True,
        )
        create, delete = api.recurring_run_service_create_recurring_run, api.recurring_run_service_delete_recurring_run
        created = self._ask(f"create recurring run {name}", create, recurring_run=recurring)
        # Deleted only now, so that there is always a schedule.
        for one in old:
            self._ask(f"delete the previous recurring run {name}", delete, recurring_run_id=one.recurring_run_id)
        replaced = ", replacing the previous one" if old else ""
        say(f"recurring run {name}, at '{cron}'{replaced}: {page}{created.recurring_run_id}")


def _words(body: str) -> str:
    """Return the message in the body of a server's answer, after a colon, or an empty string."""
    try:
        answer = json.loads(body)
        words = answer.get("message") or answer.get("error_message") or answer.get("error") or ""
    except (ValueError, AttributeError):
        # Not a proxy's HTML page, and not Go's message for an unknown path.
        words = "" if "<" in body or "404 page" in body else body
    return f": {one_line(words, 300)}" if words else ""


def _silence(error: Exception) -> str:
    """Return why a server did not answer, and what to do."""
    cause = getattr(error, "reason", None) or error
    if isinstance(cause, urllib3.exceptions.NameResolutionError):
        return "no such host; check the address, and the VPN if there is one"
    if isinstance(cause, urllib3.exceptions.SSLError):
        return (
            f"TLS failed ({one_line(cause, 150)}); name the certificate of your authority in "
            f"{AUTHORITIES[0]}, and for a server without TLS write http://"
        )
    if isinstance(cause, urllib3.exceptions.NewConnectionError):  # a TimeoutError, too
        return "connection refused or timed out; check address, port and, if you use it, kubectl port-forward"
    if isinstance(cause, urllib3.exceptions.TimeoutError):
        return "no answer in time; check the address, or try again in a minute"
    return "the connection was cut; try again in a minute"


def _follow(
    server: _Server, run_id: str, run_name: str, tasks: set[str], link: str, say: Callable[[str], None]
) -> None:
    """Report each change of state until a run has ended."""
    states: dict[str, str] = {}
    while True:
        run = _look(server, run_id, link, say)
        details = (run.run_details and run.run_details.task_details) or []
        now = {run_id: (f"run {run_name}", run.state)}
        # Other entries are Kubeflow's own: the driver of each task, its pod, and the graph around them.
        now |= {
            task.task_id: (f"task {task.display_name}", task.state) for task in details if task.display_name in tasks
        }
        for key, (name, state) in now.items():
            if state and states.get(key) != state:
                states[key] = state
                say(f"{name}: {state}")
        if run.state in FINAL_STATES:
            break
        time.sleep(POLL)
    if run.state != "SUCCEEDED":
        raise RunFailedError(f"run {run_name}: {run.state}{_causes(run, details, tasks)}; its logs: {link}")


def _look(server: _Server, run_id: str, link: str, say: Callable[[str], None]) -> Any:
    """Return the current state of a run. Restarts, network errors and expired tokens are retried."""
    for delay in PATIENCE:
        try:
            return server.look(run_id)
        except _UnavailableError as error:
            say(f"{error}; the run continues, retrying in {delay} s")
            time.sleep(delay)
    try:
        return server.look(run_id)
    except _UnavailableError as error:
        raise InputError(f"{error}; no longer waiting, the run continues: {link}") from None


def _causes(run: Any, details: list[Any], tasks: set[str]) -> str:
    """Return the names of the failed tasks with their messages, which Kubeflow 2 often omits."""
    failed = [task for task in details if task.state == "FAILED"]
    # If the driver of a task fails, the task itself does not appear.
    culprits = [task for task in failed if task.display_name in tasks] or [
        task for task in failed if str(task.display_name).removesuffix("-driver") in tasks
    ]
    causes = [f"; task {task.display_name}: {_message(task.error) or 'failed'}" for task in culprits]
    if _message(run.error):
        causes.append(f"; {_message(run.error)}")
    return "".join(causes)


def _message(error: Any) -> str:
    return one_line(error.message or "", 300) if error else ""
