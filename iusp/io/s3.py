"""Objects in an S3 bucket. Only this module imports boto3.

A folder of them is listed, then fetched in parallel, verified and resumed. A small one is read and written whole, and
written only where nobody else has written meanwhile, if the server knows conditional writes.
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
from typing import TYPE_CHECKING, Any, TypeVar

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
QUEUED = 4 * THREADS  # objects that wait for a thread; all at once would take memory for each
PAGE_OBJECTS = 1000  # of a listing; S3 gives no more at once
REQUESTS = 4  # of one kind, until an answer comes that is no passing failure
DOWNLOADS = 4  # of one object, until it arrives whole
CONNECT_SECONDS, READ_SECONDS = 5, 30
PAUSE_SECONDS = 0.5  # before the second download of an object; doubled before each further one
BLOCK_BYTES = 2**18
MD5 = re.compile(r"[0-9a-f]{32}")  # an ETag of another form is none: of a multipart upload, for instance

CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or whatever else boto3 takes them from"
KEPT = "run again: what was done is kept"
REFUSALS = {  # by the code of S3's answer
    "NoSuchBucket": "there is no such bucket; correct the address, or AWS_ENDPOINT_URL",
    "InvalidAccessKeyId": f"the server does not know the access key; check {CREDENTIALS}",
    "SignatureDoesNotMatch": f"the server refuses the secret key; check {CREDENTIALS}",
    "ExpiredToken": "the credentials have expired; renew them",
    "InvalidToken": "the server refuses the session token; check AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    "PreconditionFailed": "it was changed while it was fetched; run again when nobody writes there",
    "NoSuchKey": "it was deleted while the folder was fetched; run again when nobody writes there",
    "PermanentRedirect": "the bucket is in another region; set AWS_DEFAULT_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region; set AWS_DEFAULT_REGION",
}
STATUSES = {  # where the code says nothing
    403: f"access is denied; check {CREDENTIALS}, and what they may do in the bucket",
    412: REFUSALS["PreconditionFailed"],
}


NOT_ALONE = ("PreconditionFailed", "ConditionalRequestConflict")  # codes for: somebody else has written

T = TypeVar("T")


class BrokenDownloadError(Exception):
    """An object did not arrive as it was sent; the message says why."""


class UnavailableError(InputError):
    """The server cannot be reached, or fails for now: it has said nothing against what is already here."""


@dataclass(frozen=True)
class Object:
    """What a listing says of an object.

    Attributes:
        name: its key from the folder on.
        size: bytes.
        etag: changes with its content; without quotes.
    """

    name: str
    size: int
    etag: str


@dataclass(frozen=True)
class Folder:
    """The objects below a prefix, by name, as they were when they were listed.

    Attributes:
        client: that listed them.
        uri: `s3://bucket/prefix`.
        objects: at least one.
    """

    client: "S3Client"
    uri: str
    objects: tuple[Object, ...]

    @property
    def identity(self) -> list[Any]:
        """What changes with the content of any object, as JSON."""
        return [[entry.name, entry.size, entry.etag] for entry in self.objects]

    def fetch(self, folder: Path, reporter: Reporter) -> Path:
        """Fetch the objects into a folder, but for those that an earlier call for the same objects fetched.

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
    """Return a client, for several threads and any address, with boto3's own credentials and AWS_ENDPOINT_URL.

    Args:
        uri: says in a message what it is for.
        verifying: what is downloaded against the checksums that the server sends.

    Raises:
        InputError: boto3's settings are wrong.
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
        client: of the server.
        uri: `s3://bucket/prefix`, or `s3://bucket`.
        wanted: tells by an object's name, its key after `prefix/`, whether it is part of the folder.
        what: says in a message what there should be.

    Raises:
        InputError: the server cannot be reached or refuses; nothing there is wanted; or names cannot be those of files.
    """
    bucket, prefix = _split(uri)
    objects = []
    with _readable(uri):
        pages = client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=bucket, Prefix=prefix, PaginationConfig={"PageSize": PAGE_OBJECTS}):
            for entry in page.get("Contents", ()):
                name = entry["Key"].removeprefix(prefix)
                # A key that ends in / stands for a folder that somebody made in a console.
                if wanted(name) and not name.endswith("/"):
                    objects.append(Object(name, entry["Size"], entry["ETag"].strip('"')))
    if not objects:
        raise InputError(f"{uri}: there is no {what}; correct the address")
    _check_names(uri, [entry.name for entry in objects])
    return Folder(client, uri, tuple(sorted(objects, key=lambda entry: entry.name)))


def read(client: "S3Client", uri: str, limit: int) -> tuple[bytes, str] | None:
    """Return a small object's content and its ETag, or None where there is none.

    Args:
        client: of the server.
        uri: `s3://bucket/key`.
        limit: bytes that it may have.

    Raises:
        InputError: the server cannot be reached or refuses; the object is larger, or does not arrive whole.
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
    """Open an object from a byte on; see `iusp.io.download.Opener`.

    The checksum that S3 has is verified of a whole object; none is of a part.

    Args:
        uri: `s3://bucket/key`.
        start: byte to begin with.

    Raises:
        InputError: the server refuses.
        PassingError: the server cannot be reached or fails, also while the blocks are read.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    try:
        with _readable(uri):
            # Some servers send the whole object's checksum with a part; and an empty object has no ranges.
            get = partial(connect(uri, verifying=not start).get_object, Bucket=bucket, Key=key)
            response = get(Range=f"bytes={start}-") if start else get()
    except UnavailableError:
        raise PassingError("the server cannot be reached, or fails") from None
    # Not the status: rclone sends a part with 200.
    begin = start if response.get("ContentRange", "").startswith(f"bytes {start}-") else 0
    try:
        with closing(response["Body"]) as body, _unbroken():
            yield begin, body.iter_chunks(BLOCK_BYTES)
    except BrokenDownloadError as error:
        raise PassingError(str(error)) from None


def write(client: "S3Client", uri: str, content: bytes, replaced: str | None) -> bool:
    """Write a small object, with its SHA-256 for the server to check, unless somebody else has written it meanwhile.

    Args:
        client: of the server.
        uri: `s3://bucket/key`.
        content: all of it.
        replaced: ETag of what it replaces; None to write where there is nothing.

    Returns:
        Whether it was written. A server that knows no conditional writes (`rclone serve s3`) always writes.

    Raises:
        InputError: the server cannot be reached or refuses.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    with _readable(uri):
        return _put(client, bucket, key, content, replaced)


def upload(client: "S3Client", folder: Path, uri: str, reporter: Reporter) -> None:
    """Write the small files of a folder below a prefix, and read each back: not every server checks what it gets.

    What is there already stays: the same content is as good, and other content is never written over.

    Args:
        client: of the server.
        folder: flat.
        uri: `s3://bucket/prefix`.
        reporter: told of every file.

    Raises:
        InputError: the server cannot be reached or refuses, or something else is there.
    """
    bucket, prefix = _split(uri)
    paths = sorted(folder.iterdir())
    for done, path in enumerate(paths):
        key, content = prefix + path.name, path.read_bytes()
        with _readable(f"s3://{bucket}/{key}"):
            _put(client, bucket, key, content, None)
            if _again(partial(_content, client, bucket, key, len(content)))[0] != content:
                raise InputError(f"s3://{bucket}/{key}: there is something else; delete it, and run again")
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
        if _answer(error)[1] not in NOT_ALONE:
            raise
        return False
    return True


def _split(uri: str) -> tuple[str, str]:
    """Return the bucket and the prefix, which is empty or ends in `/`."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/")
    return bucket, prefix and f"{prefix}/"


def _check_names(uri: str, names: Sequence[str]) -> None:
    """Refuse names that would leave the folder, or be the same file's on some system."""
    bad = [name for name in names if not all(files.is_file_name(part) for part in name.split("/"))]
    # Some file systems know no case, and one way of writing an accent.
    same = Counter(unicodedata.normalize("NFC", name).casefold() for name in names)
    bad += [name for name in names if same[unicodedata.normalize("NFC", name).casefold()] > 1]
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    bad += [name for name in names if name in folders]
    if bad:
        names_of_bad = first_names(map(ascii, bad))
        raise InputError(f"{uri}: objects whose names no files can have side by side: {names_of_bad}; rename them")


def _in_threads(fetch: Callable[[Object], bool], objects: Sequence[Object]) -> Iterator[bool]:
    """Yield the results as they come; the first failure ends it all."""
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
    """Fetch an object; return whether more than its size could be verified."""
    return _again(partial(_download, client, bucket, key, entry, target))


def _again(download: Callable[[], T]) -> T:
    """Download, and again if what arrives is damaged: botocore repeats the request itself, not what breaks later."""
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
        raise InputError(f"s3://{bucket}/{key}: is larger than {limit:,} bytes, and so nothing of ours; see what it is")
    with closing(response["Body"]) as body:
        with _unbroken():
            content = body.read()
        _is_verified(response, hashlib.md5(content, usedforsecurity=False).hexdigest())
        return content, response["ETag"]


def _is_verified(response: "GetObjectOutputTypeDef", md5: str) -> bool:
    """Tell whether more than its size vouches for a body that has been read: S3's checksum, or an ETag that is an MD5.

    Raises:
        BrokenDownloadError: that ETag is of something else.
    """
    if isinstance(response["Body"], StreamingChecksumBody):
        return True
    etag = response["ETag"].strip('"')
    # With a key of one's own (KMS) S3 encrypts before it makes the ETag.
    if not MD5.fullmatch(etag) or response.get("ServerSideEncryption", "AES256") != "AES256":
        return False
    if md5 != etag:
        raise BrokenDownloadError("what arrived does not have the ETag's MD5")
    return True


@contextmanager
def _unbroken() -> Iterator[None]:
    """Say of a body that cannot be read that the download broke."""
    try:
        yield
    except FlexibleChecksumError:
        raise BrokenDownloadError("what arrived does not have S3's checksum") from None
    except (BotoCoreError, HTTPError):
        raise BrokenDownloadError("the connection stalled or broke off") from None


def _download(client: "S3Client", bucket: str, key: str, entry: Object, target: Path) -> bool:
    response = client.get_object(Bucket=bucket, Key=key, IfMatch=f'"{entry.etag}"', ChecksumMode="ENABLED")
    if response["ETag"].strip('"') != entry.etag:  # from a server that ignores If-Match
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
    """Turn errors into one line about `what`. boto3's own words may hold keys and addresses with passwords."""
    try:
        yield
    except (BotoCoreError, ClientError, BrokenDownloadError) as error:
        kind = UnavailableError if _is_passing(error) else InputError
        raise kind(f"{what}: {_reason(error)}") from None
    except ValueError as error:
        if "Invalid endpoint" not in str(error):
            raise
        raise InputError(f"{what}: AWS_ENDPOINT_URL is no address such as http://host:9000; correct it") from None


def _answer(error: ClientError) -> tuple[int, str]:
    """Return status and code of a refusal."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status, str(error.response.get("Error", {}).get("Code", ""))


def _is_passing(error: Exception) -> bool:
    """Tell whether the network, or the server for now, is to blame."""
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
            return "there is no AWS profile of the name in AWS_PROFILE; correct it"
        case UnreachableError():
            return "the server cannot be reached; check the network and AWS_ENDPOINT_URL"
        case HTTPClientError():
            return f"the server does not answer, or breaks off; {KEPT}"
        case ClientError():
            status, code = _answer(error)
            if text := REFUSALS.get(code) or STATUSES.get(status):
                return text
            # The code comes from the server, and so may hold anything.
            code = code if re.fullmatch(r"\w{1,40}", code) else "no code"
            if _is_passing(error):
                return f"the server fails ({status}, {code}); {KEPT} (or check AWS_ENDPOINT_URL)"
            return f"the server refuses ({status}, {code}); check the address and AWS_ENDPOINT_URL"
        case _:
            return f"{type(error).__name__} from boto3; check AWS_ENDPOINT_URL and boto3's settings"
