"""A registered student behind MLflow's server, `mlflow models serve`.

A version contains data only. The code that loads it and answers requests is this module of the installed iusp.
"""

import json
import sys
import tempfile
from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc import scoring_server
from pydantic_core import from_json

from iusp.data.audio import BadAudio
from iusp.device.runtime import Window, load, load_network

if TYPE_CHECKING:
    import pandas as pd

MAX_BYTES, MAX_CLIPS, MAX_SECONDS = 2**24, 32, 600  # limits of one request; seconds of all its audio together
FORM = (
    'send {"inputs": [{"audio": "<base64 of a WAV, FLAC or OGG file>"}, ...]}, '
    'or {"log_mel": [[...], ...]} in place of {"audio": ...}'
)


class ServedStudent:
    """The model object that MLflow's server asks for predictions."""

    def __init__(self, folder: Path) -> None:
        """Open the float32 networks.

        Args:
            folder: `device/` of a version.

        Raises:
            InputError: a file is missing or damaged.
        """
        self._model = load(folder / "float32.onnx")
        self._network = load_network(folder / "net_float32.onnx")
        self._frames, self._bands = self._network.get_inputs()[0].shape[1:]

    def predict(
        self, model_input: "pd.DataFrame", params: Mapping[str, Any] | None = None
    ) -> list[list[dict[str, Any]]]:
        """Tag clips, for programs that load a version with `mlflow.pyfunc`.

        Args:
            model_input: one row for each clip, with `audio` (base64) or `log_mel` (T, M).
            params: ignored; MLflow's interface has it.

        Returns:
            The windows of each clip: `start`, `end`, `probabilities`, `tags`.

        Raises:
            MlflowException: a clip is bad; the error code is BAD_REQUEST and the message one sentence.
        """
        rows = model_input.to_json(orient="records", double_precision=15)
        return self._answer(f'{{"inputs": {rows}}}'.encode())

    def invocations(self, data: bytes, content_type: str | None, *_: object) -> scoring_server.InvocationsResponse:
        """Answer the body of a request, in place of MLflow's function of this name.

        Raises:
            MlflowException: the request is bad; the server turns the exception into a response.
        """
        if (content_type or "").partition(";")[0].strip().lower() != scoring_server.CONTENT_TYPE_JSON:
            raise _refused(f"the header Content-Type must be {scoring_server.CONTENT_TYPE_JSON}; {FORM}")
        answer = json.dumps({"predictions": self._answer(data)}, allow_nan=False)
        return scoring_server.InvocationsResponse(answer, 200, scoring_server.CONTENT_TYPE_JSON)

    def _answer(self, body: bytes) -> list[list[dict[str, Any]]]:
        if len(body) > MAX_BYTES:
            raise _refused(f"the request has {len(body)} bytes, more than {MAX_BYTES}; send fewer or shorter clips")
        # Parsing millions of lists would block all other requests for seconds.
        if sum(map(body.count, (b"[", b"{", b","))) > MAX_CLIPS * (self._frames * (self._bands + 1) + 4):
            raise _refused(f"the request has more values than {MAX_CLIPS} clips have; {FORM}")
        try:
            clips = _clips(from_json(body))
        except ValueError as error:
            raise _refused(f"the body is not JSON: {error}") from None
        answers, seconds = [], float(MAX_SECONDS)
        for number, clip in enumerate(clips):
            try:
                windows = [self._seen(clip["log_mel"])] if "log_mel" in clip else self._heard(clip["audio"], seconds)
            except BadAudio as reason:
                raise _refused(f"clip {number}, {' '.join(clip)}: {reason}") from None
            seconds -= 0 if "log_mel" in clip else windows[-1].end
            answers.append([vars(window) for window in windows])
        return answers

    def _heard(self, audio: Any, seconds: float) -> list[Window]:
        try:
            content = b64decode(audio, validate=True)
        except (TypeError, ValueError):
            raise BadAudio("not base64") from None
        windows = []
        # Decoding needs a file that can be read from any position.
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            for window in self._model.tag(file.name):
                if window.end > seconds:
                    raise BadAudio(f"too long: all audio of a request may have at most {MAX_SECONDS} s")
                windows.append(window)
        return windows

    def _seen(self, log_mel: Any) -> Window:
        rows = log_mel if isinstance(log_mel, list) and len(log_mel) == self._frames else []
        if not rows or not all(isinstance(row, list) and len(row) == self._bands for row in rows):
            raise BadAudio(f"not {self._frames} frames of {self._bands} bands")
        if not all(type(value) in (int, float) for row in rows for value in row):
            raise BadAudio("contains something other than numbers")
        try:
            with np.errstate(over="ignore"):
                values = np.array([rows], np.float64).astype(np.float32)
        except OverflowError:  # an integer beyond float64
            values = np.array(np.inf)
        if not np.isfinite(values).all():
            raise BadAudio("contains a number that is NaN, infinite or too large for float32")
        return self._model.decided(self._network.run(None, {"log_mel": values})[0][0], 0, self._model.samples)


def _clips(request: Any) -> list[dict[str, Any]]:
    """Return the clips of a request in any of MLflow's formats, each as its only entry, `audio` or `log_mel`."""
    form, content = next(iter(request.items())) if isinstance(request, dict) and len(request) == 1 else (None, None)
    if form == "dataframe_split" and isinstance(content, dict):
        columns, rows = content.get("columns"), content.get("data")
        if isinstance(columns, list) and all(isinstance(name, str) for name in columns) and isinstance(rows, list):
            content = [_record(columns, row) for row in rows[: MAX_CLIPS + 1]]
    elif form not in ("inputs", "instances", "dataframe_records"):
        raise _refused(f"the body must have exactly one key, inputs; {FORM}")
    if not isinstance(content, list) or not 1 <= len(content) <= MAX_CLIPS:
        raise _refused(f"{form} must have 1 to {MAX_CLIPS} clips; {FORM}")
    clips = []
    for number, clip in enumerate(content):
        given = {name: value for name, value in clip.items() if value is not None} if isinstance(clip, dict) else {}
        if len(given) != 1 or not set(given) <= {"audio", "log_mel"}:
            raise _refused(f"clip {number} must have exactly one entry, audio or log_mel; {FORM}")
        clips.append(given)
    return clips


def _record(columns: list[str], row: Any) -> dict[str, Any] | None:
    return dict(zip(columns, row, strict=True)) if isinstance(row, list) and len(row) == len(columns) else None


def _refused(reason: str) -> MlflowException:
    return MlflowException(reason, error_code=BAD_REQUEST)


def _load_pyfunc(folder: str) -> ServedStudent:
    """Load a version. MLflow finds this function by its name."""
    student = ServedStudent(Path(folder) / "device")
    # MLflow's server parses the body before it calls the model: nested JSON ends in status 500, and its errors repeat
    # the body or contain stack traces. `mlflow models serve` has neither a setting nor a hook for that: it starts its
    # own FastAPI application, which is created after this function has returned. But every request goes through this
    # one module-level function, so replacing it is the smallest possible patch.
    if "mlflow.pyfunc.scoring_server.app" in sys.modules:
        scoring_server.invocations = student.invocations
    return student
