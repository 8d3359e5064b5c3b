"""A trained student as the model that is registered and served: no pickle, no code of ours needed to load it."""

import logging
import warnings
from pathlib import Path

import mlflow.pytorch
import numpy as np
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from iusp import models
from iusp.config import Features
from iusp.files import check_room
from iusp.log_mel import frame_count
from iusp.models.layers import Probabilities

SPARE_BYTES = 2**22  # for an exported program, besides its weights


def export(student: Path, output: Path) -> None:
    """Write an MLflow model: an exported program from log-mel (B, T, M) to probabilities (B, K).

    It has a signature and an input example; the student's weights, config and training record lie beside it.

    Args:
        student: folder with `weights.safetensors`, `config.json` and `record.csv`.
        output: folder to write.

    Raises:
        InputError: the student cannot be loaded.
    """
    network, description = models.load(student)
    config = Features.model_validate(description["features"])
    frames, bands, tags = frame_count(config), config.mel_bands, len(description["tags"])
    # The exporter takes a batch of one for a constant.
    example = np.zeros((2, frames, bands), np.float32)
    # MLflow explains itself at length to people who log models by hand.
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="No complete tensor found")  # PyTorch, about exporting an LSTM
    # Where the disk gets full, PyTorch's writer ends the process.
    check_room(output.parent, 2 * (student / "weights.safetensors").stat().st_size + SPARE_BYTES)
    mlflow.pytorch.save_model(
        Probabilities(network).eval(),
        output,
        # Unnamed: MLflow hands a named tensor over as a dictionary, which its own PyTorch flavour refuses.
        signature=ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, frames, bands))]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, tags))]),
        ),
        input_example=example,
        serialization_format="pt2",
        extra_files=[str(student / name) for name in ("weights.safetensors", "config.json", "record.csv")],
        pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
    )
