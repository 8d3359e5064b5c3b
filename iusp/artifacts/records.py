"""`record.csv`: what training measured in each epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from iusp.errors import InputError
from iusp.io.files import atomic
from iusp.io.text import one_line

Row = dict[str, float]
"""One epoch: `epoch` (from 1), `learning_rate`, `loss_<name>` and `validate_micro_auprc`."""

RECORD = "record.csv"
EPOCH_COLUMNS = {"epoch", "learning_rate", "validate_micro_auprc"}


@dataclass(frozen=True)
class TrainingRecord:
    """The training record of one network.

    Attributes:
        rows: one row for each epoch, in order.
    """

    rows: Sequence[Row]

    @classmethod
    def read(cls, folder: Path) -> "TrainingRecord":
        """Read `record.csv` in a network's folder.

        Raises:
            InputError: the file is missing or damaged.
        """
        path = folder / RECORD
        try:
            table = pd.read_csv(path).astype(float)
            if table.empty or not set(table) >= EPOCH_COLUMNS or not np.isfinite(table.to_numpy()).all():
                raise ValueError(f"must have rows of numbers for {', '.join(sorted(EPOCH_COLUMNS))}")
        except (OSError, ValueError) as error:
            reason = one_line(error)
            raise InputError(f"{path}: not a training record ({reason}); run its step again") from None
        return cls([{str(name): value for name, value in row.items()} for row in table.to_dict("records")])

    def write(self, folder: Path) -> None:
        """Write `record.csv` into a network's folder, atomically."""
        with atomic(folder / RECORD) as temporary:
            pd.DataFrame(list(self.rows)).to_csv(temporary, index=False)

    def column(self, name: str) -> list[float]:
        """Return one column, epoch by epoch."""
        return [row[name] for row in self.rows]
