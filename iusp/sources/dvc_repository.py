"""One version of a folder that DVC tracks in a git repository: downloaded by the dvc command, verified and resumed."""

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

import yaml

from iusp.errors import InputError
from iusp.io import files
from iusp.io.text import first_names, without_secrets
from iusp.reporter import Reporter
from iusp.sources.folder import CONTENT, TABLES, is_part

POLL_SECONDS = 1.0
# No git, no usage statistics, and a separate cache whatever the user's own settings say.
SETTINGS = "[core]\n    no_scm = true\n    analytics = false\n    check_update = false\n[cache]\n    dir = cache\n"
IMPORT = "data.dvc"
REASON_LENGTH = 200


class DvcError(Exception):
    """DVC failed; the message is its reason, in one line without secrets."""


@dataclass(frozen=True)
class Version:
    """A folder in a git repository at one commit.

    Attributes:
        url: address of the repository.
        path: the folder in the repository.
        commit: the commit, in hexadecimal.
        imported: content of the `.dvc` file by which DVC downloads the folder.
        names: MD5 of every file of the data set, by its path in the folder; None if git itself tracks the file.
    """

    url: str
    path: str
    commit: str
    imported: str
    names: dict[str, str | None]

    @property
    def identity(self) -> list[object]:
        """Path and commit."""
        return [self.path, self.commit]

    @property
    def _title(self) -> str:
        return f"{self.url} at {self.commit[:10]}"

    def fetch(self, folder: Path, reporter: Reporter) -> Path:
        """Download the files and verify their MD5s, except files that an earlier call for this version downloaded.

        Args:
            folder: folder for DVC's workspace.
            reporter: receives the progress, file by file.

        Returns:
            The folder below `folder` that holds all files.

        Raises:
            InputError: DVC cannot download all files, or a file is not the one of this version.
        """
        complete = folder / "complete"
        if not complete.exists():
            downloaded = self._download(folder, reporter)
            self._verify(downloaded, reporter)
            downloaded.replace(complete)
        return complete

    def _download(self, folder: Path, reporter: Reporter) -> Path:
        """Let DVC download the files; return the folder that holds them."""
        cache = folder / ".dvc/cache/fs"
        total = len(self.names)
        reporter.progress("fetch", 0, total, self._title)
        _prepare(folder)
        with files.atomic(folder / IMPORT) as temporary:
            temporary.write_text(self.imported, encoding="utf-8")

        def count() -> None:
            reporter.progress("fetch", min(sum(len(names) for _, _, names in os.walk(cache)), total), total)

        try:
            # A killed run may have left a DVC process behind that is still downloading.
            _dvc(folder, "--wait-for-lock", "fetch", every=count)
            reason = "DVC left them out"
        except DvcError as error:
            reason = str(error)
        # DVC keeps the folder of an import as the only one below cache/fs/<scheme>.
        downloaded = next(cache.glob("*/*"), cache)
        if downloaded.is_file():
            raise InputError(f"{self._title}: {self.path} is a file, not a folder; correct dataset.dvc.path")
        if missing := [name for name in self.names if not (downloaded / name).is_file()]:
            raise InputError(
                f"{self._title}: {len(missing)} of {total} files are not fetched ({first_names(missing)}): {reason}; "
                "check that its DVC remote has them (dvc push), and run again to fetch the rest"
            )
        return downloaded

    def _verify(self, folder: Path, reporter: Reporter) -> None:
        """Delete and refuse files with a wrong MD5."""
        damaged = []
        for done, (name, md5) in enumerate(self.names.items(), start=1):
            if md5 is not None and not _has_md5(folder / name, md5):
                (folder / name).unlink()
                damaged.append(name)
            reporter.progress("verify", done, len(self.names))
        if damaged:
            raise InputError(
                f"{self._title}: its DVC remote holds damaged files ({first_names(damaged)}); push them again"
            )


def open_version(url: str, revision: str, path: str) -> Version:
    """Look up the commit of a revision and the files of its folder.

    Args:
        url: address or folder of a git repository.
        revision: commit, tag or branch.
        path: folder in the repository whose files DVC or git tracks.

    Raises:
        InputError: there is no such repository, revision or folder, or the folder contains no part of a data set.
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
            if reason.startswith("[Errno 2] "):  # DVC's message for a missing path
                reason = f"there is no {path} in it at {revision}"
            raise InputError(f"{url}: {reason}; correct dataset.dvc") from None
    if bad := [entry["path"] for entry in listed if {"", ".", ".."} & set(entry["path"].split("/"))]:
        raise InputError(
            f"{url}: {path} at {revision} names files outside of the folder ({first_names(bad)}); do not use it"
        )
    names = {entry["path"]: entry["md5"] for entry in listed if is_part(entry["path"])}
    if not names:
        raise InputError(f"{url}: {path} at {revision} has no {CONTENT}; correct dataset.dvc")
    return Version(url, path, commit, imported, names)


def _prepare(folder: Path) -> None:
    """Create a DVC workspace."""
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    with files.atomic(folder / ".dvc/config") as temporary:
        temporary.write_text(SETTINGS, encoding="utf-8")


def _dvc(folder: Path, *arguments: str, every: Callable[[], None] = lambda: None) -> str:
    """Run DVC in a workspace and return its output.

    Args:
        folder: the workspace.
        arguments: arguments of the dvc command.
        every: function to call each second.

    Raises:
        DvcError: the command fails.
    """
    # Clones, locks and indices are created in the workspace, so that they are deleted with it.
    places = {"TMPDIR": str(folder.resolve() / "tmp"), "DVC_SITE_CACHE_DIR": str(folder.resolve() / "tmp")}
    process = subprocess.Popen(  # noqa: S603 (user input follows after the end of the options)
        [sys.executable, "-m", "dvc", *arguments],
        cwd=folder,
        env=os.environ | places | {"DVC_NO_ANALYTICS": "1", "GIT_TERMINAL_PROMPT": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # without a terminal, git and ssh cannot ask for a password
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
    """Return the first error in DVC's output, without credentials and temporary paths."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()] or ["DVC failed without a message"]
    reason = next((line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")), lines[-1])
    reason = re.sub(r"^(unexpected error|failed to \w+ '[^']*'( from '[^']*'\.)?) - (SCM error: )?", "", reason)
    if str(folder.resolve()) in reason and reason.startswith("[Errno 2] "):
        return "a file is missing there"  # DVC's message contains a temporary name only
    reason = re.sub(r" to '[^']*'(?=:)", "", without_secrets(reason)).rstrip(": ")
    return reason if len(reason) <= REASON_LENGTH else f"{reason[:REASON_LENGTH]}…"


def _has_md5(path: Path, md5: str) -> bool:
    with path.open("rb") as stream:
        if hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == md5:
            return True
    if path.suffix not in TABLES:
        return False
    # DVC before 3.0 hashed text files with Unix line ends.
    text = path.read_bytes().replace(b"\r\n", b"\n")
    return hashlib.md5(text, usedforsecurity=False).hexdigest() == md5
