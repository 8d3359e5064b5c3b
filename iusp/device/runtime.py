"""Run an exported student with ONNX Runtime alone, without torch and MLflow. All input is checked first."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike, NDArray

from iusp.data.audio import BadAudio, check_samples
from iusp.data.resampling import resampled, waveform, windows
from iusp.errors import InputError
from iusp.io.files import sha256
from iusp.io.text import one_line

DESCRIPTION = "device.json"


@dataclass(frozen=True)
class Window:
    """The tags of one window of a recording.

    Attributes:
        start: start of the window, in seconds from the start of the recording.
        end: end of the window in seconds; the last window ends with the recording.
        probabilities: probability of each tag.
        tags: the tags whose probability reaches their threshold.
    """

    start: float
    end: float
    probabilities: dict[str, float]
    tags: list[str]


@dataclass(frozen=True)
class DeviceModel:
    """An end-to-end network and its description.

    Attributes:
        session: network from `waveform` (B, samples) to `probabilities` (B, K), float32, on one thread.
        tags: names of the K tags.
        thresholds: probability from which on a tag is present, by tag.
        sample_rate: sample rate of the waveform in Hz.
        samples: number of samples of one clip.
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
        """Tag a recording window by window; the last window is padded with zeros.

        Args:
            recording: WAV, FLAC or OGG file of any length, rate and number of channels; or an array of floats in
                [-1, 1], (n,) or (n, channels). Up to 16 is accepted, as loud recordings exceed 1.
            sample_rate: sample rate in Hz, if `recording` is an array.
            window: length of a window in seconds, at most the length of the model's clips, which is the default.
            hop: seconds between the starts of two windows, at most `window`; half of it by default.

        Raises:
            InputError: window and hop do not fit together or exceed the clip's length.
            iusp.data.audio.BadAudio: the file cannot be decoded, or the array is not a recording.
        """
        longest = self.samples / self.sample_rate
        window = longest if window is None else window
        hop = window / 2 if hop is None else hop
        if not 1 / self.sample_rate <= hop <= window <= longest:
            raise InputError(f"--window {window:g} --hop {hop:g}: 0 < hop <= window <= {longest:g} s must hold")
        if isinstance(recording, str | Path):
            blocks: Iterable[NDArray[np.float32]] = waveform(Path(recording), self.sample_rate)
        else:
            blocks = resampled(*check_samples(recording, sample_rate), self.sample_rate)
        size, step = round(window * self.sample_rate), round(hop * self.sample_rate)
        for start, samples in windows(blocks, size, step):
            clip = np.pad(samples, (0, self.samples - len(samples)))
            yield self.decided(self.probabilities(clip[None])[0], start, start + len(samples))

    def decided(self, probabilities: NDArray[np.float32], start: int, end: int) -> Window:
        """Compare the probabilities (K,) of the window between two samples with the thresholds.

        Raises:
            iusp.data.audio.BadAudio: a probability is not a number, because the samples are too large.
        """
        if not np.isfinite(probabilities).all():
            raise BadAudio("its values are too large for the network")
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
        InputError: the file cannot be read, is not an ONNX file, or needs other files.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        # Loaded from bytes: given a path, an ONNX file could load weights from any other file of this machine.
        return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give an ONNX file that iusp exported") from None
    except Exception as error:  # the errors of ONNX Runtime have no common base class
        reason = one_line(error, 200)
        raise InputError(f"{path}: not an ONNX file that ONNX Runtime can run ({reason}); export it again") from None


def load(path: Path) -> DeviceModel:
    """Open `float32.onnx` or `int8.onnx`, with the `device.json` in the same folder.

    Raises:
        InputError: a file is missing or damaged, or the two files do not belong together.
    """
    description = _description(path)
    tags, features = description["tags"], description["features"]
    samples = round(features["clip_seconds"] * features["sample_rate"])
    session = _described(path, description, "waveform", "float32.onnx or int8.onnx")
    if session.get_inputs()[0].shape[1:] != [samples]:
        raise InputError(f"{path}: shapes differ from {DESCRIPTION} beside it; fetch both files again")
    return DeviceModel(session, tags, description["thresholds"], features["sample_rate"], samples)


def load_network(path: Path) -> onnxruntime.InferenceSession:
    """Open `net_float32.onnx` or `net_int8.onnx`, from `log_mel` (B, T, M) to `probabilities` (B, K).

    Raises:
        InputError: a file is missing or damaged, or the two files do not belong together.
    """
    return _described(path, _description(path), "log_mel", "net_float32.onnx or net_int8.onnx")


def _described(path: Path, description: dict[str, Any], given: str, names: str) -> onnxruntime.InferenceSession:
    """Open an ONNX file that `device.json` describes, from the input `given` to the tags' probabilities."""
    expected = description["files"].get(path.name)
    if path.is_file() and (not isinstance(expected, dict) or expected.get("sha256") != sha256(path)):
        raise InputError(f"{path}: not the file that {DESCRIPTION} beside it describes; fetch both again")
    session = open_session(path)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if [(node.name, node.type) for node in (*inputs, *outputs)] != [
        (given, "tensor(float)"),
        ("probabilities", "tensor(float)"),
    ]:
        found = ", ".join(node.name for node in (*inputs, *outputs))
        raise InputError(f"{path}: has {found}, not {given} and probabilities; give {names}")
    if outputs[0].shape[1:] != [len(description["tags"])]:
        raise InputError(f"{path}: shapes differ from {DESCRIPTION} beside it; fetch both files again")
    return session


def _description(model: Path) -> dict[str, Any]:
    """Read and check the `device.json` beside an ONNX file."""
    if not model.exists():
        raise InputError(f"{model}: no such file; give an ONNX file of an exported student")
    path = model.with_name(DESCRIPTION)
    try:
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        tags, thresholds = description["tags"], description["thresholds"]
        features, files = description["features"], description["files"]
        rate, seconds = features["sample_rate"], features["clip_seconds"]
        is_valid = (
            all(isinstance(tag, str) and tag.isprintable() for tag in tags)
            and set(thresholds) == set(tags)
            and all(type(value) in (int, float) for value in thresholds.values())
            and type(rate) is int
            and type(seconds) in (int, float)
            and 0 < seconds * rate <= 2**27
            and isinstance(files, dict)
        )
        if not is_valid:
            raise ValueError("a value has the wrong type or range")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; take it from the folder of an exported student") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not what iusp exports ({one_line(error, 100)}); fetch it again") from None
    return description
