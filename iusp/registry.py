"""The MLflow model registry: every student is a version of one registered model."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import Tensor, nn

from iusp import models
from iusp.config import Features
from iusp.files import digest, sha256
from iusp.log_mel import frame_count
from iusp.models.layers import Tagger
from iusp.tracking import tracking_uri

DIGEST_TAG = "iusp.digest"


class Probabilities(nn.Module):
    """A network that returns probabilities alone, as users of the registry expect."""

    def __init__(self, network: Tagger) -> None:
        super().__init__()
        self.network = network

    def forward(self, log_mel: Tensor) -> Tensor:
        """Turn log-mel (B, T, M) into probabilities (B, K)."""
        logits: Tensor = self.network(log_mel)[0]
        return logits.sigmoid()


def register(client: MlflowClient, model_name: str, run_id: str, student: Path, tags: Mapping[str, Any]) -> int:
    """Make a trained student a version of a registered model, unless it is one already.

    The model is an exported program (no pickle) from log-mel (B, T, M) to probabilities (B, K), with signature and
    input example; the student's weights, config and training record lie beside it.

    Args:
        client: of the tracking server.
        model_name: the registered model.
        run_id: of the student's run.
        student: folder with the student's weights and config.
        tags: metrics and lineage, kept as the version's tags.

    Returns:
        The version's number.
    """
    network, description = models.load(student)
    identity = digest([sha256(student / "weights.safetensors"), sha256(student / "config.json")])
    try:
        client.create_registered_model(model_name, description="Students distilled for urban sound tagging (iusp)")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = client.search_model_versions(f"name = '{model_name}' and tags.`{DIGEST_TAG}` = '{identity}'")
    if found:
        version = max(found, key=lambda one: int(one.version))
    else:
        uri = _log_model(network, description, student, run_id)
        version = client.create_model_version(model_name, uri, run_id, tags={DIGEST_TAG: identity})
    for name, value in tags.items():
        client.set_model_version_tag(model_name, version.version, name, str(value))
    return int(version.version)


def _log_model(network: Tagger, description: Mapping[str, Any], student: Path, run_id: str) -> str:
    features = Features.model_validate(description["features"])
    frames, bands, tags = frame_count(features), features.mel_bands, len(description["tags"])
    # An example of one clip would be exported as a fixed batch of one.
    example = np.zeros((2, frames, bands), np.float32)
    mlflow.set_tracking_uri(tracking_uri())
    # MLflow explains itself at length to people who log models by hand.
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="No complete tensor found")  # PyTorch, about exporting an LSTM
    with mlflow.start_run(run_id):
        info = mlflow.pytorch.log_model(
            Probabilities(network).eval(),
            name="student",
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
    return str(info.model_uri)


def set_challenger(client: MlflowClient, model_name: str, version: int) -> None:
    """Point the alias `challenger` at a version."""
    client.set_registered_model_alias(model_name, "challenger", str(version))
