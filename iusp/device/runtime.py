"""An exported student, run by ONNX Runtime alone: no torch, no MLflow. What comes from outside is checked first."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike, NDArray

from iusp.data.audio import BadAudio, check_samples
from iusp.device.resampling import resampled, waveform
from iusp.errors import InputError
from iusp.io.files import sha256
from iusp.io.text import one_line

DESCRIPTION = "device.json"


@dataclass(frozen=True)
class Window:
    """What is in a part of a recording.

    Attributes:
        start: seconds from the recording's beginning.
        end: likewise; the recording's own end in its last window.
        probabilities: by tag.
        tags: those whose probability reaches their threshold.
    """

    start: float
    end: float
    probabilities: dict[str, float]
    tags: list[str]


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

    def tag(
        self,
        recording: str | Path | ArrayLike,
        sample_rate: int | None = None,
        *,
        window: float | None = None,
        hop: float | None = None,
    ) -> Iterator[Window]:
        """Tag a recording window by window; the last one, and so a short recording, is padded with zeros.

        Args:
            recording: WAV, FLAC or OGG file of any length, rate and number of channels; or floats in [-1, 1], (n,) or
                (n, channels).
            sample_rate: of an array, Hz.
            window: seconds, at most the model's clip, which is the default; a shorter one is padded.
            hop: seconds from one window's start to the next one's, at most `window`; half of it by default.

        Raises:
            InputError: window and hop do not fit.
            iusp.data.audio.BadAudio: the file cannot be decoded, or the array is no such recording.
        """
        longest = self.samples / self.sample_rate
        window = longest if window is None else window
        hop = window / 2 if hop is None else hop
        if not 1 / self.sample_rate <= hop <= window <= longest:
            raise InputError(f"--window {window:g} --hop {hop:g}: 0 < hop <= window <= {longest:g} s must hold")
        size, step = round(window * self.sample_rate), round(hop * self.sample_rate)
        pending, start = np.empty(0, np.float32), 0
        if isinstance(recording, str | Path):
            blocks: Iterable[NDArray[np.float32]] = waveform(Path(recording), self.sample_rate)
        else:
            blocks = resampled(*check_samples(recording, sample_rate), self.sample_rate)
        for block in blocks:
            pending = np.concatenate([pending, block])
            while len(pending) >= size:
                yield self._heard(pending[:size], start)
                pending, start = pending[step:], start + step
        # What the last window has not seen.
        if start == 0 or len(pending) > size - step:
            yield self._heard(pending, start)

    def _heard(self, samples: NDArray[np.float32], start: int) -> Window:
        clip = np.zeros((1, self.samples), np.float32)
        clip[0, : len(samples)] = samples
        return self.decided(self.probabilities(clip)[0], start, start + len(samples))

    def decided(self, probabilities: NDArray[np.float32], start: int, end: int) -> Window:
        """Compare probabilities (K,) of what lies between two samples with the thresholds.

        Raises:
            iusp.data.audio.BadAudio: one is not a number, because what the network was given is too large.
        """
        if not np.isfinite(probabilities).all():
            raise BadAudio("its values are so large that the network gives no probabilities")
        by_tag = dict(zip(self.tags, probabilities.tolist(), strict=True))
        return Window(
            start=start / self.sample_rate,
            end=end / self.sample_rate,
            probabilities=by_tag,
            tags=[tag for tag, value in by_tag.items() if value >= self.thresholds[tag]],
        )


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
        reason = one_line(error, 200)
        raise InputError(f"{path}: not an ONNX file that can be run ({reason}); export it again") from None


def load(path: Path) -> DeviceModel:
    """Open `float32.onnx` or `int8.onnx`; `device.json` lies beside it.

    Raises:
        InputError: a file is missing, damaged or not such a file, or they do not fit each other.
    """
    description = _description(path.with_name(DESCRIPTION))
    tags, features = description["tags"], description["features"]
    samples = round(features["clip_seconds"] * features["sample_rate"])
    session = _described(path, description, "waveform", "float32.onnx or int8.onnx")
    if session.get_inputs()[0].shape[1:] != [samples]:
        raise InputError(f"{path}: not of the shapes that {DESCRIPTION} beside it describes; fetch both again")
    return DeviceModel(session, tags, description["thresholds"], features["sample_rate"], samples)


def load_network(path: Path) -> onnxruntime.InferenceSession:
    """Open `net_float32.onnx` or `net_int8.onnx`, from `log_mel` (B, T, M) to `probabilities` (B, K), as `load` does.

    Raises:
        InputError: as of `load`.
    """
    return _described(path, _description(path.with_name(DESCRIPTION)), "log_mel", "net_float32.onnx or net_int8.onnx")


def _described(path: Path, description: dict[str, Any], given: str, names: str) -> onnxruntime.InferenceSession:
    """Open an ONNX file that `device.json` describes, from the input `given` to the tags' probabilities."""
    known = description["files"].get(path.name)
    if path.is_file() and (not isinstance(known, dict) or known.get("sha256") != sha256(path)):
        raise InputError(f"{path}: not the file that {DESCRIPTION} beside it describes; fetch both again")
    session = open_session(path)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if [(one.name, one.type) for one in (*inputs, *outputs)] != [
        (given, "tensor(float)"),
        ("probabilities", "tensor(float)"),
    ]:
        found = ", ".join(one.name for one in (*inputs, *outputs))
        raise InputError(f"{path}: has {found}, not {given} and probabilities; give {names}")
    if outputs[0].shape[1:] != [len(description["tags"])]:
        raise InputError(f"{path}: not of the shapes that {DESCRIPTION} beside it describes; fetch both again")
    return session


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
        raise InputError(f"{path}: not what iusp exports ({one_line(error, 100)}); fetch it again") from None
    return description
