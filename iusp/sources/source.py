"""What every source of recordings offers to the dataset step."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from iusp.reporter import Reporter


class Source(Protocol):
    """A data set in SONYC-UST's format, in the state in which it was found."""

    @property
    def identity(self) -> Iterable[object]:
        """JSON values that change whenever the content of a file changes."""

    def fetch(self, folder: Path, reporter: Reporter) -> Path:
        """Bring the data set onto this machine.

        Args:
            folder: folder to write into. Files of an earlier, killed call for the same data set are kept.
            reporter: receives the progress.

        Returns:
            The folder that holds the data set: `folder`, a folder below it, or the place where the data set already is.
        """
