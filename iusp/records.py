"""What training recorded: one row for each epoch, and how good what it kept is on validate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from iusp.errors import InputError

# Epoch, learning rate, each loss's weighted mean, validate's micro-averaged AUPRC.
Row = dict[str, float]


def read_record(folder: Path) -> list[Row]:
    """Read the training record (`record.csv`) that training wrote into `folder`.

    Raises:
        InputError: it is missing or damaged.
    """
    path = folder / "record.csv"
    try:
        rows = pd.read_csv(path).astype(float).to_dict("records")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a training record ({error}); run its step again") from None
    return [{str(name): value for name, value in row.items()} for row in rows]


def best_student(students: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the name of the student with the best seed by micro-averaged AUPRC on validate.

    Args:
        students: by name, with `validate_micro_auprc` by seed, as in `metrics.json`.
    """
    return max(students, key=lambda name: max(students[name]["validate_micro_auprc"].values()))
