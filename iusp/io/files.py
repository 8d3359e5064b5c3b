"""Writing files so that a half-written one never looks whole, and naming contents by their digest."""

import errno
import fcntl
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

from iusp.errors import InputError
from iusp.io.text import one_line

LONGEST_NAME = 200  # bytes; file systems allow 255, temporary names are longer

YAML_LIMIT = 2**20  # characters


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it to `path`.

    An exception (or a kill) leaves `path` as it was.

    Raises:
        InputError: there is something else than a file, such as a folder or a device.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is no regular file; name another one to write")
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

    The folder outlives a kill and is found again by the next run with the same `key` (a digest of everything that
    shapes the output), so finished parts need not be made twice. Work under another key is removed. It lies outside
    `output` because DVC deletes a stage's outputs before it runs the stage.

    IUSP_WORK names another place for such folders, by IUSP_EXECUTION: on a cluster, what lies beside the output is lost
    with the pod. Other pods work there too, so nothing of another key is removed.

    Raises:
        InputError: another process works on the same output.
    """
    elsewhere = os.environ.get("IUSP_WORK")
    parent = Path(elsewhere) / os.environ.get("IUSP_EXECUTION", "") if elsewhere else output.parent
    folder = parent / f".{output.name}.work-{key[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        locks.enter_context(_alone(folder))
        if not elsewhere:
            for stale in parent.glob(f".{output.name}.work-*"):
                if stale != folder:
                    locks.enter_context(_alone(stale))
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
        # Moved aside first: a kill amid the removal would leave half of it, under its name.
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
    """Keep other processes off an output, also those that work elsewhere and only bring it there.

    Raises:
        InputError: another process is at it.
    """
    lock = output.with_name(f".{output.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    with _alone(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say in the error what could not be written: of a full disk, the system doesn't."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes off a file or folder; the lock ends with the process, however that ends."""
    busy = InputError(f"{path}: another run of this step is at work there; run again when it has ended")
    try:
        # NFS locks only what may be written.
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except FileNotFoundError:  # the other run has just ended
        raise busy from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        except OSError:
            pass  # a file system without locks
        if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise busy
        yield
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal, read in bounded memory."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Hashed(io.BufferedWriter):
    """A file to write, with the SHA-256 of what was written into it."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self.sha256 = hashlib.sha256()

    def write(self, content: Any) -> int:
        """Write and digest bytes."""
        self.sha256.update(content)
        return super().write(content)


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON-serialisable value in its canonical form (sorted keys, no spaces)."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def digest_each(values: Iterable[Any]) -> str:
    """Return the SHA-256 of many JSON-serialisable values in canonical form, a line each, in bounded memory."""
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
        keys: that must be there.
        form: a type that says what else must be there (pydantic checks it); what it does not name may be, too.

    Raises:
        InputError: the file is missing, is not JSON, lacks one of `keys` or is not of the form.
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
    """YAML in which a key may stand once: PyYAML lets the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):  # others cannot be keys, which PyYAML says itself
                key = self.construct_object(key_node)
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key} is there twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Read a YAML document of plain values; a key that is there twice is an error.

    Raises:
        ValueError: it is none; the message is one line.
    """
    if len(text) > YAML_LIMIT:  # PyYAML takes seconds for each million
        raise ValueError(f"{len(text):,} characters long, more than {YAML_LIMIT:,}")
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number or date that is none
        raise ValueError(one_line(error)) from None


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _check_form(value: Any, form: Any) -> None:
    from pydantic import TypeAdapter, ValidationError  # takes its time to be imported

    try:
        TypeAdapter(form).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def is_file_name(name: str) -> bool:
    """Tell whether a name from outside is a plain file's name: no path, on any system, and printable."""
    return (
        PureWindowsPath(name).name == name  # splits at / as well
        and name not in ("", "..")
        and name.isprintable()
        and len(os.fsencode(name)) <= LONGEST_NAME
    )


def code_digest() -> str:
    """Return the SHA-256 of this package's Python sources: work that another version began is not resumed."""
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256("".join(map(sha256, sources)).encode()).hexdigest()
