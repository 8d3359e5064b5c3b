"""Real S3 servers on loopback, and a proxy in front of them that does what networks do."""

import http.client
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import boto3
import pytest

from tests.support.local_servers import free_port, started

BUCKET = "recordings"
KEY, SECRET = "TESTACCESSKEY", "test/secret+key"
KINDS = ("moto", "rclone")  # moto checks no signature, rclone ignores If-Match: neither alone is enough


def environment(endpoint: str, secret: str = SECRET) -> dict[str, str]:
    """What tells boto3 of a server, before the user's own settings."""
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def use(monkeypatch: pytest.MonkeyPatch, endpoint: str, **changes: str) -> None:
    """Have boto3 in this process, and in those that it starts, speak to a server."""
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in (environment(endpoint) | changes).items():
        monkeypatch.setenv(name, value)


@cache
def client(endpoint: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
    )


def upload(endpoint: str, folder: Path, prefix: str, bucket: str = BUCKET) -> None:
    """Put a folder's files below a prefix."""
    server = client(endpoint)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            server.put_object(Bucket=bucket, Key=f"{prefix}{path.relative_to(folder)}", Body=path.read_bytes())


@contextmanager
def serving(kind: str, folder: Path) -> Iterator[str]:
    """Start a server with an empty bucket that keeps its data and log in `folder`; yield its address."""
    port = free_port()
    programs = Path(sys.executable).parent
    if kind == "moto":
        command: list[str | Path] = [programs / "moto_server", "-H", "127.0.0.1", "-p", str(port)]
    else:
        (folder / "data").mkdir()
        # Not the system's: rclone serves S3 since version 1.65.
        command = [programs / "rclone", "--config", "", "serve", "s3", "--addr", f"127.0.0.1:{port}"]
        command += ["--auth-key", f"{KEY},{SECRET}", folder / "data"]
    with started(command, port, folder):
        client(f"http://127.0.0.1:{port}").create_bucket(Bucket=BUCKET)
        yield f"http://127.0.0.1:{port}"


@dataclass
class Fault:
    """What the proxy does to an answer.

    Attributes:
        status: answer with this status and S3's error `code` instead of asking the server.
        late: ask the server nevertheless, before.
        code: S3's error code.
        message: S3's error message.
        keep: send this many bytes of the body, and break off.
        flip: change a bit in the middle of the body.
        wait: seconds before the body.
        headers: to be sent instead of the server's; an empty one is not sent.
        shorten: keep this many bytes of the body, and let them pass for all of it.
        drop: ask the server, and break off without an answer; with a status, break off without asking.
        after: called when the server has answered, before anybody hears of it.
    """

    status: int = 0
    late: bool = False
    code: str = "InternalError"
    message: str = ""
    keep: int | None = None
    flip: bool = False
    wait: float = 0
    headers: dict[str, str] = field(default_factory=dict)
    shorten: int | None = None
    drop: bool = False
    after: Callable[[], None] = lambda: None


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a server (of S3, or MLflow's), and tells of those for objects.

    Attributes:
        fault: asked with the object's key, empty for a listing, after `PUT ` where it is to be written (or `POST `, for
            MLflow), and how many such requests came before; a Fault or None. It may wait: the server is asked
            afterwards.
        requests: what the fault was asked with, in order.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, server: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.server = urlsplit(server).netloc
        self.fault: Callable[[str, int], Fault | None] = lambda key, before: None
        self.requests: list[str] = []
        self.lock = threading.Lock()
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The other side has broken off: it was meant to, or was killed."""


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[None]:
    """Have a server answer, in a thread of its own."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def proxying(server: str) -> Iterator[Proxy]:
    proxy = Proxy(server)
    with running(proxy):
        yield proxy


class _Handler(BaseHTTPRequestHandler):
    server: Proxy

    def do_HEAD(self) -> None:
        self._pass_on(Fault())

    def do_PUT(self) -> None:
        self._answer("PUT ")

    def do_GET(self) -> None:
        self._answer("")

    def do_POST(self) -> None:
        self._answer("POST ")

    def do_PATCH(self) -> None:
        self._answer("PATCH ")

    def do_DELETE(self) -> None:
        self._answer("DELETE ")

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        key = method + unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}").removeprefix("/")
        with self.server.lock:
            before = self.server.requests.count(key)
            self.server.requests.append(key)
        fault = self.server.fault(key, before) or Fault()
        if fault.status and not fault.late:
            self._refuse(fault)
        else:
            self._pass_on(fault, body)

    def _refuse(self, fault: Fault) -> None:
        text = f"<Error><Code>{fault.code}</Code><Message>{fault.message}</Message></Error>"
        self._send(fault.status, {"Content-Type": "application/xml"}, text.encode(), fault)

    def _pass_on(self, fault: Fault, content: bytes = b"") -> None:
        connection = http.client.HTTPConnection(self.server.server, timeout=60)
        # The signature is of the Host that the client knows.
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            connection.putheader(name, value)
        connection.endheaders(content)
        answer = connection.getresponse()
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in ("connection", "server")}
        body = answer.read()
        connection.close()
        fault.after()
        if fault.late:
            self._refuse(fault)
        else:
            self._send(answer.status, headers, body, fault)

    def _send(self, status: int, headers: dict[str, str], body: bytes, fault: Fault) -> None:
        if fault.drop:
            raise ConnectionAbortedError
        body = body[: fault.shorten]
        changed = fault.headers | ({} if self.command == "HEAD" else {"Content-Length": str(len(body))})
        hidden = {"transfer-encoding", "date", *map(str.lower, changed)}
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in hidden:
                self.send_header(name, value)
        for name, value in changed.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if fault.flip:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        if fault.wait:
            self.wfile.flush()
            time.sleep(fault.wait)
        self.wfile.write(body[: fault.keep])

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""
