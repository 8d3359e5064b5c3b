"""A small data set with features, called a world, and the teacher and student steps on it."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd

import iusp
from iusp.artifacts.networks import TeacherFolder
from iusp.config.augmentation import Augmentation, Augmentations
from iusp.config.methods import METHODS
from iusp.config.students import Distillation, Student, TappedLayers, Weights, recipe
from iusp.config.teacher import Teacher
from iusp.config.training import Training
from iusp.data.labels import SPLITS
from iusp.data.taxonomy import read_taxonomy
from iusp.io.files import sha256
from iusp.steps import student, teacher
from iusp.training.data import TrainingData, TrainingFolders, read_training_data
from tests.support.listener import Listener, ignore

ROOT = Path(iusp.__file__).parent
TAXONOMY = read_taxonomy(ROOT / "data/taxonomy.yaml")
CLIPS = {"train": 24, "validate": 14, "test": 0}
FRAMES, BANDS = 26, 16
FRONT_END = {
    "sample_rate": 8000,
    "clip_seconds": 0.5,
    "window_length": 256,
    "hop_length": 160,
    "mel_bands": BANDS,
    "low_hz": 50.0,
    "high_hz": 4000.0,
    "log_offset": 1e-6,
    "clips_per_shard": 10,
}

Settings = TypeVar("Settings", Teacher, Distillation)


def changed(config: Settings, **changes: Any) -> Settings:
    """Return the settings with other settings of training."""
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})


TRAINING = Training(
    epochs=4,
    batch_size=8,
    learning_rate=0.01,
    weight_decay=0.01,
    patience=4,
    precision="float32",
    device="cpu",
    threads=1,
)
TEACHER = Teacher(
    architecture="plain",
    parameters=7000,
    tags="both",
    seed=0,
    views=3,
    knowledge=["logits", "pooled", "similarity", "embedding", "attention", "hints"],
    layers=[1, 2, 3],
    training=TRAINING,
)
VIEWS = Augmentation(
    roll=True, gain_db=3.0, mixup=0.4, time_masks=1, time_mask_frames=4, band_masks=1, band_mask_bands=2
)
AUGMENTATION = Augmentations(teacher=VIEWS.model_copy(update={"mixup": 0.8, "gain_db": 0.0}), views=VIEWS)
COMMON = Distillation(
    weights=Weights(**dict.fromkeys(METHODS, 1.0) | {"sp": 30.0, "iusp": 20.0}),
    layers=TappedLayers(**{method: [1] for method in TappedLayers.model_fields} | {"skill": [1, 2, 3]}),
    temperature=2.0,
    knowledge="cached",
    training=TRAINING,
)
STUDENT = Student(architecture="cnn_lstm", parameters=1500, method="iusp+kd+sp", seeds=[0, 5])
ALONE = STUDENT.model_copy(update={"seeds": [0]})
LONG = Student(architecture="plain", parameters=2500, method="iusp+kd+sp+fitnet+inter+vic", seeds=[0])
# Weights so small that a method only watches what the labels teach.
WATCHING = 1e-6
EARLIER = {method: [1, 3] for method in TappedLayers.model_fields} | {"skill": [1, 2, 3]}
LONG_COMMON = changed(COMMON, epochs=30, patience=30, precision="bfloat16")


def make(folder: Path, seed: int = 0) -> Path:
    """Write the two folders `dataset` and `features`: every coarse tag sounds in two bands of its own."""
    rng = np.random.default_rng(seed)
    names = {split: [f"{split}-{number:02d}.wav" for number in range(count)] for split, count in CLIPS.items()}
    index = pd.DataFrame(
        [(name, split) for split in SPLITS for name in names[split]], columns=["audio_filename", "split"]
    )
    fine = rng.random((len(index), len(TAXONOMY.all_fine_tags))) < 0.12
    labels = index.copy()
    presence = dict(zip(TAXONOMY.all_fine_tags, fine.T, strict=True))
    coarse = {
        tag: np.any([presence[name] for name in TAXONOMY.category_tags(category)], axis=0)
        for category, tag in TAXONOMY.coarse.items()
    }
    for tag, present in (coarse | presence).items():
        labels[tag] = present.astype("float32")
    log_mel = rng.normal(-8, 1, (len(index), FRAMES, BANDS))
    for number, present in enumerate(coarse.values()):
        for row in np.flatnonzero(present):
            start = rng.integers(FRAMES - 12)
            log_mel[row, start : start + 12, 2 * number : 2 * number + 2] += 6
    log_mel = log_mel.astype(np.float16)
    for name in ("dataset", "features"):
        (folder / name).mkdir(parents=True)
    shutil.copy(ROOT / "data/taxonomy.yaml", folder / "dataset")
    labels.to_parquet(folder / "dataset" / "labels.parquet", index=False)
    index.to_parquet(folder / "features" / "index.parquet", index=False)
    for split in SPLITS:
        np.save(folder / "features" / f"{split}.npy", log_mel[index["split"] == split])
    train = log_mel[index["split"] == "train"].reshape(-1, BANDS).astype(np.float64)
    description = {
        "config": FRONT_END,
        "digest": f"{seed:064d}",
        "mean": train.mean(axis=0).tolist(),
        "std": train.std(axis=0).tolist(),
        "clips": CLIPS,
        "sha256": {split: sha256(folder / "features" / f"{split}.npy") for split in SPLITS},
    }
    (folder / "features" / "features.json").write_text(json.dumps(description))
    return folder


def folders(world: Path) -> TrainingFolders:
    """Return the folders of a world that training reads."""
    return TrainingFolders(world / "dataset", world / "features")


def teach(
    world: Path,
    output: Path,
    config: Teacher = TEACHER,
    on_epoch: Callable[[Mapping[str, float]], Any] = ignore,
    progress: Callable[..., Any] = ignore,
) -> Any:
    """Run the teacher step."""
    reporter = Listener(progress, lambda network, row: on_epoch(row))
    return teacher.run(config, AUGMENTATION, folders(world), output, reporter)


def learn(
    world: Path,
    taught: Path,
    output: Path,
    config: Student = STUDENT,
    common: Distillation = COMMON,
    on_epoch: Callable[[int, Mapping[str, float]], Any] = ignore,
    cores: int = 2,
) -> Any:
    """Run the student step."""
    reporter = Listener(on_epoch=lambda network, row: on_epoch(int(network.removeprefix("small-seed-")), row))
    inputs = student.StudentInputs(folders(world), TeacherFolder(taught))
    return student.run(recipe("small", config, common), inputs, output, reporter, cores)


def record(folder: Path) -> pd.DataFrame:
    """Return the training record of a network."""
    return pd.read_csv(folder / "record.csv")


def training_data(world: Path, tags: Literal["coarse", "both"] = "both") -> TrainingData:
    """Return the clips of a world as training reads them."""
    return read_training_data(folders(world), tags)
