"""Objects in an S3 bucket. Only this module imports boto3.

A folder of objects is listed, then downloaded in parallel, verified and resumed. Small objects are read and written
as a whole. On servers with conditional writes, a write never replaces the concurrent write of another client.
"""

import base64
import hashlib
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.exceptions import ConnectionError as UnreachableError
from botocore.httpchecksum import StreamingChecksumBody
from urllib3.exceptions import HTTPError

from iusp.errors import InputError
from iusp.io import files
from iusp.io.download import PassingError
from iusp.io.text import first_names
from iusp.reporter import Reporter

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

THREADS = 16
QUEUED = 4 * THREADS  # objects that wait for a thread, which bounds the memory
PAGE_OBJECTS = 1000  # largest number of objects per page of a listing in S3
REQUESTS = 4  # attempts of one request before a temporary failure becomes an error
DOWNLOADS = 4  # attempts to download one object completely
CONNECT_SECONDS, READ_SECONDS = 5, 30
PAUSE_SECONDS = 0.5  # pause before the second download of an object; it doubles before each further one
BLOCK_BYTES = 2**18
MD5 = re.compile(r"[0-9a-f]{32}")  # ETags of another form are no MD5, for example those of multipart uploads

CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or another place where boto3 finds credentials"
KEPT = "run again to continue where it stopped"
REFUSALS = {  # by the error code of S3
    "NoSuchBucket": "there is no such bucket; correct the address, or AWS_ENDPOINT_URL",
    "InvalidAccessKeyId": f"the server does not know the access key; check {CREDENTIALS}",
    "SignatureDoesNotMatch": f"the server refuses the secret key; check {CREDENTIALS}",
    "ExpiredToken": "the credentials have expired; renew them",
    "InvalidToken": "the server refuses the session token; check AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "the clock of this machine is wrong; correct it",
    "PreconditionFailed": "it was changed during the download; run again when nobody writes there",
    "NoSuchKey": "it was deleted during the download; run again when nobody writes there",
    "PermanentRedirect": "the bucket is in another region; set AWS_DEFAULT_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region; set AWS_DEFAULT_REGION",
}
STATUSES = {  # by the HTTP status, if there is no known error code
    403: f"access is denied; check {CREDENTIALS}, and their permissions in the bucket",
    412: REFUSALS["PreconditionFailed"],
}


CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict")  # error codes after a concurrent write

T = TypeVar("T")


class BrokenDownloadError(Exception):
    """An object arrived incomplete or damaged; the message says why."""


class UnavailableError(InputError):
    """The server cannot be reached or fails temporarily, so earlier downloads stay valid."""


@dataclass(frozen=True)
class Object:
    """An object as a listing describes it.

    Attributes:
        name: key of the object relative to the folder.
        size: number of bytes.
        etag: ETag without quotes; it changes with the content.
    """

    name: str
    size: int
    etag: str


@dataclass(frozen=True)
class Folder:
    """The objects below a prefix at the time of the listing; it is also a source of recordings.

    Attributes:
        client: client that listed the objects.
        uri: address of the folder, `s3://bucket/prefix`.
        objects: the objects, sorted by name; at least one.
    """

    client: "S3Client"
    uri: str
    objects: tuple[Object, ...]

    @property
    def identity(self) -> list[object]:
        """Name, size and ETag of every object."""
        return [[entry.name, entry.size, entry.etag] for entry in self.objects]

    def fetch(self, folder: Path, reporter: Reporter) -> Path:
        """Download the objects into a folder, except those that an earlier call for the same objects downloaded.

        A file gets its name when it is complete, on the disk and verified: by its size, and by the checksum that
        S3 has of it or else by its ETag, if that is an MD5. A kill costs the objects under way, one for each thread.

        Args:
            folder: where to; what it holds came from the same `identity`.
            reporter: told of every object.

        Returns:
            `folder`.

        Raises:
            InputError: the server cannot be reached or refuses, or an object was changed or does not arrive whole.
        """
        bucket, prefix = _split(self.uri)
        missing = [entry for entry in self.objects if not (folder / entry.name).exists()]
        done, total = len(self.objects) - len(missing), len(self.objects)
        reporter.progress("fetch", done, total)

        def fetch(entry: Object) -> bool:
            with _readable(f"s3://{bucket}/{prefix}{entry.name}"):
                return _fetch(self.client, bucket, prefix + entry.name, entry, folder / entry.name)

        unverified = 0
        for verified in _in_threads(fetch, missing):
            done += 1
            unverified += not verified
            reporter.progress("fetch", done, total)
        if unverified:
            reporter.progress(
                "fetch", done, total, f"{unverified} objects have no checksum that can be verified, only a size"
            )
        return folder


def connect(uri: str, verifying: bool = True) -> "S3Client":
    """Return a client for all addresses and threads; boto3 finds the credentials and AWS_ENDPOINT_URL.

    Args:
        uri: address to name in an error message.
        verifying: whether to verify downloads with the checksums that the server sends.

    Raises:
        InputError: the settings of boto3 are wrong.
    """
    config = Config(
        response_checksum_validation="when_supported" if verifying else "when_required",
        retries={"mode": "standard", "total_max_attempts": REQUESTS},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=THREADS,
    )
    with _readable(uri):
        return Session().client("s3", config=config)


def list_folder(client: "S3Client", uri: str, wanted: Callable[[str], bool], what: str) -> Folder:
    """List the objects below a prefix.

    Args:
        client: client of the server.
        uri: address of the folder, `s3://bucket/prefix` or `s3://bucket`.
        wanted: function that decides by an object's name, its key after `prefix/`, whether it is part of the folder.
        what: expected content, to name in an error message.

    Raises:
        InputError: the server cannot be reached or refuses, no object is wanted, or names are not valid file names.
    """
    bucket, prefix = _split(uri)
    objects = []
    with _readable(uri):
        pages = client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=bucket, Prefix=prefix, PaginationConfig={"PageSize": PAGE_OBJECTS}):
            for entry in page.get("Contents", ()):
                name = entry["Key"].removeprefix(prefix)
                # A key that ends in / is a folder that was created in a web console.
                if wanted(name) and not name.endswith("/"):
                    objects.append(Object(name, entry["Size"], entry["ETag"].strip('"')))
    if not objects:
        raise InputError(f"{uri}: contains no {what}; correct the address")
    _check_names(uri, [entry.name for entry in objects])
    return Folder(client, uri, tuple(sorted(objects, key=lambda entry: entry.name)))


def read(client: "S3Client", uri: str, limit: int) -> tuple[bytes, str] | None:
    """Return content and ETag of a small object, or None if there is no such object.

    Args:
        client: client of the server.
        uri: address of the object, `s3://bucket/key`.
        limit: largest number of bytes.

    Raises:
        InputError: the server cannot be reached or refuses, the object is larger than `limit`, or the download breaks.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    with _readable(uri):
        try:
            return _again(partial(_content, client, bucket, key, limit))
        except ClientError as error:
            if _answer(error)[1] != "NoSuchKey":
                raise
            return None


@contextmanager
def open_object(uri: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Open an object at a byte offset; see `iusp.io.download.Opener`.

    A whole object is verified with the checksum of S3; a part cannot be verified.

    Args:
        uri: address of the object, `s3://bucket/key`.
        start: byte offset.

    Raises:
        InputError: the server refuses.
        PassingError: the server cannot be reached or fails, also while the blocks are read.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    try:
        with _readable(uri):
            # Some servers send the checksum of the whole object with a part. An empty object has no ranges.
            get = partial(connect(uri, verifying=not start).get_object, Bucket=bucket, Key=key)
            response = get(Range=f"bytes={start}-") if start else get()
    except UnavailableError:
        raise PassingError("the server cannot be reached or fails") from None
    # The status does not tell: rclone sends a part with status 200.
    begin = start if response.get("ContentRange", "").startswith(f"bytes {start}-") else 0
    try:
        with closing(response["Body"]) as body, _unbroken():
            yield begin, body.iter_chunks(BLOCK_BYTES)
    except BrokenDownloadError as error:
        raise PassingError(str(error)) from None


def write(client: "S3Client", uri: str, content: bytes, replaced: str | None) -> bool:
    """Write a small object, unless another client has written it since it was read.

    The request contains the SHA-256 of the content, which the server checks.

    Args:
        client: client of the server.
        uri: address of the object, `s3://bucket/key`.
        content: content to write.
        replaced: ETag of the object to replace; None if there must be no such object.

    Returns:
        Whether the object was written. A server without conditional writes (`rclone serve s3`) always writes.

    Raises:
        InputError: the server cannot be reached or refuses.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    with _readable(uri):
        return _put(client, bucket, key, content, replaced)


def upload(client: "S3Client", folder: Path, uri: str, reporter: Reporter) -> None:
    """Write the small files of a flat folder below a prefix.

    Each file is read back, because not every server verifies checksums. Existing objects are never replaced.

    Args:
        client: client of the server.
        folder: folder without subfolders.
        uri: address of the target, `s3://bucket/prefix`.
        reporter: receives the progress, file by file.

    Raises:
        InputError: the server cannot be reached or refuses, or an object with other content exists.
    """
    bucket, prefix = _split(uri)
    paths = sorted(folder.iterdir())
    for done, path in enumerate(paths):
        key, content = prefix + path.name, path.read_bytes()
        with _readable(f"s3://{bucket}/{key}"):
            _put(client, bucket, key, content, None)
            if _again(partial(_content, client, bucket, key, len(content)))[0] != content:
                raise InputError(f"s3://{bucket}/{key}: exists with other content; delete it and run again")
        reporter.progress("upload", done + 1, len(paths))


def _put(client: "S3Client", bucket: str, key: str, content: bytes, replaced: str | None) -> bool:
    checksum = base64.b64encode(hashlib.sha256(content).digest()).decode()
    put = partial(client.put_object, Bucket=bucket, Key=key, Body=content, ChecksumSHA256=checksum)
    try:
        if replaced is None:
            put(IfNoneMatch="*")
        else:
            put(IfMatch=replaced)
    except ClientError as error:
        if _answer(error)[1] not in CONFLICTS:
            raise
        return False
    return True


def _split(uri: str) -> tuple[str, str]:
    """Split an address into the bucket and the prefix, which is empty or ends in `/`."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/")
    return bucket, prefix and f"{prefix}/"


def _check_names(uri: str, names: Sequence[str]) -> None:
    """Refuse names that would leave the folder or that some operating systems would give to the same file."""
    bad = [name for name in names if not all(files.is_file_name(part) for part in name.split("/"))]
    # Some file systems ignore case, and store accented letters in one Unicode form only.
    same = Counter(unicodedata.normalize("NFC", name).casefold() for name in names)
    bad += [name for name in names if same[unicodedata.normalize("NFC", name).casefold()] > 1]
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    bad += [name for name in names if name in folders]
    if bad:
        names_of_bad = first_names(map(ascii, bad))
        raise InputError(f"{uri}: objects whose names no files can have side by side: {names_of_bad}; rename them")


def _in_threads(fetch: Callable[[Object], bool], objects: Sequence[Object]) -> Iterator[bool]:
    """Call a function for many objects in parallel; yield results as they arrive, and stop at the first failure."""
    pool = ThreadPoolExecutor(THREADS)
    try:
        pending = set()
        for entry in objects:
            pending.add(pool.submit(fetch, entry))
            if len(pending) >= QUEUED:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        pool.shutdown(cancel_futures=True)


def _fetch(client: "S3Client", bucket: str, key: str, entry: Object, target: Path) -> bool:
    """Download an object; return whether a checksum was verified, not just the size."""
    return _again(partial(_download, client, bucket, key, entry, target))


def _again(download: Callable[[], T]) -> T:
    """Repeat a download that breaks: botocore itself repeats only requests, not the transfer of the content."""
    pause = PAUSE_SECONDS
    for _ in range(DOWNLOADS - 1):
        try:
            return download()
        except BrokenDownloadError:
            time.sleep(pause)
            pause *= 2
    return download()


def _content(client: "S3Client", bucket: str, key: str, limit: int) -> tuple[bytes, str]:
    response = client.get_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    if response["ContentLength"] > limit:
        raise InputError(
            f"s3://{bucket}/{key}: is larger than {limit:,} bytes, so it was not written by iusp; check the address"
        )
    with closing(response["Body"]) as body:
        with _unbroken():
            content = body.read()
        _is_verified(response, hashlib.md5(content, usedforsecurity=False).hexdigest())
        return content, response["ETag"]


def _is_verified(response: "GetObjectOutputTypeDef", md5: str) -> bool:
    """Return whether the body just read was verified by S3's checksum, or by an ETag that is an MD5.

    Raises:
        BrokenDownloadError: the ETag is an MD5, but of other content.
    """
    if isinstance(response["Body"], StreamingChecksumBody):
        return True
    etag = response["ETag"].strip('"')
    # With a customer's key (KMS), the ETag is computed from the encrypted content.
    if not MD5.fullmatch(etag) or response.get("ServerSideEncryption", "AES256") != "AES256":
        return False
    if md5 != etag:
        raise BrokenDownloadError("the content does not have the ETag's MD5")
    return True


@contextmanager
def _unbroken() -> Iterator[None]:
    """Turn the errors of an interrupted transfer into a BrokenDownloadError."""
    try:
        yield
    except FlexibleChecksumError:
        raise BrokenDownloadError("the content does not have S3's checksum") from None
    except (BotoCoreError, HTTPError):
        raise BrokenDownloadError("the connection stalled or broke off") from None


def _download(client: "S3Client", bucket: str, key: str, entry: Object, target: Path) -> bool:
    response = client.get_object(Bucket=bucket, Key=key, IfMatch=f'"{entry.etag}"', ChecksumMode="ENABLED")
    if response["ETag"].strip('"') != entry.etag:  # the server ignores If-Match
        raise InputError(f"s3://{bucket}/{key}: {REFUSALS['PreconditionFailed']}")
    md5 = hashlib.md5(usedforsecurity=False)
    size = 0
    with closing(response["Body"]) as body, files.atomic(target) as temporary, temporary.open("wb") as stream:
        with _unbroken():
            for block in body.iter_chunks(BLOCK_BYTES):
                stream.write(block)
                md5.update(block)
                size += len(block)
        if size != entry.size:
            raise BrokenDownloadError(f"{size} of {entry.size} bytes arrived")
        return _is_verified(response, md5.hexdigest())


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Turn errors into one line about `what`; boto3's own messages may contain keys and addresses with passwords."""
    try:
        yield
    except (BotoCoreError, ClientError, BrokenDownloadError) as error:
        kind = UnavailableError if _is_passing(error) else InputError
        raise kind(f"{what}: {_reason(error)}") from None
    except ValueError as error:
        if "Invalid endpoint" not in str(error):
            raise
        raise InputError(f"{what}: AWS_ENDPOINT_URL is not an address such as http://host:9000; correct it") from None


def _answer(error: ClientError) -> tuple[int, str]:
    """Return HTTP status and error code of a refusal."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status, str(error.response.get("Error", {}).get("Code", ""))


def _is_passing(error: Exception) -> bool:
    """Return whether an error is temporary: a failure of the network or of the server."""
    if isinstance(error, ClientError):
        status, code = _answer(error)
        return status >= 500 or status == 429 or code == "SlowDown"
    return isinstance(error, UnreachableError | HTTPClientError)


def _reason(error: Exception) -> str:
    match error:
        case BrokenDownloadError():
            return f"{error}, {DOWNLOADS} times in a row; {KEPT}"
        case NoCredentialsError() | PartialCredentialsError() | CredentialRetrievalError():
            return f"no credentials; set {CREDENTIALS}"
        case ProfileNotFound():
            return "the profile in AWS_PROFILE does not exist; correct it"
        case UnreachableError():
            return "the server cannot be reached; check the network and AWS_ENDPOINT_URL"
        case HTTPClientError():
            return f"the server does not answer or breaks the connection; {KEPT}"
        case ClientError():
            status, code = _answer(error)
            if text := REFUSALS.get(code) or STATUSES.get(status):
                return text
            # The code comes from the server, so it may contain anything.
            code = code if re.fullmatch(r"\w{1,40}", code) else "no code"
            if _is_passing(error):
                return f"the server fails ({status}, {code}); {KEPT} (or check AWS_ENDPOINT_URL)"
            return f"the server refuses ({status}, {code}); check the address and AWS_ENDPOINT_URL"
        case _:
            return f"{type(error).__name__} from boto3; check AWS_ENDPOINT_URL and boto3's settings"
