"""The state of a training run after an epoch, saved so that a killed run can resume and end with the same result."""

import io
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

from iusp.artifacts.records import Row
from iusp.errors import InputError
from iusp.io.files import atomic
from iusp.models.layers import Tagger
from iusp.training import distributed

# The errors that reading a damaged checkpoint raises.
DAMAGED = (
    *(BadZipFile, zlib.error, UnpicklingError, RuntimeError, EOFError),
    *(LookupError, ValueError, TypeError, AttributeError, OverflowError),
)


@dataclass
class History:
    """The epochs of a training run so far, and the best of these epochs on the validation clips.

    Attributes:
        record: one row per epoch.
        best: parameters and buffers of the network after the best epoch.
        best_epoch: number of the best epoch, from 0.
        best_score: micro-averaged AUPRC of the best epoch on the validation clips.
    """

    record: list[Row] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    best_score: float = -math.inf

    def add(self, row: Row, network: Tagger) -> None:
        """Append the row of an epoch, and keep a copy of the network if this epoch is the best so far."""
        if row["validate_micro_auprc"] > self.best_score:
            self.best = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
            self.best_epoch, self.best_score = len(self.record), row["validate_micro_auprc"]
        self.record.append(row)

    def is_finished(self, epochs: int, patience: int) -> bool:
        """Return whether all epochs are done, or none of the last `patience` epochs was better than the best epoch."""
        epoch = len(self.record)
        return epoch >= epochs or epoch - self.best_epoch > patience


class Stateful(Protocol):
    """An object whose state can be saved and loaded: a network, an optimiser or a learning-rate schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Load a saved state."""


class Checkpoint:
    """A file with the history of a training run and the state of everything that the run changes.

    Args:
        path: path of the file.
        parts: objects whose state is saved and restored, by name.
    """

    def __init__(self, path: Path, parts: Mapping[str, Stateful]) -> None:
        self.path = path
        self._parts = parts

    def save(self, history: History) -> None:
        """Write the file atomically: if the process is killed while it writes, the previous file stays."""
        content = io.BytesIO()
        state = {name: part.state_dict() for name, part in self._parts.items()}
        torch.save(state | {"state": vars(history)}, content)
        with atomic(self.path) as temporary:  # torch itself reports a full disk as an internal error
            temporary.write_bytes(content.getbuffer())

    def restore(self, device: torch.device) -> History:
        """Read the file in the first process, and load the saved state into the parts of every process.

        Args:
            device: device that the saved tensors are moved to.

        Returns:
            The saved history, or an empty history if there is no file.

        Raises:
            InputError: the file is damaged.
        """
        is_there = distributed.rank() == 0 and self.path.exists()
        content = distributed.from_first(self.path.read_bytes() if is_there else None)
        if content is None:
            return History()
        with self._readable():
            # PyTorch writes checksums and does not check them.
            with ZipFile(io.BytesIO(content)) as archive:
                if archive.testzip():
                    raise BadZipFile
            saved = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
            for name, part in self._parts.items():
                # PyTorch's schedules accept any keys.
                if (
                    isinstance(part, torch.optim.lr_scheduler.LRScheduler)
                    and saved[name].keys() != part.state_dict().keys()
                ):
                    raise KeyError(name)
                part.load_state_dict(saved[name])
            return History(**saved["state"])

    def remove(self) -> None:
        """Delete the file if it exists."""
        self.path.unlink(missing_ok=True)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Replace the exceptions that a damaged file causes by a one-line error."""
        try:
            yield
        except DAMAGED:
            raise InputError(f"{self.path}: is damaged; delete it to train from the beginning") from None
