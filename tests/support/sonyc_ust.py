"""SONYC-UST in small: its annotations, recordings and archives, as Zenodo publishes them."""

import hashlib
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile

from iusp.sources import sonyc_ust
from tests.support import zenodo
from tests.support.datasets import COLUMNS, RATE, ROOT, row
from tests.support.project import Project

DEV, EVAL = "audio-dev.tar.gz", "audio-eval.tar.gz"
NAMES = {"train": ["00_000001.wav", "01_000002.wav"], "validate": ["02_000003.wav"], "test": ["03_000004.wav"]}
ROWS = [
    *(
        row(name, annotator=annotator, sensor=name[:2], heard=["1-1"])
        for name in NAMES["train"]
        for annotator in (1, 2)
    ),
    *(row(name, split, 0, name[:2], heard=["8-1", "2_"]) for split in ("validate", "test") for name in NAMES[split]),
]


def wav(seed: int, seconds: int = 1) -> bytes:
    """Return a WAV file of noise, which gzip cannot make much smaller."""
    stream = io.BytesIO()
    soundfile.write(stream, np.random.default_rng(seed).uniform(-0.5, 0.5, seconds * RATE), RATE, format="WAV")
    return stream.getvalue()


CLIPS = {name: wav(number) for number, name in enumerate(name for names in NAMES.values() for name in names)}


def annotations(rows: list[dict[str, Any]]) -> str:
    """Return the CSV with all columns of SONYC-UST, including proximities."""
    table = pd.DataFrame(rows)
    for column in COLUMNS[8:]:
        table[column.replace("_presence", "_proximity")] = "notsure"
    return table.to_csv(index=False)


def nineteen(clips: dict[str, bytes]) -> dict[str, dict[str, bytes]]:
    """Spread clips over 19 archives, as in v2.3."""
    archives: dict[str, dict[str, bytes]] = {f"audio-{number}.tar.gz": {} for number in range(19)}
    for number, (name, content) in enumerate(clips.items()):
        archives[f"audio-{5 * number % 19}.tar.gz"][f"audio/{name}"] = content
    return archives


def publish(folder: Path, archives: dict[str, dict[str, bytes]], rows: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    (folder / "annotations.csv").write_text(annotations(rows))
    shutil.copy(ROOT / "data/taxonomy.yaml", folder / "dcase-ust-taxonomy.yaml")
    (folder / "README.md").write_text("not wanted")
    for name, clips in archives.items():
        zenodo.pack(folder / name, clips)
    return folder


def pin(project: Project, rows: list[dict[str, Any]]) -> None:
    """Make a project accept these rows as the annotations of v2.3, by replacing the MD5 in its copy of the code."""
    module, known = project.folder / "iusp/sources/sonyc_ust.py", sonyc_ust.VERSIONS["v2.3"].md5s["annotations.csv"]
    module.write_text(module.read_text().replace(known, hashlib.md5(annotations(rows).encode()).hexdigest()))
