"""A release: what a device needs of one registered version, in a bucket; and the copy of it that a device runs.

In the bucket, the files lie below `<version>-<digest>`, named by what is in them, and are never written over; the
manifest `latest.json` is written last and names them with their SHA-256. A device has the same folder, the manifest in
it, and the link `current` to it. So neither a reader of the bucket nor one of the device ever sees half a release.
"""

import base64
import fcntl
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
from pydantic import AfterValidator, Field, ValidationError

from iusp.config.base import Count, Section
from iusp.errors import InputError
from iusp.io import s3 as storage
from iusp.io.addresses import S3_ADDRESS
from iusp.io.files import atomic, digest, is_file_name, read_json, sha256, work_folder
from iusp.reporter import Reporter

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

LATEST = "latest.json"
DESCRIPTION = "device.json"
MANIFEST_BYTES = 2**20  # a larger one is none
FOLDER = re.compile(r"\.?\d+-[0-9a-f]{16}(\.work-[0-9a-f]{16})?")  # of a release, or being fetched


def _flat(name: str) -> str:
    if not is_file_name(name) or name.startswith(".") or name == LATEST:
        raise ValueError("is no name for a file of a release")
    return name


class File(Section):
    """What a file of a release must be."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of its content."""
    bytes: Annotated[int, Field(ge=0)]
    """Its size."""


class Manifest(Section):
    """`latest.json`: one release, as a whole."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    """Name of the registered model."""
    version: Count
    """The registered version."""
    created: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    """When it was released; UTC."""
    files: Annotated[dict[Annotated[str, AfterValidator(_flat)], File], Field(min_length=1)]
    """By name, all files that there are."""
    signature: str | None = None
    """Ed25519, base64, over all the rest as JSON with sorted keys and without spaces."""

    @property
    def folder(self) -> str:
        """Where the files lie, in the bucket and on a device."""
        return f"{self.version}-{digest({name: file.sha256 for name, file in self.files.items()})[:16]}"

    @property
    def signed(self) -> bytes:
        """What the signature is over."""
        return json.dumps(self.model_dump(exclude={"signature"}), sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Fetched:
    """What a device has after a fetch.

    Attributes:
        manifest: of the current release.
        state: `new`; or `same`, because it was here already; or `offline`, because the server has nothing to say.
        reason: of `offline`, in one line.
    """

    manifest: Manifest
    state: Literal["new", "same", "offline"]
    reason: str = ""


def publish(folder: Path, model: str, version: int, uri: str, private_key: Path | None, reporter: Reporter) -> Manifest:
    """Publish a version's files; `latest.json` comes last, and only if nobody else has published meanwhile.

    Args:
        folder: `device/` of a registered version: flat, with `device.json`, which has the SHA-256 of the others.
        model: name of the registered model.
        version: its number.
        uri: `s3://bucket/prefix`.
        private_key: PEM file of an Ed25519 key to sign with.
        reporter: told of every file.

    Returns:
        What `latest.json` says.

    Raises:
        InputError: the files are not what `device.json` says, the key is none, the server cannot be reached or refuses,
            or another release was published meanwhile.
    """
    latest = _address(uri, LATEST)
    key = _private_key(private_key) if private_key else None
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    document = {"model": model, "version": version, "created": created, "files": _described(folder)}
    manifest = _parsed(f"{model} version {version}", json.dumps(document).encode())
    if key:
        manifest = manifest.model_copy(update={"signature": base64.b64encode(key.sign(manifest.signed)).decode()})
    client = storage.connect(latest)
    before = storage.read(client, latest, MANIFEST_BYTES)
    storage.upload(client, folder, _address(uri, manifest.folder), reporter)
    content = (manifest.model_dump_json(indent=2, exclude_none=True) + "\n").encode()
    if not storage.write(client, latest, content, before and before[1]):
        now = storage.read(client, latest, MANIFEST_BYTES)
        # Our own request may have been repeated because its answer was lost.
        if now is None or now[0] != content:
            raise InputError(f"{latest}: somebody else has released meanwhile; look at it, and run again to replace it")
    return manifest


def fetch(uri: str, folder: Path, public_key: Path | None, reporter: Reporter) -> Fetched:
    """Fetch the latest release and make it the current one; the one before stays as `previous`.

    Whatever goes wrong, `current` stays what it was.

    Args:
        uri: `s3://bucket/prefix` that was published to.
        folder: where a device keeps its releases; `current` and `previous` in it are links to folders.
        public_key: PEM file of the Ed25519 key that the manifest must be signed with.
        reporter: told of every file.

    Raises:
        InputError: there is no release, it is not signed with the key, or it is not what its manifest says; or the
            server cannot be reached, and there is no whole release here.
    """
    latest = _address(uri, LATEST)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        current = _current(folder)
        try:
            client = storage.connect(latest)
            manifest, content = _latest(client, latest, public_key)
            if current and public_key and manifest.created < current.created:
                raise InputError(
                    f"{latest}: is older than the current release ({manifest.created}, {current.created}), and so "
                    "perhaps replayed; release anew"
                )
            target = folder / manifest.folder
            same = current is not None and current.folder == manifest.folder
            if not _is_whole(target, manifest):
                with work_folder(target, manifest.folder.partition("-")[2]) as work:
                    _fetch_files(client, uri, manifest, work, reporter)
                    _write(work / LATEST, content)
        except storage.UnavailableError as error:
            if current is None:
                raise InputError(f"{error}; and there is no whole release in {folder}") from None
            return Fetched(current, "offline", str(error))
        _write(target / LATEST, content)
        if not same:
            if current:
                _point(folder / "previous", (folder / "current").readlink())
            _point(folder / "current", Path(manifest.folder))
        _clean(folder)
    return Fetched(manifest, "same" if same else "new")


def read_thresholds(path: Path) -> dict[str, float]:
    """Return by tag from which score on it is present, as a `device.json` says.

    Raises:
        InputError: it says no such thing.
    """
    thresholds = read_json(path, "thresholds")["thresholds"]
    if not isinstance(thresholds, dict) or not all(isinstance(value, float | int) for value in thresholds.values()):
        raise InputError(f"{path}: thresholds must be numbers by tag; give the device.json of a release")
    return thresholds


def _address(uri: str, name: str) -> str:
    if not S3_ADDRESS.fullmatch(uri):
        # What is typed instead may hold a password.
        raise InputError("the address must be s3://bucket/prefix, without credentials; correct it")
    return f"{uri.rstrip('/')}/{name}"


def _described(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what the files of `device/` are, if they are what `device.json` says."""
    found = {path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in sorted(folder.iterdir())}
    said = read_json(folder / DESCRIPTION, "files")["files"]
    others = {name: file for name, file in found.items() if name != DESCRIPTION}
    if said != others:
        said = said if isinstance(said, dict) else {}
        wrong = sorted(name for name in {*said, *others} if said.get(name) != others.get(name))
        raise InputError(f"{DESCRIPTION} does not describe {', '.join(map(ascii, wrong))}; register the version anew")
    return found


def _latest(client: "S3Client", latest: str, public_key: Path | None) -> tuple[Manifest, bytes]:
    """Return the manifest, which is well-formed and signed, and its bytes."""
    key = _public_key(public_key) if public_key else None
    found = storage.read(client, latest, MANIFEST_BYTES)
    if found is None:
        raise InputError(f"{latest}: there is none; publish one with iusp release, or correct the address")
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
        raise InputError(f"{where}: is no release ({place}: {reason}); release anew") from None


def _fetch_files(client: "S3Client", uri: str, manifest: Manifest, work: Path, reporter: Reporter) -> None:
    where = _address(uri, manifest.folder)
    listed = storage.list_folder(client, where, manifest.files.__contains__, "release")
    sizes = {entry.name: entry.size for entry in listed.objects}
    for name, file in manifest.files.items():
        if sizes.get(name) != file.bytes:
            raise InputError(f"{where}/{name}: {sizes.get(name, 'none')} of {file.bytes} bytes are there; release anew")
    for name, file in manifest.files.items():
        if (work / name).exists() and sha256(work / name) != file.sha256:
            (work / name).unlink()
    listed.fetch(work, reporter)
    for name, file in manifest.files.items():
        if sha256(work / name) != file.sha256:
            (work / name).unlink()
            raise InputError(f"{where}/{name}: does not have its SHA-256; delete it there, and release anew")


def _current(folder: Path) -> Manifest | None:
    """Return the manifest of the current release, or None if there is none or it is damaged."""
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
    """Keep other fetches away; a lock ends with the process that holds it."""
    with (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another iusp fetch is at work there; wait for it") from None
        yield


def _write(path: Path, content: bytes) -> None:
    if path.is_file() and path.read_bytes() == content:
        return  # a device's flash memory wears
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def _point(link: Path, target: Path) -> None:
    temporary = link.with_name(f".{link.name}.part")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def _clean(folder: Path) -> None:
    """Remove the releases that are neither current nor previous, and what was begun of others."""
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
        raise InputError(f"{path}: is no private Ed25519 key in PEM, unencrypted; openssl genpkey makes one")
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{path}: is no public Ed25519 key in PEM; openssl pkey -pubout writes it")
    return key
