"""The training of one student, and the row that records it."""

import json
import shutil
import time
from dataclasses import asdict
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest import mock

from torch import Tensor

from benchmarks.science.grid import SIZES, Row, Run
from benchmarks.science.worlds import World
from iusp import models
from iusp.artifacts.networks import TeacherFolder
from iusp.config.params import Config
from iusp.config.students import Recipe, Student, recipe
from iusp.data.taxonomy import read_taxonomy
from iusp.distillation.losses import DistillationLosses
from iusp.distillation.method import Outputs
from iusp.evaluation.metrics import score, score_table
from iusp.evaluation.scoring import truth_table
from iusp.features.packed import read_features
from iusp.models.inference import predict
from iusp.steps import student
from iusp.training.data import TrainingFolders


@cache
def _truth(dataset: Path, features: Path) -> tuple[Any, Any, Any]:
    """Return taxonomy, features and labels of the test clips; a process reads them once."""
    taxonomy, feature_set = read_taxonomy(dataset / "taxonomy.yaml"), read_features(features)
    return taxonomy, feature_set, truth_table(dataset, feature_set, "test", taxonomy, "coarse")


def measured(network_folder: Path, world: World) -> Row:
    """Return what the record says of a trained network: its size, and its coarse AUPRC on validate and test."""
    network, description = models.load(network_folder)
    taxonomy, feature_set, truth = _truth(world.dataset, world.features)
    scores = score_table(predict(network, feature_set.log_mel("test")), description["tags"], taxonomy, "coarse")
    found = score(truth, scores, taxonomy, "coarse")
    return {
        "architecture": description["architecture"],
        "parameters": description["parameters"],
        "kept_epoch": description["epoch"],
        "validate_micro_auprc": description["validate_micro_auprc"],
        "micro_auprc": found.micro_auprc,
        "macro_auprc": found.macro_auprc,
    }


class DecayingLosses(DistillationLosses):
    """Distillation losses whose weights fall to zero linearly over `steps` optimiser steps.

    The student step has no such option, because decaying weights did not help.
    """

    steps = 1
    done = 0

    def forward(self, outputs: Outputs) -> dict[str, Tensor]:
        """Return the losses with the weights of this step."""
        self.done += 1
        return {name: (1 - self.done / self.steps) * loss for name, loss in super().forward(outputs).items()}


def train(run: Run, world: World, config: Config) -> Row:
    """Train one student in a process of its own.

    Args:
        run: what is trained.
        world: data set and teacher.
        config: settings that the run does not change.

    Returns:
        The run's row of the record.
    """
    folder = Path(mkdtemp(dir=world.folder))
    inputs = student.StudentInputs(
        TrainingFolders(world.dataset, world.features), TeacherFolder(world.teacher(run.knowledge))
    )
    job = student.SeedJob(_recipe(run, config), run.seed, inputs, folder / "network")
    DecayingLosses.steps = run.epochs * (read_features(world.features).clips["train"] // run.batch_size)
    losses = DecayingLosses if run.variant == "decay" else DistillationLosses
    start = time.process_time()
    with mock.patch.object(student, "DistillationLosses", losses):
        student.learn(job, lambda row: None)
    row: Row = asdict(run) | {"cpu_seconds": round(time.process_time() - start, 2)} | measured(job.folder, world)
    shutil.rmtree(folder)
    return row


def _recipe(run: Run, config: Config) -> Recipe:
    """Return the settings of a student: those of params.yaml, with the changes of the run."""
    architecture, parameters = SIZES[run.student]
    weights = json.loads(run.weights)
    settings = Student(
        architecture=architecture,
        parameters=parameters,
        method=run.method,
        weights=weights or None,
        layers={method: [1, 2, 3] for method in weights} if run.variant == "layers" else None,
        seeds=[run.seed],
    )
    changes = {
        "epochs": run.epochs,
        "patience": run.epochs,
        "batch_size": run.batch_size,
        "learning_rate": run.learning_rate,
        "threads": 1,
    }
    training = config.distillation.training.model_copy(update=changes)
    knowledge = "online" if run.variant == "online" else "cached"
    common = config.distillation.model_copy(update={"training": training, "knowledge": knowledge})
    return recipe(run.student, settings, common)
