"""Parquet tables that one step writes and a later step reads."""

from collections.abc import Collection
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from iusp.errors import InputError
from iusp.io import files


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet, atomically and without its index."""
    # The metadata of pandas contains its version; without it, every version writes the same bytes.
    content = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata()
    with files.atomic(path) as temporary:
        pq.write_table(content, temporary)


def read_table(path: Path, *columns: str, optional: Collection[str] = ()) -> pd.DataFrame:
    """Read columns of a Parquet file that an earlier step wrote.

    Args:
        path: the Parquet file.
        columns: names of the columns that the file must have.
        optional: names of further columns, which are read if the file has them.

    Raises:
        InputError: the file is missing or damaged, or lacks one of `columns`.
    """
    try:
        names = pq.read_schema(path).names
        if not set(columns) <= set(names):
            raise ValueError(f"lacks {', '.join(columns)}")
        return pd.read_parquet(path, columns=[name for name in names if name in {*columns, *optional}])
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run the step that writes it first (dvc repro)") from None
    except (ValueError, OSError) as error:  # pyarrow's own errors are ValueErrors
        raise InputError(f"{path}: not what its step writes ({error}); delete it and run its step again") from None
