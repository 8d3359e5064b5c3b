"""Files: written so that a half-written file never looks complete, copied, locked and digested."""

import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml
from filelock import lock_descriptor

from iusp.errors import InputError
from iusp.io.text import one_line

LONGEST_NAME = 200  # bytes; file systems allow 255, and temporary names are longer than the file's own
BLOCK_BYTES = 2**20
YAML_LIMIT = 2**20  # characters


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it to `path`.

    An exception (or a kill) leaves `path` as it was.

    Raises:
        InputError: `path` exists and is not a file, but for example a folder or a device.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: not a regular file; choose another path to write to")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with _named(path):
            yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def work_folder(output: Path, key: str) -> Iterator[Path]:
    """Yield a folder beside `output` to work in; on success it becomes `output`.

    The folder survives a kill. The next run with the same `key` finds it again and does not repeat its finished parts;
    folders of other keys are removed. The folder lies outside `output` because DVC deletes the outputs of a stage
    before it runs the stage.

    On a cluster, a folder beside the output is lost with its pod. The environment variable IUSP_WORK therefore names
    another place, and IUSP_EXECUTION a folder in it. Other pods work in the same place, so folders of other keys stay.

    Args:
        output: folder that the work becomes.
        key: digest of everything that shapes the output.

    Raises:
        InputError: another process works on the same output.
    """
    elsewhere = os.environ.get("IUSP_WORK")
    parent = Path(elsewhere) / os.environ.get("IUSP_EXECUTION", "") if elsewhere else output.parent
    folder = parent / f".{output.name}.work-{key[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        locks.enter_context(_locked(folder))
        if not elsewhere:
            for stale in parent.glob(f".{output.name}.work-*"):
                if stale != folder:
                    locks.enter_context(_locked(stale))
                    shutil.rmtree(stale)
        for leftover in folder.rglob(".*.part"):
            leftover.unlink()
        with _named(folder):
            yield folder
        arriving = folder
        if elsewhere:
            output.parent.mkdir(parents=True, exist_ok=True)
            arriving = output.with_name(f".{output.name}.part")
            shutil.rmtree(arriving, ignore_errors=True)
            shutil.copytree(folder, arriving)
        # The old output is moved aside first: a kill during its removal would leave half of it under its name.
        replaced = output.with_name(f".{output.name}.work-replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if output.exists():
            output.replace(replaced)
        arriving.replace(output)
        shutil.rmtree(replaced, ignore_errors=True)
        if elsewhere:
            shutil.rmtree(folder)


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """Keep other processes away from an output, including those whose work folder is in another place.

    Raises:
        InputError: another process works on the same output.
    """
    lock = output.with_name(f".{output.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    with _locked(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Add the path to the error of a full disk, which the operating system reports without it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock an existing file or folder against other processes; the lock ends with this process, even if it is killed.

    The file or folder itself is locked, because `filelock.FileLock` would leave a lock file beside every output.
    """
    busy = InputError(f"{path}: another run of this step is using it; run again when that run has ended")
    try:
        # NFS locks only files that are open for writing.
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except FileNotFoundError:  # the other run has just ended
        raise busy from None
    try:
        try:
            is_free = lock_descriptor(descriptor, blocking=False)
        except OSError:  # a file system without locks
            is_free = True
        # Between opening and locking, the other run may have ended and renamed or removed the file or folder.
        if not is_free or not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise busy
        yield
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal, read in bounded memory."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def copy(source: Path, target: Path) -> str:
    """Copy a file atomically and return its SHA-256, in one pass and in bounded memory."""
    checksum = hashlib.sha256()
    with atomic(target) as temporary, source.open("rb") as reader, temporary.open("wb") as writer:
        while block := reader.read(BLOCK_BYTES):
            checksum.update(block)
            writer.write(block)
    return checksum.hexdigest()


class Hashed(io.BufferedWriter):
    """A file that is open for writing and computes the SHA-256 of what is written."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self.sha256 = hashlib.sha256()

    def write(self, content: Any) -> int:
        """Write bytes and add them to the digest."""
        self.sha256.update(content)
        return super().write(content)


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON-serialisable value in its canonical form (sorted keys, no spaces)."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def digest_each(values: Iterable[Any]) -> str:
    """Return the SHA-256 of many JSON-serialisable values, one per line in canonical form, in bounded memory."""
    checksum = hashlib.sha256()
    for value in values:
        checksum.update(f"{_canonical(value)}\n".encode())
    return checksum.hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, *keys: str, form: Any = None) -> Any:
    """Read a JSON object that an earlier step wrote.

    Args:
        path: the file.
        keys: keys that the object must have.
        form: pydantic type that the object must match; further keys are allowed.

    Raises:
        InputError: the file is missing, is not JSON, lacks one of `keys` or does not match `form`.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
        if not isinstance(value, dict) or not set(keys) <= set(value):
            raise ValueError(f"lacks {', '.join(keys)}")
        if form is not None:
            _check_form(value, form)
        return value
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run the step that writes it first (dvc repro)") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not what its step writes ({error}); delete it and run its step again") from None


class _Loader(yaml.SafeLoader):
    """A YAML loader that refuses duplicate keys; PyYAML itself silently takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):  # for other keys, PyYAML itself raises an error
                key = self.construct_object(key_node)
                if key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key}", key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Read a YAML document of plain values.

    Raises:
        ValueError: the text is not valid YAML or has a duplicate key; the message is one line.
    """
    if len(text) > YAML_LIMIT:  # PyYAML needs seconds per million characters
        raise ValueError(f"{len(text):,} characters long, more than {YAML_LIMIT:,}")
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an invalid number or date
        raise ValueError(one_line(error)) from None


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _check_form(value: Any, form: Any) -> None:
    from pydantic import TypeAdapter, ValidationError  # slow to import

    try:
        TypeAdapter(form).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def is_file_name(name: str) -> bool:
    """Return whether an untrusted name is a plain file name on every operating system: printable and not a path."""
    return (
        PureWindowsPath(name).name == name  # splits at / as well
        and name not in ("", "..")
        and name.isprintable()
        and len(os.fsencode(name)) <= LONGEST_NAME
    )


def code_digest() -> str:
    """Return the SHA-256 of this package's Python sources, so that no run resumes the work of another version."""
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256("".join(map(sha256, sources)).encode()).hexdigest()
