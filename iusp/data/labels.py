"""Annotations in SONYC-UST's format, and the labels that follow from them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from iusp.data.taxonomy import Taxonomy, read_taxonomy
from iusp.errors import InputError
from iusp.io.tables import csv_format
from iusp.io.text import first_names, normalised, one_line

SPLITS = ("train", "validate", "test")
PRESENCE = "_presence"
# Columns that say where and when a clip was recorded; SONYC-UST has them since version 2.
PLACE_AND_TIME = ("borough", "block", "latitude", "longitude", "year", "week", "day", "hour")
# SONYC-UST has rows that claim every one of its 8 coarse and 29 fine tags; these are input errors. In other data sets,
# such a row can be true.
SONYC_UST = read_taxonomy(Path(__file__).with_name("taxonomy.yaml"))
ROWS = 10_000  # rows that are read as text at a time

Coarse = Literal["from-fine", "as-published"]


def read_annotations(path: Path, taxonomy: Taxonomy) -> pd.DataFrame:
    """Read and check an annotations CSV in SONYC-UST's format.

    The file needs the columns `split` and `audio_filename`, and the `_presence` columns of all coarse or of all fine
    tags. The separator may be a comma, a semicolon, a tab or a vertical bar; empty rows are ignored. Without the column
    `annotator_id`, every row is the agreed truth (annotator 0). Two kinds of rows are dropped: rows that repeat the
    annotation of a clip by the same annotator and, with SONYC-UST's tags, rows that claim every tag. Members of the
    SONYC team (annotator < 0) may have several rows for a clip.

    Args:
        path: the CSV file.
        taxonomy: the tags.

    Returns:
        One row per annotation in the file's order: split, sensor_id (text, empty if unknown), audio_filename,
        annotator_id (int64), the columns of `PLACE_AND_TIME` that the file has (unchanged text), and `<tag>_presence`
        of the tags that the file has (int8: 1 for present, 0 for absent, -1 for not looked at). `attrs["junk_rows"]`
        and `attrs["duplicate_rows"]` list clip and annotator of every dropped row, as text.

    Raises:
        InputError: the file cannot be read; a column is missing, unknown or repeated; a value is not allowed; a clip is
            in two splits; or an annotator who is not a member of the SONYC team has two different rows for a clip.
    """
    tables = [_parsed(path, table, taxonomy) for table in read_rows(path) if not table.empty]
    if not tables:
        raise InputError(f"{path}: has no annotations; add a row per annotation below the header")
    annotations = pd.concat(tables)
    duplicate = _duplicates(annotations)
    _check_rows(path, annotations, duplicate)
    presences = annotations.filter(like=PRESENCE)
    junk = (presences == 1).all(axis=1) & (taxonomy == SONYC_UST) & ~duplicate
    result = annotations[~(junk | duplicate)].reset_index(drop=True)
    for name, dropped in (("junk_rows", junk), ("duplicate_rows", duplicate)):
        rows = annotations.loc[dropped, ["audio_filename", "annotator_id"]].to_numpy()
        result.attrs[name] = [f"{clip} (annotator {annotator})" for clip, annotator in rows]
    return result


def derive_truth(annotations: pd.DataFrame, taxonomy: Taxonomy, split: str, coarse: Coarse) -> pd.DataFrame:
    """Return the agreed truth (annotator 0) of a split.

    Args:
        annotations: the table that `read_annotations` returns.
        taxonomy: the tags.
        split: split whose clips to return.
        coarse: source of the coarse tags. `from-fine`: a coarse tag is present if any of its fine tags is present,
            including `X`. `as-published`: the coarse columns of the CSV file.

    Returns:
        One row per clip, indexed and sorted by `audio_filename`, with a bool column per coarse tag, then per fine tag.

    Raises:
        InputError: the columns that `coarse` needs are missing.
    """
    rows = annotations[(annotations["split"] == split) & (annotations["annotator_id"] == 0)]
    truth = _presences(rows, taxonomy, coarse) == 1
    return truth.set_index(rows["audio_filename"]).sort_index()


def derive_labels(
    annotations: pd.DataFrame, taxonomy: Taxonomy, train_rule: Literal["any", "majority", "mean"], coarse: Coarse
) -> pd.DataFrame:
    """Combine the annotations of every clip into targets.

    The volunteers (annotator > 0) label a training clip, or annotator 0 if no volunteer did; annotator 0 labels the
    clips of the other splits. Clips without such a row are left out. The rows of SONYC's members (annotator < 0) are
    not used, because each member looked at one coarse group only.

    Args:
        annotations: the table that `read_annotations` returns.
        taxonomy: the tags.
        train_rule: how the choices of the annotators who looked for a tag become its target. `any`: 1 if at least one
            chose it; `majority`: 1 if more than half chose it; `mean`: the share who chose it. The target is 0 if
            nobody looked.
        coarse: source of the coarse tags of every annotation; see `derive_truth`.

    Returns:
        One row per clip, sorted by split and name: audio_filename, split, then a float32 target in [0, 1] per coarse
        tag and per fine tag.

    Raises:
        InputError: the columns that `coarse` needs are missing.
    """
    train = annotations["split"] == "train"
    volunteer = train & (annotations["annotator_id"] > 0)
    by_volunteers = annotations["audio_filename"].isin(annotations.loc[volunteer, "audio_filename"])
    used = annotations[volunteer | ((annotations["annotator_id"] == 0) & ~by_volunteers)]
    sorting = ["split", "audio_filename"]
    clips = used[sorting]
    number = clips.groupby(sorting).ngroup()

    def target(presence: "pd.Series[Any]") -> "pd.Series[Any]":
        # Annotator 0 labels a clip alone, and every rule returns a single choice unchanged.
        shares = presence.astype("float32").where(presence >= 0).groupby(number).mean().fillna(0)
        rules: dict[str, Any] = {"any": shares > 0, "majority": shares > 0.5, "mean": shares}
        return pd.Series(rules[train_rule], dtype="float32")

    clips = clips.drop_duplicates().sort_values(sorting, ignore_index=True)
    # One tag at a time: all tags at once need a kilobyte per clip.
    presences = _presences(used, taxonomy, coarse)
    targets = pd.DataFrame({tag: target(presences[tag]) for tag in presences.columns})
    return clips[["audio_filename", "split"]].join(targets)


def training_targets(
    labels: pd.DataFrame, taxonomy: Taxonomy, tags: Literal["coarse", "fine", "both"]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], list[str]]:
    """Return what a network is trained to predict.

    Args:
        labels: table of N rows that `derive_labels` returns.
        taxonomy: the tags.
        tags: which tags to predict; the `X` tags (of uncertain kind) are never predicted.

    Returns:
        targets float32 (N, K) in [0, 1]; mask bool (N, K), False where the target of a fine tag is unknown because the
        `X` tag of its category is annotated; the names of the K tags, coarse before fine.

    Raises:
        InputError: the labels lack a tag.
    """
    fine, coarse = tags != "coarse", tags != "fine"
    names = [*(taxonomy.coarse_tags if coarse else ()), *(taxonomy.fine_tags if fine else ())]
    if not coarse and (flat := [tag for category, tag in taxonomy.coarse.items() if not taxonomy.fine[category]]):
        raise InputError(
            f"teacher.tags: fine, but the taxonomy has no fine tags for {first_names(flat)}; set it to coarse or both"
        )
    uncertain = taxonomy.uncertain if fine else {}
    if missing := [name for name in (*names, *uncertain.values()) if name not in labels]:
        raise InputError(
            f"the labels lack {first_names(missing)}; set teacher.tags to a level whose columns the annotations CSV has"
        )
    mask = np.ones((len(labels), len(names)), dtype=np.bool_)
    for category, tag in uncertain.items():
        columns = [names.index(name) for name in taxonomy.fine[category]]
        mask[:, columns] &= (labels[[tag]] == 0).to_numpy()
    return labels[names].to_numpy(dtype=np.float32), mask, names


def read_rows(path: Path) -> Iterator[pd.DataFrame]:
    """Yield the rows of a CSV file that are not empty, as tables of text, a part at a time.

    Text takes kilobytes of memory per row. The index of the first row below the header is the number of lines above the
    header.
    """
    try:
        form = csv_format(path, "audio_filename")
        with pd.read_csv(
            path,
            sep=form.separator,
            skiprows=form.first_line,
            dtype=str,
            keep_default_na=False,
            skipinitialspace=True,
            skip_blank_lines=False,
            chunksize=ROWS,
        ) as tables:
            for table in tables:
                if not isinstance(table.index, pd.RangeIndex):  # pandas uses surplus first cells as an index
                    raise InputError(f"{path}: row 2 has more cells than the header; every row needs a cell per column")
                table = table.fillna("")
                table.columns = table.columns.astype(str).str.strip().map(normalised)
                table.index += form.first_line
                yield table[(table != "").any(axis=1)]
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{path}: not a readable CSV ({reason}); it must be UTF-8 with commas") from None


def _parsed(path: Path, table: pd.DataFrame, taxonomy: Taxonomy) -> pd.DataFrame:
    """Convert rows of text to annotations, and check the columns and each cell."""
    columns = [f"{tag}{PRESENCE}" for tag in _check_columns(path, table, taxonomy)]
    annotators = table.get("annotator_id", pd.Series("0", table.index, name="annotator_id"))
    return pd.DataFrame(
        {
            "split": table["split"],
            "sensor_id": table.get("sensor_id", ""),
            "audio_filename": table["audio_filename"].map(normalised),
            "annotator_id": _whole_numbers(path, annotators, -(2**31), 2**31),
            **{name: table[name] for name in PLACE_AND_TIME if name in table},
            **{name: _whole_numbers(path, table[name], -1, 1).astype("int8") for name in columns},
        }
    )


def _check_columns(path: Path, table: pd.DataFrame, taxonomy: Taxonomy) -> list[str]:
    """Return the tags for which the table has a column, coarse before fine."""
    coarse, fine = taxonomy.coarse_tags, taxonomy.all_fine_tags
    names = ["split", "sensor_id", "audio_filename", "annotator_id", *(f"{tag}{PRESENCE}" for tag in coarse + fine)]
    if repeated := [name for name in names if f"{name}.1" in table]:  # pandas renames a repeated column like this
        raise InputError(f"{path}: column {first_names(repeated)} occurs twice; keep one of them")
    if missing := [name for name in ("split", "audio_filename") if name not in table]:
        raise InputError(f"{path}: lacks the column {first_names(missing)}; use the header of SONYC-UST")
    if unknown := [name for name in table.columns.astype(str) if name.endswith(PRESENCE) and name not in names]:
        raise InputError(
            f"{path}: column {first_names(unknown)} is not a tag of the taxonomy; use the taxonomy of this file"
        )
    # Categories without fine tags need their coarse columns in any case.
    without_kinds = tuple(tag for category, tag in taxonomy.coarse.items() if not taxonomy.category_tags(category))
    lacking = [
        [f"{tag}{PRESENCE}" for tag in tags if f"{tag}{PRESENCE}" not in table]
        for tags in (coarse, fine + without_kinds)
    ]
    if all(lacking):
        raise InputError(
            f"{path}: lacks coarse columns ({first_names(lacking[0])}) and fine columns ({first_names(lacking[1])}); "
            "add all coarse or all fine columns of the taxonomy"
        )
    return [tag for tag in coarse + fine if f"{tag}{PRESENCE}" in table]


def _whole_numbers(path: Path, column: "pd.Series[str]", low: int, high: int) -> "pd.Series[int]":
    numbers = pd.to_numeric(column, errors="coerce")
    allowed = numbers.between(low, high) & (numbers % 1 == 0)
    _refuse(path, column, ~allowed, f"must be a whole number from {low} to {high}")
    return numbers.astype("int64")


def _duplicates(annotations: pd.DataFrame) -> "pd.Series[bool]":
    """Return which rows equal an earlier row of the same clip and annotator in all columns that are used."""
    # Only the few candidates are compared in full, because whole rows take memory.
    twice = annotations.duplicated(["audio_filename", "annotator_id"], keep=False) & (annotations["annotator_id"] >= 0)
    return annotations[twice].duplicated().reindex(annotations.index, fill_value=False)


def _check_rows(path: Path, annotations: pd.DataFrame, duplicate: "pd.Series[bool]") -> None:
    split, clip = annotations["split"], annotations["audio_filename"]
    _refuse(path, split, ~split.isin(SPLITS), f"must be one of {', '.join(SPLITS)}")
    _refuse(path, clip, clip == "", "must name the clip's audio file")
    elsewhere = split != split.groupby(clip).transform("first")
    _refuse(path, clip, elsewhere, "is in another split above; a clip may be in one split only")
    # A member of SONYC has one row per coarse group that they looked at.
    repeated = annotations.duplicated(["audio_filename", "annotator_id"]) & (annotations["annotator_id"] >= 0)
    contradicting = repeated & ~duplicate
    _refuse(path, clip, contradicting, "has another row of the same annotator above; keep one of them")


def _refuse(path: Path, column: "pd.Series[str]", wrong: "pd.Series[bool]", demand: str) -> None:
    """Raise an InputError that names the first wrong cell by its row in the file."""
    if wrong.any():
        first = int(wrong.to_numpy().argmax())
        raise InputError(
            f"{path}: row {int(column.index[first]) + 2}, column {column.name}: {column.iloc[first]!r} {demand} "
            f"({wrong.sum()} such rows among {len(column):,})"
        )


def _presences(annotations: pd.DataFrame, taxonomy: Taxonomy, coarse: Coarse) -> pd.DataFrame:
    """Return 1, 0 or -1 (int8) per annotation and known tag, coarse before fine."""
    found = annotations.filter(like=PRESENCE)
    found.columns = found.columns.str.removesuffix(PRESENCE)
    from_fine = {tag: taxonomy.category_tags(category) for category, tag in taxonomy.coarse.items()}
    if coarse == "as-published":
        from_fine = {}
    # A category without fine tags has its coarse column only.
    needed = [part for tag in taxonomy.coarse_tags for part in from_fine.get(tag) or [tag]]
    if missing := [tag for tag in needed if tag not in found]:
        kind, other = ("fine", "as-published") if coarse == "from-fine" else ("coarse", "from-fine")
        raise InputError(
            f"the annotations lack the {kind} columns {first_names(missing)}, which coarse: {coarse} needs; "
            f"choose coarse: {other} (dataset.coarse in params.yaml, --coarse of iusp score)"
        )
    for tag, kinds in from_fine.items():
        if kinds:
            found[tag] = found[list(kinds)].max(axis=1)
    return found[[tag for tag in taxonomy.coarse_tags + taxonomy.all_fine_tags if tag in found]]
