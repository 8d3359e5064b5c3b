"""Intra-utterance similarity preserving knowledge distillation for urban sound tagging."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iusp.device.runtime import DeviceModel

__version__ = "0.1.0"

# MLflow reads this variable when it is imported, and has no other switch. MLflow sends no usage data unless the user
# sets the variable to false.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def load(model: str | Path) -> "DeviceModel":
    """Load a student that tags recordings (`DeviceModel.tag`). It needs no torch and reads no pickle.

    Args:
        model: either `models:/NAME@ALIAS` or `models:/NAME/VERSION` in the registry that MLFLOW_TRACKING_URI names,
            whose float32 network is downloaded; or the path of `float32.onnx` or `int8.onnx`, which needs no MLflow.

    Raises:
        iusp.errors.InputError: the model does not exist or is damaged.
    """
    import tempfile

    from iusp.device import runtime
    from iusp.errors import InputError

    if not str(model).startswith("models:/"):
        return runtime.load(Path(model))
    from iusp.registry.versions import fetch_model

    with tempfile.TemporaryDirectory() as folder:
        fetch_model(str(model), Path(folder), "device")
        try:
            return runtime.load(Path(folder) / "device" / "float32.onnx")
        except InputError as error:
            raise InputError(f"{model}: {str(error).replace(f'{folder}/', '')}") from None
