"""Small data sets in folders, and the dataset step on them."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile

import iusp
from iusp.artifacts.dataset import DatasetSummary
from iusp.config.dataset import Dataset
from iusp.config.params import load
from iusp.data.taxonomy import read_taxonomy
from iusp.reporter import Reporter
from iusp.steps import dataset

ROOT = Path(iusp.__file__).parent
DEFAULTS = load(ROOT.parent / "params.yaml").dataset
TAXONOMY = read_taxonomy(ROOT / "data/taxonomy.yaml")
RATE = 8000
COLUMNS = [f"{tag}_presence" for tag in TAXONOMY.coarse_tags + TAXONOMY.all_fine_tags]


def config(path: Path | str, **changes: Any) -> Dataset:
    """Return the settings of a data set in a folder."""
    return DEFAULTS.model_copy(update={"source": "folder", "path": str(path)} | changes)


def row(
    name: str,
    split: str = "train",
    annotator: int = 1,
    sensor: str | None = None,
    heard: Sequence[str] = (),
    everything: bool = False,
) -> dict[str, Any]:
    """Return one row of annotations, in which the tags that begin with one of `heard` are present."""
    presences = {column: int(everything or column.startswith(tuple(heard))) for column in COLUMNS}
    sensor = split if sensor is None else sensor
    return {"split": split, "sensor_id": sensor, "audio_filename": name, "annotator_id": annotator} | presences


def make(folder: Path, rows: Sequence[Mapping[str, Any]], audio: Sequence[str] | None = None) -> Path:
    """Write a data set with noise for every clip, or at the given relative paths."""
    (folder / "audio").mkdir(parents=True)
    shutil.copy(ROOT / "data/taxonomy.yaml", folder)
    pd.DataFrame(rows).to_csv(folder / "annotations.csv", index=False)
    paths = sorted({f"audio/{row['audio_filename']}" for row in rows}) if audio is None else audio
    for seed, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        channels, rate = 1 + seed % 2, RATE * (1 + seed % 3)
        soundfile.write(folder / path, 0.1 * rng.standard_normal((rate, channels)), rate)
    return folder


def reasons(path: Path) -> dict[str, str]:
    """Return the reason for each clip in a quarantine list or a list of unmatched clips."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    return dict(zip(table["audio_filename"], table["reason"], strict=True))


def recordings(output: Path) -> Path:
    """Return where `ingest` puts the recordings of a data set."""
    return output.with_name(f"{output.name}-recordings")


def ingest(settings: Dataset, output: Path, workers: int = 1) -> DatasetSummary:
    """Run the dataset step."""
    return dataset.run(settings, output, recordings(output), Reporter(), workers)
