"""Step 1: collect, check, index and label the recordings."""

import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PurePath, PurePosixPath

import pandas as pd
from joblib import cpu_count

from iusp.artifacts.dataset import DatasetFolder, DatasetSummary, DatasetTables, write_reasons
from iusp.artifacts.dataset import Source as Origin
from iusp.config.dataset import Dataset
from iusp.data.clips import NO_FILE, NO_TRUTH, Clip, Intake, match
from iusp.data.labels import PLACE_AND_TIME, SPLITS, derive_labels, read_annotations
from iusp.data.taxonomy import Taxonomy, read_taxonomy
from iusp.errors import InputError
from iusp.io import files
from iusp.io.text import first_names
from iusp.reporter import Reporter
from iusp.sources.choice import open_source
from iusp.sources.folder import LocalFolder
from iusp.sources.source import Source


def run(
    config: Dataset, output: Path, recordings: Path, reporter: Reporter, workers: int = cpu_count()
) -> DatasetSummary:
    """Bring a data set in SONYC-UST's format into the form that the next steps read.

    The tables go into `output` (see `DatasetFolder`). The good clips with ground truth go into `recordings`, unchanged
    and under their own names: they are large, and only the features step reads them.

    A killed run resumes. The bytes depend neither on a kill, nor on the number of workers, nor on where the same data
    comes from. A remote data set is downloaded first: into the folder that keeps downloads, if the
    settings name one, else into the working folder.

    Args:
        config: section `dataset` of params.yaml.
        output: folder to write the tables into.
        recordings: folder to write the audio files into.
        reporter: receives the progress and notes for the user.
        workers: number of parallel processes.

    Raises:
        InputError: the source cannot be used, too many clips are bad (`<output>.quarantine.csv` then lists them), or
            sensors recorded clips of two splits and the settings refuse that.
    """
    source = open_source(config, recordings, reporter, workers)
    if isinstance(source, LocalFolder):
        source.check_apart(output, recordings)
    key = work_key(config, source)
    with files.work_folder(output, key) as work, files.work_folder(recordings, key) as audio_work:
        data = LocalFolder.open(source.fetch(work / "source", reporter), own=config.source == "folder")
        clips, labels, dropped = _read_annotations(config, data)
        shared_sensors = _shared_sensors(config, clips, data)
        paths, strays = match(clips, data.audio_files())
        is_temporary = data.path.is_relative_to(work)
        intake = Intake(data.path, data.own, audio_work, is_temporary, config.min_seconds, config.max_seconds)
        named = _named(clips, paths, data.path, labels)
        clips = clips.join(intake.run(named, len(clips), reporter, workers))
        test_is_missing = _test_is_missing(clips, strays)
        checked = clips[clips["split"] != "test"] if test_is_missing else clips
        _check_bad_share(checked, config.max_bad_share, output.with_name(f"{output.name}.quarantine.csv"))
        tables = DatasetTables.divide(clips, labels, strays)
        if tables.index.empty:
            raise InputError(f"{data.annotations}: no clip has both audio and ground truth; record or label some")
        shared_clips = _shared_clips(config, tables.index, data)
        absent = _absent_tags(tables.labels, read_taxonomy(data.taxonomy), data)
        origin = Origin(name=config.source_name, generated=config.source == "embedded", license=config.license_of_data)
        summary = DatasetSummary.of(origin, tables, dropped, shared_sensors, shared_clips, absent)
        DatasetFolder(work).write(tables, summary, data.annotations, data.taxonomy)
        if is_temporary:
            shutil.rmtree(work / "source")
    notes = summary.notes
    if test_is_missing:
        notes.append("the test split has no audio: results are reported on validate")
    for note in notes:
        reporter.progress("dataset", len(clips), len(clips), note)
    return summary


def work_key(config: Dataset, source: Source) -> str:
    """Return the digest of everything that shapes the output: the code, the settings and the content of the source."""
    return files.digest_each(chain([files.code_digest(), config.model_dump(mode="json")], source.identity))


def _read_annotations(config: Dataset, data: LocalFolder) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, list[str]]]:
    """Return the annotated clips, sorted by split and name, their labels, and the dropped annotations by reason."""
    taxonomy = read_taxonomy(data.taxonomy)
    annotations = read_annotations(data.annotations, taxonomy)
    labels = derive_labels(annotations, taxonomy, config.train_rule, config.coarse)
    place_and_time = [name for name in PLACE_AND_TIME if name in annotations]
    clips = annotations[["audio_filename", "split", "sensor_id", *place_and_time]].drop_duplicates("audio_filename")
    clips = clips.sort_values(["split", "audio_filename"], ignore_index=True)
    return clips, labels, {name: annotations.attrs[name] for name in ("junk_rows", "duplicate_rows")}


def _shared_sensors(config: Dataset, clips: pd.DataFrame, data: LocalFolder) -> list[str]:
    """Return the sensors that recorded clips of two splits; refuse them if the settings say so."""
    splits = clips[clips["sensor_id"] != ""].groupby("sensor_id")["split"].nunique()
    shared = [str(sensor) for sensor in splits.index[splits > 1]]
    if shared and config.shared_sensors == "refuse":
        raise InputError(
            f"{data.annotations}: sensors with clips in two splits: {first_names(shared)}; move their clips to one "
            "split, or set dataset.shared_sensors: report"
        )
    return shared


def _shared_clips(config: Dataset, index: pd.DataFrame, data: LocalFolder) -> list[str]:
    """Return the audio files whose bytes are in two splits; refuse them if the settings say so."""
    splits = index.groupby("sha256")["split"].nunique()
    several = index[index["sha256"].isin(splits.index[splits > 1])]
    names = several["split"] + "/" + several["audio_filename"]
    shared = sorted(" = ".join(group) for _, group in names.groupby(several["sha256"]))
    if shared and config.shared_clips == "refuse":
        raise InputError(
            f"{data.path}: the same audio is in two splits: {first_names(shared)}; keep each in one split, or set "
            "dataset.shared_clips: report"
        )
    return shared


def _absent_tags(labels: pd.DataFrame, taxonomy: Taxonomy, data: LocalFolder) -> list[str]:
    """Return the coarse tags that no clip of a split has; refuse a validate split without any tag."""
    present = labels.groupby("split")[list(taxonomy.coarse_tags)].max() > 0
    if "validate" in present.index and not present.loc["validate"].any():
        raise InputError(
            f"{data.annotations}: no clip of validate has a tag, so that no epoch is better than another; move clips "
            "with tags to validate"
        )
    return [
        f"{split}: {tag}" for split in SPLITS if split in present.index for tag in present if not present[tag][split]
    ]


def _named(
    clips: pd.DataFrame, paths: list[tuple[PurePath, ...]], folder: Path, labels: pd.DataFrame
) -> Iterator[Clip]:
    """Yield each clip with the paths of its files."""
    labelled = clips["audio_filename"].isin(labels["audio_filename"])
    for name, files_of_clip, has_truth in zip(clips["audio_filename"], paths, labelled, strict=True):
        yield Clip(name, tuple(folder / path for path in files_of_clip), has_truth)


def _test_is_missing(clips: pd.DataFrame, strays: list[str]) -> bool:
    """Return whether test is annotated but has no audio at all: it may be published separately, or later."""
    test = clips[clips["split"] == "test"]
    elsewhere = test["audio_filename"].isin([PurePosixPath(stray).name for stray in strays])
    return not test.empty and bool(((test["reason"] == NO_FILE) & ~elsewhere).all())


def _check_bad_share(clips: pd.DataFrame, max_bad_share: float, listing: Path) -> None:
    """Refuse too large a share of quarantined or missing clips, and list them in a file."""
    listing.unlink(missing_ok=True)
    bad = clips[~clips["reason"].isin(["", NO_TRUTH])]
    share = len(bad) / max(len(clips), 1)  # there is no clip if every row of the annotations was dropped
    if share > max_bad_share:
        write_reasons(listing, bad)
        examples = [f"{name}: {reason}" for name, reason in zip(bad["audio_filename"], bad["reason"], strict=True)]
        raise InputError(
            f"{len(bad)} of {len(clips)} clips ({share:.1%}, dataset.max_bad_share is {max_bad_share:g}) are "
            f"bad ({first_names(examples)}); all are listed in {listing}: repair or remove them"
        )
