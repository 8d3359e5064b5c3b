"""Tables as people's programs write them: the same rows, however they are written."""

import csv
import io
import itertools
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from iusp.data.labels import read_annotations
from iusp.evaluation.predictions import read_predictions
from tests.support.datasets import TAXONOMY, row
from tests.support.project import Tried

NAMES = ["Bahnhof, Gleis 1; größer|kleiner.wav", "café.wav", "c.wav"]
ROWS = [row(name, annotator=number, heard=[f"{number}-1"]) for number, name in enumerate(NAMES, 1)]
SCORES = [{"audio_filename": name, "1_engine": 0.25, "8_dog": 1.0} for name in NAMES]


def written(rows: list[dict[str, object]], decimal: bool) -> Iterator[bytes]:
    """Yield the same rows in every way: separator, first line, empty rows, encoding, newline, Unicode form, quotes."""
    ways = itertools.product(
        [",", ";", "\t", "|"], ["", "sep={}", '"sep={}"{}{}'], [0, 2], ["utf-8", "utf-8-sig"], ["\n", "\r\n"],
        ["NFC", "NFD"], [csv.QUOTE_MINIMAL, csv.QUOTE_ALL],
    )  # fmt: skip
    for separator, first, empty, encoding, newline, form, quoting in ways:
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=separator, lineterminator="\n", quoting=quoting)
        writer.writeheader()
        for values in rows:
            # Spreadsheets write a decimal comma where the separator is a semicolon.
            comma = decimal and separator == ";"
            writer.writerow(
                {name: str(value).replace(".", ",") if comma and isinstance(value, float) else value
                 for name, value in values.items()}
            )  # fmt: skip
        lines = [first.format(*separator * 3)] if first else []
        lines += [*stream.getvalue().splitlines(), *[separator * (len(rows[0]) - 1), ""] * empty]
        yield unicodedata.normalize(form, newline.join(lines)).encode(encoding)


def test_tables_as_people_write_them(tmp_path: Path, tried: Tried) -> None:
    path = tmp_path / "table.csv"
    pd.DataFrame(ROWS).to_csv(path, index=False)
    expected = read_annotations(path, TAXONOMY)
    times = 0
    for content in written(ROWS, decimal=False):
        path.write_bytes(content)
        pd.testing.assert_frame_equal(read_annotations(path, TAXONOMY), expected)
        times += 1
    for content in written(SCORES, decimal=True):
        path.write_bytes(content)
        found = read_predictions(path, TAXONOMY)
        assert list(found.index) == NAMES
        assert (found["1_engine"] == 0.25).all()
        assert (found["8_dog"] == 1).all()
        assert found.to_numpy().sum() == 3.75
        times += 1
    tried(
        "tables: legitimate and unusual files: annotations and predictions with other separators, a first line `sep=`, "
        "empty rows, a byte order mark, CRLF, decomposed Unicode, quotes around every cell, decimal commas",
        times,
        "the same rows are read",
    )
