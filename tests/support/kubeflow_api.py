"""The part of Kubeflow Pipelines' HTTP API (v2beta1) that submitting needs, with its state in memory.

This is a contract test, not a cluster: nothing is scheduled, no container runs, and a run does only what a test tells
it to. Paths and field names are those of the kfp_server_api package, and a field that it does not know is refused.
What is refused, and in which words and shapes, follows the source of the API server 2.x where submitting meets it:

- uploads are parsed as the protobuf PipelineSpec; names are unique for pipelines, and for versions in a pipeline;
- gRPC's errors are {"error", "code", "message", "details"}, those of uploads {"error_message", "error_details"};
- a run's task_details are Argo's nodes: beside a task are its driver, its pod ("executor") and the graph ("root").
  Real servers of version 2 leave their `error` empty (kubeflow/pipelines 14007), so tests give messages and do not.

Not here: users and rights, Istio and its sign-in pages, paging, Kubernetes-native pipelines, version 3's tasks API.
"""

import json
import re
import ssl
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import kfp_server_api
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

API = "/apis/v2beta1"
GRPC_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 500: 13, 503: 14}
Json = dict[str, Any]
State = str | tuple[str, str]  # what a task is in, with its error's message


@dataclass
class Request:
    """What a client has sent."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Json:
        document: Json = json.loads(self.body)
        return document


@dataclass
class Failure:
    """What happens to requests whose method and path contain `where`, `times` times.

    `kind` is a status, or "cut" (the connection), "slow" (no answer), "page" (HTML with 200), "latin" (500 in another
    encoding), "login" (a redirect), "busy" (503, asking for an hour), or "echo" (401 with a message that repeats what
    the client sent as its authorization).
    """

    where: str
    kind: int | str
    times: int = 1000
    message: str = "injected"


@dataclass
class Progress:
    """A run's state at one look, and its tasks'."""

    state: str
    tasks: dict[str, State] = field(default_factory=dict)
    error: str = ""


class Refusal(Exception):  # noqa: N818
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def unique(kind: str) -> str:
    return f"{kind}-{uuid.uuid4()}"


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def checked(document: Json, model: Any) -> Json:
    """Refuse fields that the API does not have."""
    unknown = set(document) - set(model.attribute_map.values())
    if unknown:
        raise Refusal(400, f"unknown fields {sorted(unknown)} in {model.__name__}")
    return document


def uploaded_file(request: Request) -> bytes:
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    for part in message_from_bytes(head + request.body).walk():
        if part.get_param("name", header="content-disposition") == "uploadfile":
            if not str(part.get_filename()).endswith((".yaml", ".yml")):
                raise Refusal(400, f"Failed to read a pipeline spec file: {part.get_filename()}")
            content = part.get_payload(decode=True)
            assert isinstance(content, bytes)
            return content
    raise Refusal(400, "Failed to read pipeline from file")


def pipeline_spec(content: bytes) -> Json:
    """Parse what the server would."""
    try:
        first: Json = next(iter(yaml.safe_load_all(content)))
        spec = json_format.ParseDict(first, pipeline_spec_pb2.PipelineSpec())
    except (yaml.YAMLError, json_format.ParseError, TypeError, AttributeError) as error:
        raise Refusal(400, f"InvalidInputError: invalid pipeline spec: {error}") from None
    if not (spec.pipeline_info.name and spec.schema_version.startswith("2.") and spec.root.dag.tasks):
        raise Refusal(400, "InvalidInputError: invalid pipeline spec: lacks pipelineInfo, schemaVersion or root")
    return first


class KubeflowApi:
    """A server on this machine; a context manager.

    Args:
        token: what requests must bear, if anything.
        multi_user: experiments need a namespace.
        prefix: path before the API's, as on Kubeflow's dashboard.
        tls: what to serve https with.
    """

    def __init__(
        self, token: str = "", multi_user: bool = False, prefix: str = "", tls: ssl.SSLContext | None = None
    ) -> None:
        self.token, self.multi_user, self.prefix = token, multi_user, prefix
        self.requests: list[Request] = []
        self.failures: list[Failure] = []
        self.progress = [Progress("PENDING"), Progress("RUNNING"), Progress("SUCCEEDED")]
        self.pipelines: dict[str, Json] = {}
        self.versions: dict[str, Json] = {}
        self.experiments: dict[str, Json] = {}
        self.runs: dict[str, Json] = {}
        self.recurring_runs: dict[str, Json] = {}
        self.looks: dict[str, int] = {}
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://localhost:{self._server.server_port}{prefix}"

    def __enter__(self) -> "KubeflowApi":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def sent(self, method: str, path: str) -> list[Request]:
        """Return the requests of a method to a path of the API."""
        return [one for one in self.requests if one.method == method and one.path == self.prefix + API + path]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body are two packets, and the second would wait 40 ms for the first to be confirmed.
            disable_nagle_algorithm = True

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.answer()

            do_POST = do_DELETE = do_GET  # noqa: N815

            def answer(self) -> None:
                parts = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                request = Request(self.command, parts.path, query, headers, body)
                with api._lock:
                    api.requests.append(request)
                    failure = next(
                        (one for one in api.failures if one.times and one.where in f"{self.command} {parts.path}"), None
                    )
                    if failure:
                        failure.times -= 1
                if failure:
                    self.fail(failure, headers)
                    return
                try:
                    with api._lock:
                        self.send(200, api.respond(request))
                except Refusal as refusal:
                    upload = "/pipelines/upload" in parts.path
                    self.send(refusal.status, api.error(refusal.status, str(refusal), upload))

            def fail(self, failure: Failure, headers: dict[str, str]) -> None:
                kind = failure.kind
                if isinstance(kind, int):
                    self.send(kind, api.error(kind, failure.message))
                elif kind == "slow":
                    api.closing.wait(20)
                    self.close_connection = True
                elif kind == "cut":
                    self.close_connection = True
                elif kind == "page":
                    self.send(200, "<!doctype html><title>Sign in</title>", "text/html")
                elif kind == "latin":
                    self.send(500, "<title>Géré par un mandataire</title>".encode("latin-1"), "text/html")
                elif kind == "login":
                    self.send(302, "", "text/html", Location="/dex/auth?client_id=kubeflow")
                elif kind == "echo":
                    self.send(401, api.error(401, f"invalid token: {headers.get('authorization')}"))
                else:
                    self.send(503, "<h1>busy</h1>", "text/html", **{"Retry-After": "3600"})

            def send(self, status: int, answer: Any, kind: str = "application/json", **headers: str) -> None:
                text = answer if isinstance(answer, str | bytes) else json.dumps(answer)
                content = text.encode() if isinstance(text, str) else text
                self.send_response(status)
                for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        return Handler

    def error(self, status: int, message: str, upload: bool = False) -> Any:
        if status == 404 and not message:
            return "404 page not found\n"
        if upload:
            return {"error_message": message, "error_details": f"{message}\n  stack"}
        return {"error": message, "code": GRPC_CODES[status], "message": message, "details": []}

    def respond(self, request: Request) -> Json:
        if not request.path.startswith(self.prefix + API):
            raise Refusal(404, "")
        path = request.path.removeprefix(self.prefix + API)
        if path == "/healthz":
            return {"multi_user": self.multi_user, "pipeline_store": "database"}
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            raise Refusal(401, "Request header error: there is no user identity header.")
        routes: list[tuple[str, Callable[..., Json]]] = [
            ("GET /pipelines", self._list_pipelines),
            ("POST /pipelines", self._create_pipeline),
            ("POST /pipelines/upload", self._upload),
            ("POST /pipelines/upload_version", self._upload_version),
            ("GET /pipelines/([^/]+)/versions", self._list_versions),
            ("GET /pipelines/([^/]+)/versions/([^/]+)", lambda _, _pipeline, one: self._known(self.versions, one)),
            ("GET /pipelines/([^/]+)", lambda _, one: self._known(self.pipelines, one)),
            ("GET /experiments", self._list_experiments),
            ("POST /experiments", self._create_experiment),
            ("GET /experiments/([^/]+)", lambda _, one: self._known(self.experiments, one)),
            ("POST /runs", self._create_run),
            ("GET /runs/([^/]+)", self._look),
            ("GET /recurringruns", self._list_recurring),
            ("POST /recurringruns", self._create_recurring),
            ("GET /recurringruns/([^/]+)", lambda _, one: self._known(self.recurring_runs, one)),
            ("DELETE /recurringruns/([^/]+)", self._delete_recurring),
        ]
        for route, respond in routes:
            match = re.fullmatch(route, f"{request.method} {path}")
            if match:
                return respond(request, *map(unquote, match.groups()))
        raise Refusal(404, "")

    def _known(self, things: dict[str, Json], identifier: str) -> Json:
        if identifier not in things:
            raise Refusal(404, f"ResourceNotFoundError: {identifier} not found.")
        return things[identifier]

    def _filtered(self, request: Request, things: list[Json], key: str) -> Json:
        predicates = json.loads(request.query.get("filter", "{}")).get("predicates", [])
        for predicate in predicates:
            if predicate["operation"] not in (1, "EQUALS") or predicate["key"] != "display_name":
                raise Refusal(400, f"Invalid input error: filter {predicate}")
            wanted = predicate.get("stringValue", predicate.get("string_value"))
            things = [one for one in things if one["display_name"] == wanted]
        # An empty list is left out, as by the real server.
        return {key: things, "total_size": len(things)} if things else {}

    def _list_pipelines(self, request: Request) -> Json:
        namespace = request.query.get("namespace", "")
        things = [one for one in self.pipelines.values() if one["namespace"] == namespace]
        return self._filtered(request, things, "pipelines")

    def _new_pipeline(self, name: str, display_name: str, namespace: str) -> Json:
        if not name.strip():
            raise Refusal(400, "Invalid input error: pipeline's name cannot be empty")
        if any((one["name"], one["namespace"]) == (name, namespace) for one in self.pipelines.values()):
            raise Refusal(409, f"Already exist error: Failed to create a new pipeline. The name {name} already exist")
        identifier = unique("pipeline")
        self.pipelines[identifier] = {
            "pipeline_id": identifier,
            "name": name,
            "display_name": display_name,
            "namespace": namespace,
            "created_at": now(),
        }
        return self.pipelines[identifier]

    def _create_pipeline(self, request: Request) -> Json:
        sent = checked(request.json(), kfp_server_api.V2beta1Pipeline)
        display_name = sent.get("display_name", "")
        return self._new_pipeline(sent.get("name") or display_name, display_name, sent.get("namespace", ""))

    def _new_version(self, pipeline_id: str, name: str, spec: Json) -> Json:
        if any((one["pipeline_id"], one["name"]) == (pipeline_id, name) for one in self.versions.values()):
            raise Refusal(409, "Failed to create a pipeline version")
        identifier = unique("version")
        self.versions[identifier] = {
            "pipeline_id": pipeline_id,
            "pipeline_version_id": identifier,
            "name": name,
            "display_name": name,
            "pipeline_spec": spec,
            "created_at": now(),
        }
        return self.versions[identifier]

    def _upload(self, request: Request) -> Json:
        spec = pipeline_spec(uploaded_file(request))
        name = request.query.get("name", "pipeline.yaml")
        pipeline = self._new_pipeline(name, name, request.query.get("namespace", ""))
        self._new_version(pipeline["pipeline_id"], name, spec)
        return pipeline

    def _upload_version(self, request: Request) -> Json:
        spec = pipeline_spec(uploaded_file(request))
        pipeline_id = request.query.get("pipelineid", "")
        if pipeline_id not in self.pipelines:
            raise Refusal(400, "Failed to create a pipeline version")
        return self._new_version(pipeline_id, request.query.get("name", "pipeline.yaml"), spec)

    def _list_versions(self, request: Request, pipeline_id: str) -> Json:
        self._known(self.pipelines, pipeline_id)
        things = [one for one in self.versions.values() if one["pipeline_id"] == pipeline_id]
        return self._filtered(request, things, "pipeline_versions")

    def _list_experiments(self, request: Request) -> Json:
        namespace = request.query.get("namespace", "")
        if self.multi_user and not namespace:
            raise Refusal(400, "Invalid input error: In multi-user mode, ListExperiment must filter by namespace")
        things = [one for one in self.experiments.values() if one["namespace"] == namespace]
        return self._filtered(request, things, "experiments")

    def _create_experiment(self, request: Request) -> Json:
        sent = checked(request.json(), kfp_server_api.V2beta1Experiment)
        name, namespace = sent.get("display_name"), sent.get("namespace", "")
        if not name or (self.multi_user and not namespace):
            raise Refusal(400, "Invalid input error: an experiment needs a name, and in multi-user mode a namespace")
        if any((one["display_name"], one["namespace"]) == (name, namespace) for one in self.experiments.values()):
            raise Refusal(
                409, f"Already exist error: Failed to create a new experiment. The name {name} already exists"
            )
        identifier = unique("experiment")
        self.experiments[identifier] = sent | {
            "experiment_id": identifier,
            "namespace": namespace,
            "storage_state": "AVAILABLE",
            "created_at": now(),
        }
        return self.experiments[identifier]

    def _job(self, sent: Json) -> None:
        """Check what a run and a recurring run have in common."""
        if not sent.get("display_name"):
            raise Refusal(400, "Invalid input error: The run name is empty. Please specify a valid name")
        self._known(self.experiments, sent.get("experiment_id", ""))
        reference, spec = sent.get("pipeline_version_reference"), sent.get("pipeline_spec")
        if bool(reference) == bool(spec):
            raise Refusal(400, "Invalid input error: give either a pipeline version or a pipeline spec")
        if reference:
            checked(reference, kfp_server_api.V2beta1PipelineVersionReference)
            self._known(self.pipelines, reference.get("pipeline_id", ""))
            version = self._known(self.versions, reference.get("pipeline_version_id", ""))
            if version["pipeline_id"] != reference["pipeline_id"]:
                raise Refusal(400, "Invalid input error: the version is another pipeline's")
            spec = version["pipeline_spec"]
        runtime = checked(sent.get("runtime_config", {}), kfp_server_api.V2beta1RuntimeConfig)
        assert spec
        declared = spec.get("root", {}).get("inputDefinitions", {}).get("parameters", {})
        given = runtime.get("parameters", {})
        for name in given:
            if name not in declared:
                raise Refusal(400, f"Invalid input error: parameter {name} is not in the pipeline spec")
        missing = [name for name, one in declared.items() if name not in given and not one.get("isOptional")]
        if missing:
            raise Refusal(400, f"Invalid input error: parameters {missing} are required")

    def _create_run(self, request: Request) -> Json:
        sent = checked(request.json(), kfp_server_api.V2beta1Run)
        self._job(sent)
        identifier = unique("run")
        self.runs[identifier] = sent | {
            "run_id": identifier,
            "state": "PENDING",
            "storage_state": "AVAILABLE",
            "created_at": now(),
        }
        return self.runs[identifier]

    def _look(self, _: Request, run_id: str) -> Json:
        run = self._known(self.runs, run_id)
        look = self.looks[run_id] = self.looks.get(run_id, -1) + 1
        progress = self.progress[min(look, len(self.progress) - 1)]
        nodes: list[tuple[str, str, State]] = [("root", "root", progress.state), ("root", "root-driver", "SUCCEEDED")]
        for key, state in progress.tasks.items():
            # "student#2" is the second task of that name, as loops make them.
            name = key.partition("#")[0]
            driver = name.endswith("-driver")
            nodes += (
                [(key, name, state)]
                if driver
                else [
                    (key, name, state),
                    (key, f"{name}-driver", "SUCCEEDED"),
                    (key, "executor", state if isinstance(state, str) else state[0]),
                ]
            )
        answer = run | {
            "state": progress.state,
            "run_details": {"task_details": [self._detail(run_id, *node) for node in nodes]},
        }
        if progress.error:
            answer["error"] = {"code": 13, "message": progress.error}
        return answer

    def _detail(self, run_id: str, key: str, name: str, state: State) -> Json:
        word, message = (state, "") if isinstance(state, str) else state
        detail = {
            "run_id": run_id,
            "task_id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{run_id} {key} {name}")),
            "display_name": name,
            "state": word,
            "create_time": now(),
            "child_tasks": [{"pod_name": f"{run_id}-{name}"}],
        }
        return detail | ({"error": {"code": 13, "message": message, "details": []}} if message else {})

    def _list_recurring(self, request: Request) -> Json:
        wanted = request.query.get("experiment_id")
        things = [one for one in self.recurring_runs.values() if wanted in (None, one["experiment_id"])]
        return self._filtered(request, things, "recurringRuns")

    def _create_recurring(self, request: Request) -> Json:
        sent = checked(request.json(), kfp_server_api.V2beta1RecurringRun)
        self._job(sent)
        if not 1 <= int(sent.get("max_concurrency", 0)) <= 10:
            raise Refusal(400, "Max concurrency of a recurring run must be at leas 1 and at most 10.")
        cron = checked(sent["trigger"], kfp_server_api.V2beta1Trigger)["cron_schedule"]["cron"]
        # Go's cron takes five fields for second to month, so the sixth must be there to mean what people mean.
        if len(cron.split()) != 6:
            raise Refusal(400, "Schedule cron is not a supported format(https://godoc.org/github.com/robfig/cron).")
        identifier = unique("recurring")
        status = "ENABLED" if sent.get("mode") == "ENABLE" else "DISABLED"
        self.recurring_runs[identifier] = sent | {"recurring_run_id": identifier, "status": status, "created_at": now()}
        return self.recurring_runs[identifier]

    def _delete_recurring(self, _: Request, identifier: str) -> Json:
        self._known(self.recurring_runs, identifier)
        del self.recurring_runs[identifier]
        return {}
