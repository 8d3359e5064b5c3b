"""An exported student, run by ONNX Runtime alone: no torch, no MLflow. What comes from outside is checked first."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from iusp.errors import InputError
from iusp.files import sha256

DESCRIPTION = "device.json"


@dataclass(frozen=True)
class DeviceModel:
    """An end-to-end network and what is known of it.

    Attributes:
        session: from `waveform` (B, samples) to `probabilities` (B, K), float32, on one thread.
        tags: K names.
        thresholds: by tag, the probability from which a clip is said to have it.
        sample_rate: of the waveform, Hz.
        samples: of one clip.
    """

    session: onnxruntime.InferenceSession
    tags: list[str]
    thresholds: Mapping[str, float]
    sample_rate: int
    samples: int

    def probabilities(self, waveforms: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return probabilities (B, K) of waveforms (B, samples)."""
        result: NDArray[np.float32] = self.session.run(None, {"waveform": waveforms})[0]
        return result


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Open an ONNX file on one CPU thread.

    Raises:
        InputError: it cannot be read, is no ONNX file, or needs other files.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        # From bytes: a file's own path would let it name others, anywhere on the disk, as its weights.
        return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give an ONNX file that iusp exported") from None
    except Exception as error:  # ONNX Runtime's errors have no common class
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not an ONNX file that can be run ({reason}); export it again") from None


def load(path: Path) -> DeviceModel:
    """Open `float32.onnx` or `int8.onnx`; `device.json` lies beside it.

    Raises:
        InputError: a file is missing, damaged or not such a file, or they do not fit each other.
    """
    description = _description(path.with_name(DESCRIPTION))
    known = description["files"].get(path.name)
    if path.is_file() and (not isinstance(known, dict) or known.get("sha256") != sha256(path)):
        raise InputError(f"{path}: not the file that {DESCRIPTION} beside it describes; fetch both again")
    session = open_session(path)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if [(one.name, one.type) for one in (*inputs, *outputs)] != [
        ("waveform", "tensor(float)"),
        ("probabilities", "tensor(float)"),
    ]:
        found = ", ".join(one.name for one in (*inputs, *outputs))
        raise InputError(f"{path}: has {found}, not waveform and probabilities; give float32.onnx or int8.onnx")
    tags, features = description["tags"], description["features"]
    samples = round(features["clip_seconds"] * features["sample_rate"])
    if inputs[0].shape[1:] != [samples] or outputs[0].shape[1:] != [len(tags)]:
        raise InputError(f"{path}: not of the shapes that {DESCRIPTION} beside it describes; fetch both again")
    return DeviceModel(session, tags, description["thresholds"], features["sample_rate"], samples)


def _description(path: Path) -> dict[str, Any]:
    try:
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        tags, thresholds = description["tags"], description["thresholds"]
        features, files = description["features"], description["files"]
        rate, seconds = features["sample_rate"], features["clip_seconds"]
        sound = (
            all(isinstance(tag, str) and tag.isprintable() for tag in tags)
            and set(thresholds) == set(tags)
            and all(type(value) in (int, float) for value in thresholds.values())
            and type(rate) is int
            and type(seconds) in (int, float)
            and 0 < seconds * rate <= 2**27
            and isinstance(files, dict)
        )
        if not sound:
            raise ValueError("a value is out of place")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; an exported student's folder holds it") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path}: not what iusp exports ({' '.join(str(error).split())[:100]}); fetch it again"
        ) from None
    return description
