"""An HTTP server on loopback that serves a folder as a Zenodo record, with the faults that a test asks for."""

import hashlib
import io
import json
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tests.support.s3_servers import running

RECORDS = {2019: 3338310, "v2.3": 3966543}


def pack(path: Path, clips: dict[str, bytes]) -> None:
    """Write a .tar.gz with the given files, by their paths in the archive."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in clips.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def describe(folder: Path, version: int | str, address: Callable[[str], str] = lambda name: "https://") -> bytes:
    """Return the answer of Zenodo's record API for the files of a folder."""
    files = [
        {
            "id": "0d1e24f3",
            "key": path.name,
            "size": path.stat().st_size,
            "checksum": f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}",
            "links": {"self": address(path.name)},
        }
        for path in sorted(folder.iterdir())
        if path.name != "record.json"
    ]
    record = RECORDS[version]
    return json.dumps({"id": record, "recid": str(record), "metadata": {"title": "SONYC-UST"}, "files": files}).encode()


@dataclass
class Fault:
    """What the server does to an answer.

    Attributes:
        status: answer with this status.
        headers: send these headers, too.
        keep: send this many bytes of the body and break off.
        stall: send the rest when this event is set.
        drip: send the rest byte by byte, with pauses of this many seconds.
        body: send this instead of the file.
        ranges: whether the server honours Range headers.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    keep: int | None = None
    stall: threading.Event | None = None
    drip: float = 0.0
    body: bytes | None = None
    ranges: bool = True


class Zenodo(ThreadingHTTPServer):
    """Serves a folder as `/api/records/<id>/files/<name>/content`, its record at `/api/records/<id>`, and all by name.

    Attributes:
        fault: returns the fault for a file name (the record is `record.json`) and the number of earlier requests.
        requests: name and Range header of every request, in order.
    """

    daemon_threads = True

    def __init__(self, folder: Path, version: int | str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.version = folder, version
        self.fault: Callable[[str, int], Fault | None] = lambda name, before: None
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def content(self, name: str) -> bytes | None:
        if name == "record.json":
            files = f"{self.address}/api/records/{RECORDS[self.version]}/files"
            return describe(self.folder, self.version, lambda key: f"{files}/{key}/content")
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None

    def asked(self, name: str) -> list[str]:
        """Return the Range headers of the requests for a file."""
        return [asked_range for asked, asked_range in self.requests if asked == name]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore it: a test broke the connection on purpose, or killed the client."""


@contextmanager
def serving(folder: Path, version: int | str) -> Iterator[Zenodo]:
    server = Zenodo(folder, version)
    with running(server):
        yield server


class _Handler(BaseHTTPRequestHandler):
    server: Zenodo

    def do_GET(self) -> None:
        parts = unquote(self.path).removeprefix("/").split("/")
        name = parts[-2] if parts[-1] == "content" else parts[-1]
        if parts[-1] == str(RECORDS[self.server.version]):
            name = "record.json"
        asked = self.headers.get("Range", "")
        with self.server.lock:
            before = len(self.server.asked(name))
            self.server.requests.append((name, asked))
        fault = self.server.fault(name, before) or Fault()
        body = self.server.content(name) if fault.body is None else fault.body
        if fault.status or body is None:
            self._send(fault.status or 404, fault.headers, b"", fault)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and fault.ranges else 0
        if start and start >= len(body):
            self._send(416, {"Content-Range": f"bytes */{len(body)}"}, b"", fault)
            return
        extent = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        self._send(206 if start else 200, extent | fault.headers, body[start:], fault)

    def _send(self, status: int, headers: dict[str, str], body: bytes, fault: Fault) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: fault.keep])
        self.wfile.flush()
        if fault.stall:
            fault.stall.wait(60)
            self.wfile.write(body[fault.keep :])
        for byte in body[fault.keep :] if fault.drip else b"":
            self.wfile.write(bytes([byte]))
            time.sleep(fault.drip)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""
