"""A trained student as the MLflow model that is registered and served: data alone, of which nothing is unpickled."""

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
    """Write an MLflow model that `iusp.registry.serving` loads; its networks (`device/`) are written beside it.

    The student's weights, config and training record are kept in `extra_files/`.

    Args:
        student: folder with `weights.safetensors`, `config.json` and `record.csv`.
        output: folder to write.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example")
        # No index has iusp: a requirement of that name would be met by whoever takes it there.
        mlflow.pyfunc.save_model(output, loader_module="iusp.serving", signature=SIGNATURE, pip_requirements=[])
    (output / "extra_files").mkdir()
    for name in ("weights.safetensors", "config.json", "record.csv"):
        shutil.copyfile(student / name, output / "extra_files" / name)
