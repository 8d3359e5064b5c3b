"""Step 1: recordings and their annotations, checked, indexed and labelled."""

import hashlib
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Protocol

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from joblib import cpu_count

from iusp.artifacts.dataset import Source as Origin
from iusp.config.dataset import Dataset
from iusp.data import audio
from iusp.data.labels import PLACE_AND_TIME, SPLITS, derive_labels, read_annotations
from iusp.data.taxonomy import read_taxonomy
from iusp.errors import InputError
from iusp.io import files
from iusp.io.processes import in_order, worker_pool
from iusp.io.text import first_names
from iusp.reporter import Reporter
from iusp.sources import embedded

ANNOTATIONS = "annotations.csv"
TAXONOMIES = ("dcase-ust-taxonomy.yaml", "taxonomy.yaml")
AUDIO = "audio"
TABLES = (".csv", ".yaml")
INDEX = ["audio_filename", "split", "sensor_id", "sha256", "seconds", "sample_rate", "channels"]
FOUND = ["reason", "sha256", "seconds", "sample_rate", "channels"]
CLIPS_PER_CALL = 16  # work of one call to another process
ROWS = 10_000  # that are taken from one form into another at a time
COPY_BYTES = 2**20
NAMES_IN_SUMMARY = 20  # the CSV files have all

NO_NAME = "not a plain file name"
NO_FILE = f"no such file below {AUDIO}/ or the split's folder"
NO_TRUTH = "not labelled by annotator 0, nor in train by a volunteer"
NO_ANNOTATION = "not in the annotations"


@dataclass(frozen=True)
class Source:
    """A data set in SONYC-UST's format: its folder, annotations CSV and taxonomy YAML."""

    folder: Path
    annotations: Path
    taxonomy: Path


class Remote(Protocol):
    """A folder in that format, elsewhere, as it was when it was looked at."""

    @property
    def identity(self) -> list[Any]:
        """What changes with the content of any file, as JSON."""

    def fetch(self, folder: Path, reporter: Reporter) -> Path:
        """Copy it into or below `folder`, but for what is there of an earlier call; return where it lies."""


@dataclass(frozen=True)
class Clip:
    """A clip that the annotations name.

    Attributes:
        name: its audio_filename, unchecked.
        sources: the files of that name; one, if all is well.
        labelled: whether it has ground truth.
    """

    name: str
    sources: tuple[Path, ...]
    labelled: bool


def run(
    config: Dataset, output: Path, recordings: Path, reporter: Reporter, workers: int = cpu_count()
) -> dict[str, Any]:
    """Take a data set in SONYC-UST's format over: its tables into `output`, the recordings apart from them.

    The recordings are large and only the features step reads them. They are written as `<audio_filename>`, the good
    clips with ground truth, as they came. `output` gets

    - `index.parquet`: their audio_filename, split, sensor_id, sha256, seconds, sample_rate (Hz) and channels, and
      what the annotations say of place and time (`labels.PLACE_AND_TIME`), sorted by split and name;
    - `labels.parquet`: what `labels.derive_labels` returns, of the same clips in the same order;
    - `annotations.csv` and `taxonomy.yaml`, as they came;
    - `quarantine.csv`: audio_filename, split and reason of the bad clips;
    - `unmatched.csv`, likewise: clips without a file or ground truth, and files without annotation;
    - `dataset.json`: the summary.

    A killed run resumes. The bytes depend neither on that, nor on the number of workers, nor on where the same data
    come from, but for `source` in the summary. Remote data are fetched first, into the work folder or to where
    they are kept.

    Args:
        config: the source and its rules.
        output: folder to write.
        recordings: folder to write the audio files into.
        reporter: told of every clip, and of all that is worth a look.
        workers: parallel processes.

    Returns:
        The summary. `positives` counts the clips with a target above 0; `digest` is of index and labels.

    Raises:
        InputError: the source cannot be used, too many clips are bad (`<output>.quarantine.csv` then lists them), or
            sensors cross splits where the config refuses that.
    """
    folder = _folder(config)
    if folder and config.source == "sonyc-ust":
        from iusp.sources.sonyc_ust import keep

        keep(config.sonyc_ust, reporter, recordings)
    remote = None if folder else _remote(config)
    key = _key(config, remote, output, recordings)
    with files.work_folder(output, key) as work, files.work_folder(recordings, key) as audio_work:
        copy = work / ("fetched" if remote else "generated")
        if folder:
            source = _open(folder)
        elif remote:
            source = _open(remote.fetch(copy, reporter))
        else:
            embedded.write(copy, config.seed, config.clips.by_split(), workers, reporter)
            source = _open(copy)
        table, labels, dropped = _annotated(config, source)
        shared = _shared_sensors(table)
        if shared and config.shared_sensors == "refuse":
            raise InputError(
                f"{source.annotations}: sensors with clips in two splits: {first_names(shared)}; move their clips to "
                "one split, or set dataset.shared_sensors: report"
            )
        places, strays = _match(table, source.folder)
        clips = _clips(table, places, source.folder, labels["audio_filename"])
        table = table.join(_ingest(config, clips, len(table), source.folder, audio_work, reporter, workers))
        untested = _is_without_test(table, strays)
        _check_share(table[table["split"] != "test"] if untested else table, config.max_bad_share, output)
        index = table.loc[table["reason"] == "", [*INDEX, *(name for name in PLACE_AND_TIME if name in table)]]
        if index.empty:
            raise InputError(f"{source.annotations}: no clip has both audio and ground truth; record or label some")
        labels = index[["audio_filename"]].merge(labels, on="audio_filename")
        quarantine = table[~table["reason"].isin(["", NO_FILE, NO_TRUTH])]
        unmatched = table[table["reason"].isin([NO_FILE, NO_TRUTH])]
        unmatched = pd.concat([unmatched, pd.DataFrame({"audio_filename": strays, "reason": NO_ANNOTATION})])
        summary = _summary(index, labels, quarantine, unmatched)
        summary |= {reason: _listed(rows) for reason, rows in dropped.items()} | {"shared_sensors": _listed(shared)}
        origin = Origin(name=config.source_name, generated=config.source == "embedded", license=config.license_of_data)
        summary["source"] = origin.model_dump(mode="json", exclude_none=True)
        _copy(source.annotations, work / ANNOTATIONS)
        _copy(source.taxonomy, work / "taxonomy.yaml")
        _write_parquet(work / "index.parquet", index)
        _write_parquet(work / "labels.parquet", labels)
        _write_reasons(work / "quarantine.csv", quarantine)
        _write_reasons(work / "unmatched.csv", unmatched)
        files.write_json(work / "dataset.json", summary)
        if not folder:
            shutil.rmtree(copy)
    _report(summary, len(table), reporter)
    if untested:
        reporter.progress(
            "dataset", len(table), len(table), "no clip of test is there: validate is what will be reported on"
        )
    return summary


def _report(summary: dict[str, Any], clips: int, reporter: Reporter) -> None:
    """Tell what is worth a look, by name."""
    told = ("quarantined", "missing", "unannotated", "without_truth", "junk_rows", "duplicate_rows", "shared_sensors")
    for what in told:
        count, names = summary[what]["count"], summary[what]["names"]
        if count:
            reporter.progress("dataset", clips, clips, f"{what.replace('_', ' ')}: {first_names(names, count)}")


def _folder(config: Dataset) -> Path | None:
    """Return the folder of this machine, if any, that the recordings are taken from, and stay in."""
    if config.source == "folder":
        return Path(config.path)
    return config.sonyc_ust.folder if config.source == "sonyc-ust" else None


def _remote(config: Dataset) -> Remote | None:
    # boto3 and requests take their time to be imported.
    if config.source == "s3" and config.s3:
        from iusp.io.s3 import connect, list_folder

        return list_folder(connect(config.s3), config.s3, _is_part, "annotations CSV, taxonomy YAML or audio")
    if config.source == "dvc" and config.dvc:
        from iusp.sources.dvc_repository import open_version

        return open_version(config.dvc.url, config.dvc.revision, config.dvc.path, _is_part)
    if config.source == "sonyc-ust":
        from iusp.sources.sonyc_ust import open_record

        return open_record(config.sonyc_ust)
    return None


def _is_part(name: str) -> bool:
    """Tell by its path in the folder whether a file can be part of a data set."""
    first, *others = name.split("/")
    return first in (AUDIO, *SPLITS) if others else first.endswith(TABLES)


def source_version(config: Dataset) -> str:
    """Return a digest of what the source holds now.

    By size and time in a folder, also one that SONYC-UST is kept in; by ETag in S3, by commit in DVC, by MD5 of
    SONYC-UST that has yet to be fetched.

    An orchestrator's cache knows the settings, which stay the same when recordings are added.

    Args:
        config: the source.

    Raises:
        InputError: the source cannot be used.
    """
    folder = _folder(config)
    return files.digest_each(_content(config, None if folder and folder.exists() else _remote(config)))


def _content(config: Dataset, remote: Remote | None) -> Iterator[Any]:
    """Name the files of the source and what changes with their content."""
    if remote:
        yield from remote.identity
    elif folder := _folder(config):
        source = _open(folder)
        found = (folder / place / name for place, name in _audio_files(folder))
        for path in chain((source.annotations, source.taxonomy), found):
            status = path.lstat()
            yield str(path), status.st_size, status.st_mtime_ns


def _key(config: Dataset, remote: Remote | None, *outputs: Path) -> str:
    """Digest everything that shapes the output: the code, the config and what the source holds."""
    if folder := _folder(config):
        for output in outputs:
            _check_apart(folder, output)
    return files.digest_each(chain([files.code_digest(), config.model_dump(mode="json")], _content(config, remote)))


def _check_apart(folder: Path, output: Path) -> None:
    """Refuse an output whose replacement would delete recordings, or that would be read as some."""
    for root in (folder / name for name in (AUDIO, *SPLITS)):
        if root.resolve().is_relative_to(output.resolve()) or output.resolve().is_relative_to(root.resolve()):
            raise InputError(f"{output}: holds or lies in the recordings {root}, and it is replaced; write elsewhere")


def _open(folder: Path) -> Source:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; set dataset.path to one in SONYC-UST's format")
    return Source(folder, _find_annotations(folder), _find_taxonomy(folder))


def _find_annotations(folder: Path) -> Path:
    if (folder / ANNOTATIONS).exists():
        return folder / ANNOTATIONS
    return _only(
        [path for path in sorted(folder.glob("*.csv")) if _names_clips(path)],
        f"{folder}: needs {ANNOTATIONS}, or just one *.csv with a column audio_filename",
    )


def _names_clips(path: Path) -> bool:
    with path.open("rb") as stream:
        return b"audio_filename" in stream.readline(COPY_BYTES)


def _find_taxonomy(folder: Path) -> Path:
    candidates = [folder / name for name in TAXONOMIES if (folder / name).exists()]
    return _only(candidates, f"{folder}: needs just one of {' and '.join(TAXONOMIES)}")


def _only(candidates: list[Path], demand: str) -> Path:
    if len(candidates) != 1:
        raise InputError(f"{demand}; found {first_names([path.name for path in candidates]) or 'none'}")
    return candidates[0]


def _audio_files(folder: Path) -> Iterator[tuple[PurePath, str]]:
    """Yield where it lies (relative to `folder`) and the name of all that is no folder in `audio/` and the splits'."""
    for top in (AUDIO, *SPLITS):
        for path, folders, names in os.walk(folder / top):
            folders.sort()
            place = Path(path).relative_to(folder)
            for name in sorted(names):
                yield place, name


def _annotated(config: Dataset, source: Source) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, list[str]]]:
    """Return the annotated clips, sorted by split and name, the labels, and the rows that were dropped, by reason."""
    taxonomy = read_taxonomy(source.taxonomy)
    annotations = read_annotations(source.annotations, taxonomy)
    labels = derive_labels(annotations, taxonomy, config.train_rule, config.coarse)
    circumstances = [name for name in PLACE_AND_TIME if name in annotations]
    table = annotations[["audio_filename", "split", "sensor_id", *circumstances]].drop_duplicates("audio_filename")
    table = table.sort_values(["split", "audio_filename"], ignore_index=True)
    return table, labels, {name: annotations.attrs[name] for name in ("junk_rows", "duplicate_rows")}


def _shared_sensors(table: pd.DataFrame) -> list[str]:
    splits = table[table["sensor_id"] != ""].groupby("sensor_id")["split"].nunique()
    return [str(sensor) for sensor in splits.index[splits > 1]]


def _match(table: pd.DataFrame, folder: Path) -> tuple[list[tuple[PurePath, ...]], list[str]]:
    """Find where each annotated clip's file lies, and the files that no clip has; all relative to `folder`."""
    found: dict[str, tuple[PurePath, ...]] = {}
    for place, name in _audio_files(folder):
        found[name] = (*found.get(name, ()), place)
    places = []
    for name, split in zip(table["audio_filename"], table["split"], strict=True):
        everywhere = found.pop(name, ())
        places.append(tuple(place for place in everywhere if place.parts[0] in (AUDIO, split)))
        if others := tuple(place for place in everywhere if place not in places[-1]):
            found[name] = others
    # A name is bytes, and these are listed in UTF-8.
    strays = [
        os.fsencode(place / name).decode(errors="backslashreplace") for name, left in found.items() for place in left
    ]
    return places, sorted(strays)


def _clips(
    table: pd.DataFrame, places: list[tuple[PurePath, ...]], folder: Path, labelled: "pd.Series[str]"
) -> Iterator[Clip]:
    with_truth = table["audio_filename"].isin(labelled)
    for name, where, truth in zip(table["audio_filename"], places, with_truth, strict=True):
        yield Clip(name, tuple(folder / place / name for place in where), truth)


def _ingest(
    config: Dataset, clips: Iterator[Clip], total: int, folder: Path, target: Path, reporter: Reporter, workers: int
) -> pd.DataFrame:
    """Take all clips over in parallel; return, in their order, `reason` (empty for the good) and what was found."""
    jobs = (partial(_take_all, config, folder, target, some) for some in _batched(clips, CLIPS_PER_CALL))
    with worker_pool(workers) as pool:
        rows = _told(chain.from_iterable(in_order(pool, jobs, workers)), total, reporter)
        tables = [pd.DataFrame(some, columns=FOUND) for some in _batched(rows, ROWS)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=FOUND)


def _batched(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    return iter(lambda: list(islice(items, size)), [])


def _told(rows: Iterator[Any], total: int, reporter: Reporter) -> Iterator[Any]:
    for done, row in enumerate(rows, 1):
        reporter.progress("dataset", done, total)
        yield row


def _take_all(config: Dataset, folder: Path, target: Path, clips: list[Clip]) -> list[tuple[Any, ...]]:
    return [_take(config, folder, target, clip) for clip in clips]


def _take(config: Dataset, folder: Path, target: Path, clip: Clip) -> tuple[Any, ...]:
    """Check one clip and bring it into the folder `target`; return its row for `_ingest`."""
    try:
        source = _the_source(clip, folder)
        audio.check_inside(source, folder)
        probe = audio.probe(source, config.min_seconds, config.max_seconds)
    except audio.BadAudio as error:
        return str(error), "", math.nan, 0, 0
    # Whatever has its final name is complete: it was linked, or renamed after it was copied.
    copy = target / clip.name
    if not copy.exists() and not _folder(config):
        with suppress(OSError):  # a file system without links: copied below
            os.link(source, copy)
    checksum = files.sha256(copy) if copy.exists() else _copy(source, copy)
    return "", checksum, probe.seconds, probe.sample_rate, probe.channels


def _the_source(clip: Clip, folder: Path) -> Path:
    if not files.is_file_name(clip.name):
        raise audio.BadAudio(NO_NAME)
    if not clip.sources:
        raise audio.BadAudio(NO_FILE)
    if not clip.labelled:
        raise audio.BadAudio(NO_TRUTH)
    if len(clip.sources) > 1:
        places = first_names(sorted(str(path.relative_to(folder)) for path in clip.sources))
        raise audio.BadAudio(f"several files of this name: {places}")
    return clip.sources[0]


def _copy(source: Path, target: Path) -> str:
    """Copy a file atomically and return its SHA-256, in one pass and bounded memory."""
    checksum = hashlib.sha256()
    with files.atomic(target) as temporary, source.open("rb") as reader, temporary.open("wb") as writer:
        while block := reader.read(COPY_BYTES):
            checksum.update(block)
            writer.write(block)
    return checksum.hexdigest()


def _is_without_test(table: pd.DataFrame, strays: Sequence[str]) -> bool:
    """Tell whether there are annotations of test, but no audio at all: it may be published apart, or not yet."""
    test = table[table["split"] == "test"]
    elsewhere = test["audio_filename"].isin([PurePosixPath(stray).name for stray in strays])
    return not test.empty and bool(((test["reason"] == NO_FILE) & ~elsewhere).all())


def _check_share(table: pd.DataFrame, max_bad_share: float, output: Path) -> None:
    """Refuse too large a share of quarantined or missing clips, and list them beside the output."""
    listing = output.with_name(f"{output.name}.quarantine.csv")
    listing.unlink(missing_ok=True)
    bad = table[~table["reason"].isin(["", NO_TRUTH])]
    share = len(bad) / max(len(table), 1)  # there may be junk rows only
    if share > max_bad_share:
        _write_reasons(listing, bad)
        examples = [f"{name}: {reason}" for name, reason in zip(bad["audio_filename"], bad["reason"], strict=True)]
        raise InputError(
            f"{len(bad)} of {len(table)} clips ({share:.1%}, dataset.max_bad_share is {max_bad_share:g}) are "
            f"bad ({first_names(examples)}); all are listed in {listing}: repair or remove them"
        )


def _summary(
    index: pd.DataFrame, labels: pd.DataFrame, quarantine: pd.DataFrame, unmatched: pd.DataFrame
) -> dict[str, Any]:
    names = {
        reason: unmatched.loc[unmatched["reason"] == reason, "audio_filename"].tolist()
        for reason in (NO_FILE, NO_ANNOTATION, NO_TRUTH)
    }
    clips = {split: table.drop(columns=["audio_filename", "split"]) for split, table in labels.groupby("split")}
    return {
        "clips": {split: int((index["split"] == split).sum()) for split in SPLITS},
        "positives": {split: (targets > 0).sum().to_dict() for split, targets in clips.items()},
        "quarantined": _listed(quarantine["audio_filename"].tolist()),
        "missing": _listed(names[NO_FILE]),
        "unannotated": _listed(names[NO_ANNOTATION]),
        "without_truth": _listed(names[NO_TRUTH]),
        "digest": files.digest_each(
            table[start : start + ROWS].to_csv(index=False)
            for table in (index, labels)
            for start in range(0, len(table), ROWS)
        ),
    }


def _listed(names: list[str]) -> dict[str, Any]:
    return {"count": len(names), "names": names[:NAMES_IN_SUMMARY]}


def _write_parquet(path: Path, frame: pd.DataFrame) -> None:
    # pandas' metadata would tie the bytes to its version.
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata()
    with files.atomic(path) as temporary:
        pq.write_table(table, temporary)


def _write_reasons(path: Path, table: pd.DataFrame) -> None:
    with files.atomic(path) as temporary:
        table.to_csv(temporary, columns=["audio_filename", "split", "reason"], index=False, lineterminator="\n")
