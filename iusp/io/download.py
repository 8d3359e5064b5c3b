"""Downloads of files with known size and MD5: in parallel, resumed and verified.

Arriving bytes are written to `<name>.partial`. After a broken connection or a kill, a range request fetches the rest. A
file gets its final name when its MD5 is correct. Temporary failures are retried a limited number of times, with
exponential backoff or after the pause that the server asks for.
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
FAILURES = 6  # consecutive failures before giving up
PROGRESS_BYTES = 8 * 2**20  # so many new bytes reset the count of consecutive failures
DAMAGES = 2  # complete but wrong downloads of one file before giving up
PAUSE_SECONDS = 1.0  # pause after the first failure; it doubles after each further one
LONGEST_PAUSE_SECONDS = 300.0  # give up if a server asks for a longer pause
POLL_SECONDS = 0.5
MEGABYTE = 10**6
LEAST_RATE = 1000  # bytes per second, on average over READ_SECONDS
LONGEST_STATED_SECONDS = 10**9  # urllib3 would otherwise cut a longer Retry-After to six hours
TASK = "download, MB"
RESUME = "continue where the download stopped"

Opener = Callable[[str, int], AbstractContextManager[tuple[int, Iterator[bytes]]]]
"""Opens an address at a byte offset; yields the offset at which the answer starts (the same, or 0) and the blocks."""


class PassingError(Exception):
    """A temporary failure, which is worth a retry; the message says what failed.

    Attributes:
        pause: number of seconds that the server asks to wait; None if it asks for no pause.
    """

    def __init__(self, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


class DamagedError(PassingError):
    """A complete file has arrived, but with a wrong size or MD5."""


@dataclass(frozen=True)
class RemoteFile:
    """A file to download.

    Attributes:
        name: path below the target folder; trusted.
        address: address of the file, without credentials.
        size: number of bytes.
        md5: MD5 of the content, in hexadecimal.
    """

    name: str
    address: str
    size: int
    md5: str


class _Retries:
    """Counts the failures of one address and waits after each, until there are too many."""

    def __init__(self, address: str, stop: Event) -> None:
        self._address, self._stop = address, stop
        self._consecutive = self._damages = 0

    def wait(self, error: PassingError, gained: int = 0) -> None:
        """Wait after a failure, or give up.

        Args:
            error: the failure.
            gained: number of bytes that arrived before it.

        Raises:
            InputError: there were too many failures, or the server asks for too long a pause.
        """
        self._consecutive = 1 if gained >= PROGRESS_BYTES else self._consecutive + 1
        self._damages += isinstance(error, DamagedError)
        if self._damages == DAMAGES:
            raise InputError(
                f"{self._address}: {error}, {DAMAGES} times: the server sends a different file; use another mirror"
            )
        if self._consecutive == FAILURES:
            raise InputError(f"{self._address}: {error}, {FAILURES} times in a row; run again to {RESUME}")
        pause = min(PAUSE_SECONDS * 2 ** (self._consecutive - 1), LONGEST_PAUSE_SECONDS)
        if error.pause is not None:
            pause = error.pause
        if pause > LONGEST_PAUSE_SECONDS:
            minutes = -(-int(pause) // 60)
            raise InputError(f"{self._address}: {error} and asks to wait; run again in {minutes} minutes to {RESUME}")
        self._stop.wait(pause)


def missing_bytes(files: Sequence[RemoteFile], folder: Path) -> int:
    """Return the number of bytes that are still to be downloaded."""
    return sum(file.size for file in files) - sum(_arrived(file, folder) for file in files)


def fetch(files: Sequence[RemoteFile], open_address: Opener, folder: Path, title: str, reporter: Reporter) -> None:
    """Download files into a folder, except those parts that an earlier call downloaded.

    Args:
        files: the files; their content is the same as in every earlier call for this folder.
        open_address: function that opens their addresses.
        folder: target folder.
        title: name of the whole download, for people.
        reporter: receives the title, and twice per second the number of megabytes.

    Raises:
        InputError: a server refuses, fails too often, or sends a different file.
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
    """Return the content of a small file.

    Args:
        address: address of the file.
        open_address: function that opens the address.
        limit: largest number of bytes.

    Raises:
        InputError: the server refuses or fails too often, or the file is larger than `limit`.
    """
    retries = _Retries(address, Event())
    while True:
        try:
            content = bytearray()
            with open_address(address, 0) as (_, blocks):
                for block in blocks:
                    content += block
                    if len(content) > limit:
                        raise InputError(
                            f"{address}: larger than {limit:,} bytes, so it is the wrong file; correct the address"
                        )
            return bytes(content)
        except PassingError as error:
            retries.wait(error)


@contextmanager
def open_file(address: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Open a file of this machine; see `Opener`.

    Raises:
        InputError: the file does not exist.
    """
    if not Path(address).is_file():
        raise InputError(f"{address}: no such file; correct the folder")
    with Path(address).open("rb") as stream:
        stream.seek(start)
        yield start, iter(lambda: stream.read(BLOCK_BYTES), b"")


@contextmanager
def open_http(address: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Open an https:// address; see `Opener`.

    The requests library finds proxies, certificates and credentials (HTTPS_PROXY, REQUESTS_CA_BUNDLE, ~/.netrc).

    Raises:
        InputError: the server refuses, its certificate is not trusted, it redirects in circles or to an address that is
            invalid or not encrypted, or the proxy cannot be used.
        PassingError: anything else goes wrong, also while the blocks are read.
    """
    # Size and MD5 are those of the stored bytes, so the server must not compress them.
    headers = {"User-Agent": "iusp", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        with requests.Session() as session:
            # Only encrypted addresses are allowed, also after a redirect.
            session.adapters.clear()
            session.mount(_trusted(address), HTTPAdapter())
            timeouts = CONNECT_SECONDS, READ_SECONDS
            with session.get(address, headers=headers, stream=True, timeout=timeouts) as response:
                # read1 returns the bytes that have arrived without waiting for a full block, so none are lost.
                read_block = partial(response.raw.read1, BLOCK_BYTES, decode_content=False)
                yield _begin(response, address, start), _flowing(iter(read_block, b""))
    except InvalidSchema as error:
        if str(error).startswith("Missing dependencies"):
            raise InputError(
                f"{address}: the proxy in HTTPS_PROXY or ALL_PROXY is a SOCKS proxy; set an http:// proxy, or pip "
                "install pysocks"
            ) from None
        raise InputError(f"{address}: redirects to an address that is not encrypted; use another address") from None
    except TooManyRedirects:
        raise InputError(f"{address}: redirects without end; use another address") from None
    except ValueError:  # of requests, urllib3 and urllib
        raise InputError(
            f"{address}: this address, its redirect, or the proxy in HTTPS_PROXY or ALL_PROXY is not valid; correct it"
        ) from None
    except (RequestException, HTTPError) as error:
        if _is_mistrust(error):
            raise InputError(
                f"{address}: the server's certificate is not trusted; if the server is the right one, set "
                "REQUESTS_CA_BUNDLE to the certificate of its authority"
            ) from None
        unreachable = isinstance(error, requests.ConnectionError)
        reason = "the server cannot be reached" if unreachable else "the connection stalled or broke off"
        raise PassingError(reason) from None


def _flowing(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Pass blocks on, and fail if they arrive too slowly: single bytes would never exceed the read time-out."""
    began, size = time.monotonic(), 0
    for block in blocks:
        yield block
        size += len(block)
        seconds = time.monotonic() - began
        if seconds > READ_SECONDS:
            if size < LEAST_RATE * seconds:
                raise PassingError(f"less than {LEAST_RATE / 1000:g} kB per second arrive")
            began, size = time.monotonic(), 0


def _trusted(address: str) -> str:
    """Return the prefix of all addresses that may be requested: encrypted ones, or the same server on this machine."""
    parts = urlsplit(address)
    return f"http://{parts.netloc}/" if parts.scheme == "http" and is_secure(address) else "https://"


def _is_mistrust(error: BaseException | None) -> bool:
    """Return whether an error was caused by the verification of a certificate."""
    while error:
        if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _begin(response: requests.Response, address: str, start: int) -> int:
    """Return the byte offset at which an answer starts, or raise the error that its status means."""
    status = response.status_code
    if status == 416:
        raise DamagedError("the server has fewer bytes than the record states")
    if status in (408, 429) or status >= 500:
        raise PassingError(f"the server answers {status}", _retry_after(response.headers.get("Retry-After")))
    if status not in (200, 206):
        raise InputError(f"{address}: the server refuses ({status}); correct the address")
    if status == 200:
        return 0
    if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        raise PassingError("the server sends a different range than requested")
    return start


def _retry_after(value: str | None) -> float | None:
    """Return the number of seconds that a Retry-After header asks for, as a number or a date."""
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
    """Download one file; return early if `stop` is set because another download failed."""
    target = folder / file.name
    partial = _partial(target)
    partial.parent.mkdir(parents=True, exist_ok=True)
    retries = _Retries(file.address, stop)
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
            retries.wait(error, _size(partial) - before)


def _continue(file: RemoteFile, open_address: Opener, partial: Path, stop: Event) -> None:
    start = _size(partial)
    if start == file.size and partial.exists():
        return
    with open_address(file.address, start) as (size, blocks), partial.open("ab") as stream:
        # A server that does not support ranges starts from the first byte.
        stream.truncate(size)
        for block in blocks:
            size += len(block)
            if size > file.size:
                raise DamagedError(f"more than the stated {file.size:,} bytes arrived")
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
        raise DamagedError("the file does not have the stated MD5")
