"""Releases: the device files of one registered version in a bucket, and the copy that a device runs.

In the bucket, the files are in the folder `<version>-<digest>`, whose name follows from their content, and are never
replaced. The manifest `latest.json` is written last and lists them with their SHA-256. A device has the same folder
with the manifest in it, and the link `current` to it. So neither bucket nor device ever shows an incomplete release.
"""

import base64
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from filelock import FileLock, Timeout
from pydantic import AfterValidator, Field, ValidationError

from iusp.config.base import Count, Section
from iusp.errors import InputError
from iusp.io import s3
from iusp.io.addresses import S3_ADDRESS
from iusp.io.files import atomic, digest, is_file_name, read_json, sha256, work_folder
from iusp.reporter import Reporter

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

LATEST = "latest.json"
DESCRIPTION = "device.json"
MANIFEST_BYTES = 2**20  # a larger file is not a manifest
FOLDER = re.compile(r"\.?\d+-[0-9a-f]{16}(\.work-[0-9a-f]{16})?")  # of a release, complete or in progress


def _flat(name: str) -> str:
    if not is_file_name(name) or name.startswith(".") or name == LATEST:
        raise ValueError("is not a valid file name for a release")
    return name


class File(Section):
    """Checksum and size of a file of a release."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the content."""
    bytes: Annotated[int, Field(ge=0)]
    """Size in bytes."""


class Manifest(Section):
    """`latest.json`: the description of one release."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    """Name of the registered model."""
    version: Count
    """The registered version."""
    created: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    """Time of the release, in UTC."""
    files: Annotated[dict[Annotated[str, AfterValidator(_flat)], File], Field(min_length=1)]
    """All files of the release by name."""
    signature: str | None = None
    """Ed25519 signature in base64, of all other fields as JSON with sorted keys and without spaces."""

    @property
    def folder(self) -> str:
        """Name of the folder of the files, in the bucket and on a device."""
        return f"{self.version}-{digest({name: file.sha256 for name, file in self.files.items()})[:16]}"

    @property
    def signed(self) -> bytes:
        """The bytes that are signed."""
        return json.dumps(self.model_dump(exclude={"signature"}), sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Fetched:
    """The state of a device after a fetch.

    Attributes:
        manifest: manifest of the current release.
        state: `new`; `same` if the device already had the release; `offline` if the server could not be used.
        reason: why the server could not be used, in one line.
    """

    manifest: Manifest
    state: Literal["new", "same", "offline"]
    reason: str = ""


def publish(folder: Path, model: str, version: int, uri: str, private_key: Path | None, reporter: Reporter) -> Manifest:
    """Publish the files of a version; `latest.json` comes last, unless another release was published at the same time.

    Args:
        folder: `device/` of a registered version: a flat folder, whose `device.json` lists the SHA-256 of the files.
        model: name of the registered model.
        version: number of the version.
        uri: target in the bucket, `s3://bucket/prefix`.
        private_key: PEM file of the Ed25519 key to sign with; None to publish without a signature.
        reporter: receives the progress, file by file.

    Returns:
        The manifest of the release.

    Raises:
        InputError: the files differ from `device.json`, the key is not valid, the server cannot be reached or refuses,
            or another release was published at the same time.
    """
    latest = _address(uri, LATEST)
    key = _private_key(private_key) if private_key else None
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    document = {"model": model, "version": version, "created": created, "files": _described(folder)}
    manifest = _parsed(f"{model} version {version}", json.dumps(document).encode())
    if key:
        manifest = manifest.model_copy(update={"signature": base64.b64encode(key.sign(manifest.signed)).decode()})
    client = s3.connect(latest)
    before = s3.read(client, latest, MANIFEST_BYTES)
    s3.upload(client, folder, _address(uri, manifest.folder), reporter)
    content = (manifest.model_dump_json(indent=2, exclude_none=True) + "\n").encode()
    if not s3.write(client, latest, content, before and before[1]):
        now = s3.read(client, latest, MANIFEST_BYTES)
        # The client may have repeated this very request because its answer was lost.
        if now is None or now[0] != content:
            raise InputError(f"{latest}: another release was published at the same time; run again to replace it")
    return manifest


def fetch(uri: str, folder: Path, public_key: Path | None, reporter: Reporter) -> Fetched:
    """Fetch the latest release and make it the current one; the release before stays as `previous`.

    If anything goes wrong, `current` does not change.

    Args:
        uri: place of the releases in the bucket, `s3://bucket/prefix`.
        folder: folder of the device for its releases; `current` and `previous` in it are links to folders.
        public_key: PEM file of the Ed25519 key with which the manifest must be signed; None to accept any manifest.
        reporter: receives the progress, file by file.

    Raises:
        InputError: there is no release, it is not signed with the key, or it differs from its manifest; or the server
            cannot be reached and the device has no complete release.
    """
    latest = _address(uri, LATEST)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        current = _current(folder)
        try:
            client = s3.connect(latest)
            manifest, content = _latest(client, latest, public_key)
            if current and public_key and manifest.created < current.created:
                raise InputError(
                    f"{latest}: is older than the current release ({manifest.created}, {current.created}), so it may "
                    "be replayed; publish the release again"
                )
            target = folder / manifest.folder
            same = current is not None and current.folder == manifest.folder
            if not _is_whole(target, manifest):
                with work_folder(target, manifest.folder.partition("-")[2]) as work:
                    _fetch_files(client, uri, manifest, work, reporter)
                    _write(work / LATEST, content)
        except s3.UnavailableError as error:
            if current is None:
                raise InputError(f"{error}; and there is no complete release in {folder}") from None
            return Fetched(current, "offline", str(error))
        _write(target / LATEST, content)
        if not same:
            if current:
                _point(folder / "previous", (folder / "current").readlink())
            _point(folder / "current", Path(manifest.folder))
        _clean(folder)
    return Fetched(manifest, "same" if same else "new")


def read_thresholds(path: Path) -> dict[str, float]:
    """Return the threshold of each tag from a `device.json`: the score from which on the tag is present.

    Raises:
        InputError: the file has no valid thresholds.
    """
    thresholds = read_json(path, "thresholds")["thresholds"]
    if not isinstance(thresholds, dict) or not all(isinstance(value, float | int) for value in thresholds.values()):
        raise InputError(f"{path}: thresholds must be numbers by tag; give the device.json of a release")
    return thresholds


def _address(uri: str, name: str) -> str:
    if not S3_ADDRESS.fullmatch(uri):
        # The message omits the address, which may contain a password.
        raise InputError("the address must be s3://bucket/prefix, without credentials; correct it")
    return f"{uri.rstrip('/')}/{name}"


def _described(folder: Path) -> dict[str, dict[str, Any]]:
    """Return checksum and size of the files of `device/`, after comparing them with `device.json`."""
    found = {path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in sorted(folder.iterdir())}
    expected = read_json(folder / DESCRIPTION, "files")["files"]
    actual = {name: file for name, file in found.items() if name != DESCRIPTION}
    if expected != actual:
        expected = expected if isinstance(expected, dict) else {}
        wrong = sorted(name for name in {*expected, *actual} if expected.get(name) != actual.get(name))
        raise InputError(f"{DESCRIPTION} does not describe {', '.join(map(ascii, wrong))}; register the version again")
    return found


def _latest(client: "S3Client", latest: str, public_key: Path | None) -> tuple[Manifest, bytes]:
    """Return the checked manifest and its bytes."""
    key = _public_key(public_key) if public_key else None
    found = s3.read(client, latest, MANIFEST_BYTES)
    if found is None:
        raise InputError(f"{latest}: there is no release; publish one with iusp release, or correct the address")
    manifest = _parsed(latest, found[0])
    if key:
        try:
            key.verify(base64.b64decode(manifest.signature or "", validate=True), manifest.signed)
        except (InvalidSignature, ValueError):
            raise InputError(f"{latest}: is not signed with the key of {public_key}; do not trust it") from None
    return manifest, found[0]


def _parsed(where: str, content: bytes) -> Manifest:
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        detail = error.errors()[0]
        place = ascii(".".join(map(str, detail["loc"])))
        reason = ascii(detail["msg"].removeprefix("Value error, "))[1:-1]
        raise InputError(f"{where}: is not a valid release ({place}: {reason}); publish the release again") from None


def _fetch_files(client: "S3Client", uri: str, manifest: Manifest, work: Path, reporter: Reporter) -> None:
    where = _address(uri, manifest.folder)
    listed = s3.list_folder(client, where, manifest.files.__contains__, "release")
    sizes = {entry.name: entry.size for entry in listed.objects}
    for name, file in manifest.files.items():
        if sizes.get(name) != file.bytes:
            raise InputError(
                f"{where}/{name}: has {sizes.get(name, 0)} of {file.bytes} bytes; publish the release again"
            )
    for name, file in manifest.files.items():
        if (work / name).exists() and sha256(work / name) != file.sha256:
            (work / name).unlink()
    listed.fetch(work, reporter)
    for name, file in manifest.files.items():
        if sha256(work / name) != file.sha256:
            (work / name).unlink()
            raise InputError(
                f"{where}/{name}: SHA-256 differs from the manifest; delete it and publish the release again"
            )


def _current(folder: Path) -> Manifest | None:
    """Return the manifest of the current release; None if the release is missing or damaged."""
    path = folder / "current" / LATEST
    try:
        manifest = _parsed(str(path), path.read_bytes())
    except (OSError, InputError):
        return None
    return manifest if _is_whole(folder / "current", manifest) else None


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    return all(
        (folder / name).is_file() and sha256(folder / name) == file.sha256 for name, file in manifest.files.items()
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other fetches away; the lock ends with its process, even if that is killed."""
    # The lock of last resort, a file without flock, would outlive a killed process.
    lock = FileLock(folder / ".lock", timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"{folder}: another iusp fetch uses this folder; wait for it") from None
    try:
        yield
    finally:
        lock.release()


def _write(path: Path, content: bytes) -> None:
    if path.is_file() and path.read_bytes() == content:
        return  # writes wear out the flash memory of a device
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def _point(link: Path, target: Path) -> None:
    temporary = link.with_name(f".{link.name}.part")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def _clean(folder: Path) -> None:
    """Remove all releases except the current and the previous one, and unfinished downloads."""
    kept = {str((folder / link).readlink()) for link in ("current", "previous") if (folder / link).is_symlink()}
    for path in folder.iterdir():
        if FOLDER.fullmatch(path.name) and path.name not in kept and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def _private_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path}: is not an unencrypted private Ed25519 key in PEM; create one with openssl genpkey")
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{path}: is not a public Ed25519 key in PEM; write it with openssl pkey -pubout")
    return key
