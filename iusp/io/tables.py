"""Tables: Parquet files that one step writes and a later step reads, and the CSV files of other people's programs."""

import codecs
import csv
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from iusp.errors import InputError
from iusp.io import files

HEADER_BYTES = 2**16  # a longer first line cannot be a header; pandas takes kilobytes of memory per column
SEPARATORS = (",", ";", "\t", "|")


@dataclass(frozen=True)
class CsvFormat:
    """How a CSV file is written.

    Attributes:
        separator: character between two cells.
        first_line: number of lines before the header: 1 if the file starts with a line such as `sep=;`, else 0.
    """

    separator: str
    first_line: int


def csv_format(path: Path, column: str) -> CsvFormat:
    """Find out how a CSV file is written: spreadsheets write semicolons where the decimal sign is a comma.

    Args:
        path: the CSV file.
        column: name of a column that the header must have. If no separator yields it, the separator is a comma.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is UTF-16 text, or the first line is too long or not UTF-8.
    """
    with path.open("rb") as stream:
        head = stream.read(HEADER_BYTES)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is UTF-16 text")
    line = re.split(rb"[\r\n]", head, maxsplit=1)[0]
    if len(line) == HEADER_BYTES:
        raise ValueError(f"its first line is longer than {HEADER_BYTES:,} bytes")
    first = line.decode("utf-8-sig")
    if stated := re.fullmatch(r'"?sep=(.)"?[,;\t|]*', first):
        return CsvFormat(stated[1], 1)
    for separator in SEPARATORS:
        cells = next(csv.reader([first], delimiter=separator), [])
        if column in (cell.strip() for cell in cells):
            return CsvFormat(separator, 0)
    return CsvFormat(",", 0)


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
