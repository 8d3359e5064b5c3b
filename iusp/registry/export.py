"""Export of a trained student as the MLflow model that is registered and served. It contains no pickle."""

import shutil
import warnings
from pathlib import Path

import mlflow.pyfunc
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array, Map, Object, Property

WINDOW = Object(
    [
        Property("start", DataType.double),
        Property("end", DataType.double),
        Property("probabilities", Map(DataType.double)),
        Property("tags", Array(DataType.string)),
    ]
)
SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec(DataType.string, "audio", required=False),
            ColSpec(Array(Array(DataType.double)), "log_mel", required=False),
        ]
    ),
    outputs=Schema([ColSpec(Array(WINDOW))]),
)


def export(student: Path, output: Path) -> None:
    """Write an MLflow model that `iusp.registry.serving` loads.

    Weights, config and training record of the student go to `extra_files/`. The networks that are served are not
    written here: the evaluation step adds them as `device/`.

    Args:
        student: folder with `weights.safetensors`, `config.json` and `record.csv`.
        output: folder to write.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example")
        # iusp is in no package index. As a requirement, the name could be taken there by anyone.
        mlflow.pyfunc.save_model(output, loader_module="iusp.serving", signature=SIGNATURE, pip_requirements=[])
    (output / "extra_files").mkdir()
    for name in ("weights.safetensors", "config.json", "record.csv"):
        shutil.copyfile(student / name, output / "extra_files" / name)
