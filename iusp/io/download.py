"""Files of known size and MD5 from elsewhere: fetched in parallel, resumed, verified.

What has arrived lies in `<name>.partial`, and a broken connection or a kill costs none of it: the rest is asked for by
range. A file gets its name when its MD5 is right. Failures that may pass are borne with growing pauses, or with those
that the server asks for, and not for ever.
"""

import hashlib
import os
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidSchema, RequestException, TooManyRedirects
from urllib3.exceptions import HTTPError, InvalidHeader
from urllib3.util import Retry

from iusp.errors import InputError
from iusp.io.addresses import is_secure
from iusp.reporter import Reporter

CONNECTIONS = 4  # Zenodo is a public service
CONNECT_SECONDS, READ_SECONDS = 10, 60
BLOCK_BYTES = 2**18
FAILURES = 6  # in a row, until there is no more trying
PROGRESS_BYTES = 8 * 2**20  # a failure after so much that is new begins another row
DAMAGES = 2  # of one file, each after all of it has arrived
PAUSE_SECONDS = 1.0  # after the first failure; doubled after each further one
LONGEST_PAUSE_SECONDS = 300.0  # a server that asks for more is asked no more
POLL_SECONDS = 0.5
MEGABYTE = 10**6
LEAST_RATE = 1000  # bytes a second, over READ_SECONDS
LONGEST_STATED_SECONDS = 10**9  # where urllib3 takes more for this, and by default for six hours
TASK = "download, MB"

Opener = Callable[[str, int], AbstractContextManager[tuple[int, Iterator[bytes]]]]
"""Opens an address from a byte on; yields the byte that it really begins with (that one, or 0), and blocks."""


class PassingError(Exception):
    """A failure that may be over soon; the message says which.

    Attributes:
        pause: seconds that the server asks to wait, if it does.
    """

    def __init__(self, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


class DamagedError(PassingError):
    """All of a file has arrived, or more, and it isn't what was stated."""


@dataclass(frozen=True)
class RemoteFile:
    """A file elsewhere.

    Attributes:
        name: path below the folder that it is fetched into; trusted.
        address: where it is, without secrets.
        size: bytes.
        md5: of its content, in hexadecimal.
    """

    name: str
    address: str
    size: int
    md5: str


class _Patience:
    """Bears failures of one address, until there are too many."""

    def __init__(self, address: str, stop: Event) -> None:
        self._address, self._stop = address, stop
        self._in_a_row = self._damages = 0

    def bear(self, error: PassingError, gained: int = 0) -> None:
        """Wait after a failure; `gained` bytes are here that were not before it.

        Raises:
            InputError: it is one too many, or the server asks for too long a pause.
        """
        self._in_a_row = 1 if gained >= PROGRESS_BYTES else self._in_a_row + 1
        self._damages += isinstance(error, DamagedError)
        if self._damages == DAMAGES:
            raise InputError(f"{self._address}: {error}, {DAMAGES} times; its server holds another file: see to that")
        if self._in_a_row == FAILURES:
            raise InputError(f"{self._address}: {error}, {FAILURES} times in a row; run again: all that came is kept")
        pause = min(PAUSE_SECONDS * 2 ** (self._in_a_row - 1), LONGEST_PAUSE_SECONDS)
        if error.pause is not None:
            pause = error.pause
        if pause > LONGEST_PAUSE_SECONDS:
            minutes = -(-int(pause) // 60)
            raise InputError(f"{self._address}: {error} and asks to wait; run again in {minutes} minutes: all is kept")
        self._stop.wait(pause)


def missing_bytes(files: Sequence[RemoteFile], folder: Path) -> int:
    """Return how many bytes have yet to arrive."""
    return sum(file.size for file in files) - sum(_arrived(file, folder) for file in files)


def fetch(files: Sequence[RemoteFile], open_address: Opener, folder: Path, title: str, reporter: Reporter) -> None:
    """Fetch files into a folder, but for what is there of an earlier call.

    Args:
        files: with the same contents as in every earlier call for the folder.
        open_address: opens their addresses.
        folder: where to.
        title: of it all, for people.
        reporter: told of the title, then of megabytes, twice a second.

    Raises:
        InputError: a server refuses, fails too often, or holds another file.
    """
    total = -(-sum(file.size for file in files) // MEGABYTE)
    stop = Event()
    missing = [file for file in files if not (folder / file.name).exists()]
    reporter.progress(
        TASK, _done(files, folder, total), total, f"{title}: {len(missing)} of {len(files)} files are missing"
    )
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        pending = {pool.submit(_fetch, file, open_address, folder, stop) for file in missing}
        try:
            while pending:
                reporter.progress(TASK, _done(files, folder, total), total)
                done, pending = wait(pending, POLL_SECONDS, FIRST_EXCEPTION)
                for future in done:
                    future.result()
        finally:
            stop.set()
            for future in pending:
                future.cancel()
    reporter.progress(TASK, total, total)


def read(address: str, open_address: Opener, limit: int) -> bytes:
    """Return a small file.

    Args:
        address: where it is.
        open_address: opens it.
        limit: bytes that it may have.

    Raises:
        InputError: the server refuses or fails too often, or the file is larger.
    """
    patience = _Patience(address, Event())
    while True:
        try:
            content = bytearray()
            with open_address(address, 0) as (_, blocks):
                for block in blocks:
                    content += block
                    if len(content) > limit:
                        raise InputError(f"{address}: larger than {limit:,} bytes, so not what it should be; see to it")
            return bytes(content)
        except PassingError as error:
            patience.bear(error)


@contextmanager
def open_file(address: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Open a file of this machine; see `Opener`.

    Raises:
        InputError: there is no such file.
    """
    if not Path(address).is_file():
        raise InputError(f"{address}: no such file; correct the folder")
    with Path(address).open("rb") as stream:
        stream.seek(start)
        yield start, iter(lambda: stream.read(BLOCK_BYTES), b"")


@contextmanager
def open_http(address: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Open an https:// address; see `Opener`.

    Proxies, certificates and credentials are those that requests finds (HTTPS_PROXY, REQUESTS_CA_BUNDLE, ~/.netrc).

    Raises:
        InputError: the server refuses, its certificate isn't trusted, it leads to an address that isn't encrypted or
            valid, or in circles; or the proxy cannot be used.
        PassingError: anything else goes wrong, also while the blocks are read.
    """
    # Bytes are to be counted and verified as they are stored.
    headers = {"User-Agent": "iusp", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        with requests.Session() as session:
            # Also what a server leads to must be encrypted.
            session.adapters.clear()
            session.mount(_trusted(address), HTTPAdapter())
            timeouts = CONNECT_SECONDS, READ_SECONDS
            with session.get(address, headers=headers, stream=True, timeout=timeouts) as response:
                # What has come is passed on at once, so that it is kept when no more comes.
                some = partial(response.raw.read1, BLOCK_BYTES, decode_content=False)
                yield _begin(response, address, start), _flowing(iter(some, b""))
    except InvalidSchema as error:
        if str(error).startswith("Missing dependencies"):
            raise InputError(
                f"{address}: the proxy in HTTPS_PROXY or ALL_PROXY is a SOCKS proxy; name an http:// one, or pip "
                "install pysocks"
            ) from None
        raise InputError(f"{address}: leads to an address that is not encrypted; use another one") from None
    except TooManyRedirects:
        raise InputError(f"{address}: leads from one address to the next, without end; use another one") from None
    except ValueError:  # of requests, urllib3 and urllib
        raise InputError(
            f"{address}: this, what it leads to, or the proxy in HTTPS_PROXY or ALL_PROXY is no valid address; "
            "correct it"
        ) from None
    except (RequestException, HTTPError) as error:
        if _is_mistrust(error):
            raise InputError(
                f"{address}: the server's certificate is not trusted; if it is right, name its authority's in "
                "REQUESTS_CA_BUNDLE"
            ) from None
        unreachable = isinstance(error, requests.ConnectionError)
        reason = "the server cannot be reached" if unreachable else "the connection stalled or broke off"
        raise PassingError(reason) from None


def _flowing(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Pass blocks on, unless they drip: a byte now and then never trips the time-out of a read."""
    began, size = time.monotonic(), 0
    for block in blocks:
        yield block
        size += len(block)
        seconds = time.monotonic() - began
        if seconds > READ_SECONDS:
            if size < LEAST_RATE * seconds:
                raise PassingError(f"less than {LEAST_RATE / 1000:g} kB arrive a second")
            began, size = time.monotonic(), 0


def _trusted(address: str) -> str:
    """Return how all addresses begin that may be asked for one: encrypted, or of this very machine as that one is."""
    parts = urlsplit(address)
    return f"http://{parts.netloc}/" if parts.scheme == "http" and is_secure(address) else "https://"


def _is_mistrust(error: BaseException | None) -> bool:
    """Tell whether a certificate's verification is among an error's causes."""
    while error:
        if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _begin(response: requests.Response, address: str, start: int) -> int:
    """Return the byte that an answer begins with, or raise what its status means."""
    status = response.status_code
    if status == 416:
        raise DamagedError("the server has fewer bytes than were stated")
    if status in (408, 429) or status >= 500:
        raise PassingError(f"the server answers {status}", _retry_after(response.headers.get("Retry-After")))
    if status not in (200, 206):
        raise InputError(f"{address}: the server refuses ({status}); correct the address")
    if status == 200:
        return 0
    if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        raise PassingError("the server sends other bytes than were asked for")
    return start


def _retry_after(value: str | None) -> float | None:
    """Return the seconds that a header's number or date stands for."""
    try:
        return value if value is None else Retry(retry_after_max=LONGEST_STATED_SECONDS).parse_retry_after(value)
    except (InvalidHeader, ValueError, OverflowError):
        return None


def _done(files: Sequence[RemoteFile], folder: Path, total: int) -> int:
    return total - -(-missing_bytes(files, folder) // MEGABYTE)


def _arrived(file: RemoteFile, folder: Path) -> int:
    return file.size if (folder / file.name).exists() else min(_size(_partial(folder / file.name)), file.size)


def _partial(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _fetch(file: RemoteFile, open_address: Opener, folder: Path, stop: Event) -> None:
    """Fetch one file; return early when the others are to stop."""
    target = folder / file.name
    partial = _partial(target)
    partial.parent.mkdir(parents=True, exist_ok=True)
    patience = _Patience(file.address, stop)
    while not stop.is_set():
        before = _size(partial)
        try:
            _continue(file, open_address, partial, stop)
            if not stop.is_set():
                _verify(file, partial)
                partial.replace(target)
                return
        except PassingError as error:
            if isinstance(error, DamagedError):
                partial.unlink(missing_ok=True)
            patience.bear(error, _size(partial) - before)


def _continue(file: RemoteFile, open_address: Opener, partial: Path, stop: Event) -> None:
    start = _size(partial)
    if start == file.size and partial.exists():
        return
    with open_address(file.address, start) as (size, blocks), partial.open("ab") as stream:
        # A server that knows no ranges begins anew.
        stream.truncate(size)
        for block in blocks:
            size += len(block)
            if size > file.size:
                raise DamagedError(f"more than the stated {file.size:,} bytes arrive")
            stream.write(block)
            if stop.is_set():
                return
    if size < file.size:
        raise PassingError(f"the connection ended after {size:,} of {file.size:,} bytes")


def _verify(file: RemoteFile, partial: Path) -> None:
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())
        md5 = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 != file.md5:
        raise DamagedError("what arrived does not have the stated MD5")
