"""A folder that a git repository tracks by DVC, in one version: fetched by DVC's command line, verified and resumed."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from iusp.errors import InputError
from iusp.io import files
from iusp.io.text import first_names, without_secrets
from iusp.reporter import Reporter

POLL_SECONDS = 1.0
# No git here, nothing sent home, and a cache of its own whatever the user's settings say.
SETTINGS = "[core]\n    no_scm = true\n    analytics = false\n    check_update = false\n[cache]\n    dir = cache\n"
IMPORT = "data.dvc"
REASON_LENGTH = 200
TABLES = (".csv", ".yaml")


class DvcError(Exception):
    """DVC failed; the message is its reason, in one line without secrets."""


@dataclass(frozen=True)
class Version:
    """A folder in a git repository at one commit.

    Attributes:
        url: the repository.
        path: the folder in it.
        commit: hexadecimal.
        imported: what DVC needs to fetch it, as a `.dvc` file.
        names: the MD5 of every file that is part of the folder, or None if git itself tracks it.
    """

    url: str
    path: str
    commit: str
    imported: str
    names: dict[str, str | None]

    @property
    def identity(self) -> list[Any]:
        """What changes with the content of any file, as JSON."""
        return [self.path, self.commit]

    def fetch(self, folder: Path, reporter: Reporter) -> Path:
        """Fetch the files, but for those that an earlier call for the same version fetched, and verify their MD5s.

        Args:
            folder: DVC's workspace for it.
            reporter: told of every file.

        Returns:
            The folder below `folder` that holds the files, all of them.

        Raises:
            InputError: DVC cannot fetch all, or a file is not what the version says.
        """
        complete = folder / "complete"
        if complete.exists():
            return complete
        where = f"{self.url} at {self.commit[:10]}"
        cache = folder / ".dvc/cache/fs"
        total = len(self.names)
        reporter.progress("fetch", 0, total, where)
        _prepare(folder)
        with files.atomic(folder / IMPORT) as temporary:
            temporary.write_text(self.imported, encoding="utf-8")

        def count() -> None:
            reporter.progress("fetch", min(sum(len(names) for _, _, names in os.walk(cache)), total), total)

        try:
            # A killed run may have left a DVC behind that still fetches.
            _dvc(folder, "--wait-for-lock", "fetch", every=count)
            reason = "DVC left them out"
        except DvcError as error:
            reason = str(error)
        # A folder of an import is kept as it is, as the only one below cache/fs/<scheme>.
        fetched = next(cache.glob("*/*"), cache)
        if fetched.is_file():
            raise InputError(f"{where}: {self.path} is a file; correct dataset.dvc.path")
        if missing := [name for name in self.names if not (fetched / name).is_file()]:
            raise InputError(
                f"{where}: {len(missing)} of {total} files are not fetched ({first_names(missing)}): {reason}; see "
                "that its DVC remote has them (dvc push), and run again: what was fetched is kept"
            )
        damaged = []
        for done, (name, md5) in enumerate(self.names.items(), start=1):
            if md5 is not None and not _has_md5(fetched / name, md5):
                (fetched / name).unlink()
                damaged.append(name)
            reporter.progress("verify", done, total)
        if damaged:
            raise InputError(f"{where}: its DVC remote holds damaged files ({first_names(damaged)}); push them again")
        fetched.replace(complete)
        return complete


def open_version(url: str, revision: str, path: str, wanted: Callable[[str], bool]) -> Version:
    """Find out which commit a revision is, and which files its folder has.

    Args:
        url: address or folder of a git repository.
        revision: commit, tag or branch.
        path: a folder in it that DVC tracks, wholly or in part.
        wanted: tells by a file's name, its path below `path`, whether it is part of the folder.

    Raises:
        InputError: there is no such repository, revision or folder, or nothing in it is wanted.
    """
    address = str(Path(url).resolve()) if Path(url).exists() else url
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _prepare(folder)
        try:
            options = ("--no-download", f"--rev={revision}", f"--out={Path(IMPORT).stem}")
            _dvc(folder, "import", *options, "--", address, path)
            imported = (folder / IMPORT).read_text(encoding="utf-8")
            commit = yaml.safe_load(imported)["deps"][0]["repo"]["rev_lock"]
            listed = json.loads(_dvc(folder, "list", "--recursive", "--json", f"--rev={commit}", "--", address, path))
        except DvcError as error:
            reason = str(error)
            if reason.startswith("[Errno 2] "):  # DVC's word for a missing path
                reason = f"there is no {path} in it at {revision}"
            raise InputError(f"{url}: {reason}; correct dataset.dvc") from None
    if bad := [entry["path"] for entry in listed if {"", ".", ".."} & set(entry["path"].split("/"))]:
        raise InputError(f"{url}: {path} at {revision} names files outside of it ({first_names(bad)}); do not use it")
    names = {entry["path"]: entry["md5"] for entry in listed if wanted(entry["path"])}
    if not names:
        raise InputError(
            f"{url}: {path} at {revision} has no annotations CSV, taxonomy YAML or audio; correct dataset.dvc"
        )
    return Version(url, path, commit, imported, names)


def _prepare(folder: Path) -> None:
    """Make a DVC workspace."""
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    with files.atomic(folder / ".dvc/config") as temporary:
        temporary.write_text(SETTINGS, encoding="utf-8")


def _dvc(folder: Path, *arguments: str, every: Callable[[], None] = lambda: None) -> str:
    """Run DVC in a workspace, call `every` each second, and return what it prints.

    Raises:
        DvcError: it fails.
    """
    # Clones, locks and indices lie in the workspace, so that they go with it.
    places = {"TMPDIR": str(folder.resolve() / "tmp"), "DVC_SITE_CACHE_DIR": str(folder.resolve() / "tmp")}
    process = subprocess.Popen(  # noqa: S603 (options end before what the user gave)
        [sys.executable, "-m", "dvc", *arguments],
        cwd=folder,
        env=os.environ | places | {"DVC_NO_ANALYTICS": "1", "GIT_TERMINAL_PROMPT": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # without a terminal nobody can be asked for a password
        text=True,
    )
    try:
        while True:
            try:
                output, errors = process.communicate(timeout=POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                every()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode:
        raise DvcError(_reason(errors, folder))
    return output


def _reason(errors: str, folder: Path) -> str:
    """Return the first error in what DVC printed, without secrets and temporary places."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()] or ["DVC failed and did not say why"]
    reason = next((line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")), lines[-1])
    reason = re.sub(r"^(unexpected error|failed to \w+ '[^']*'( from '[^']*'\.)?) - (SCM error: )?", "", reason)
    if str(folder.resolve()) in reason and reason.startswith("[Errno 2] "):
        return "a file is missing there"  # DVC tells of the temporary name that it was to get
    reason = re.sub(r" to '[^']*'(?=:)", "", without_secrets(reason)).rstrip(": ")
    return reason if len(reason) <= REASON_LENGTH else f"{reason[:REASON_LENGTH]}…"


def _has_md5(path: Path, md5: str) -> bool:
    with path.open("rb") as stream:
        if hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == md5:
            return True
    if path.suffix not in TABLES:
        return False
    # DVC before 3.0 hashed text with Unix line ends.
    text = path.read_bytes().replace(b"\r\n", b"\n")
    return hashlib.md5(text, usedforsecurity=False).hexdigest() == md5
