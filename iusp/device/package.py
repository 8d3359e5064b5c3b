"""What lies beside a student's ONNX files: labels, thresholds, settings, licence and model card."""

from collections.abc import Mapping, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from numpy.typing import NDArray

from iusp.config.features import Features
from iusp.device.runtime import DESCRIPTION
from iusp.io.files import atomic, sha256, write_json

APACHE = "Apache-2.0"


def best_thresholds(truth: NDArray[np.bool_], known: NDArray[np.bool_], scores: NDArray[np.float64]) -> list[float]:
    """Return for each of K tags the threshold of the best F1.

    It lies midway between two scores, so that rounding moves no clip over it; of equally good ones it is the highest.
    A tag that no clip has gets 0.5.

    Args:
        truth: (N, K).
        known: (N, K); False where the truth is not known.
        scores: (N, K) in [0, 1].
    """
    return [_threshold(truth[rows, column], scores[rows, column]) for column, rows in enumerate(known.T.astype(bool))]


def _threshold(truth: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    if not truth.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(scores) + 1) + hits[-1])
    following = np.append(scores[1:], 0)
    # Equal scores are on the same side.
    best = int(np.argmax(np.where(np.append(scores[:-1] > following[:-1], True), f1, -1)))
    return float((scores[best] + following[best]) / 2)


def write_package(
    folder: Path,
    tags: Sequence[str],
    thresholds: Sequence[float],
    features: Features,
    license_name: str,
    facts: Mapping[str, Any],
) -> None:
    """Write `LICENSE`, `MODEL_CARD.md` and, last, `device.json`, which names every other file of the folder.

    Args:
        folder: holds the ONNX files.
        tags: K names, in the order of the network's outputs.
        thresholds: of the tags.
        features: settings of the front-end.
        license_name: of the weights, as an SPDX expression.
        facts: what the model card says; `iusp/device/model_card.md` names them.
    """
    text = f"SPDX-License-Identifier: {license_name}\n"
    if license_name == APACHE:
        text = distribution("iusp").read_text("licenses/LICENSE") or text
    with atomic(folder / "LICENSE") as temporary:
        temporary.write_text(text, encoding="utf-8")
    environment = Environment(
        loader=PackageLoader("iusp.device", ""),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    by_tag = dict(zip(tags, thresholds, strict=True))
    card = environment.get_template("model_card.md").render(
        **facts, thresholds=by_tag, features=features, license=license_name
    )
    with atomic(folder / "MODEL_CARD.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
    files = sorted(path for path in folder.iterdir() if path.name != DESCRIPTION)
    write_json(
        folder / DESCRIPTION,
        {
            "tags": list(tags),
            "thresholds": by_tag,
            "features": features.model_dump(mode="json"),
            "license": license_name,
            "files": {path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in files},
        },
    )
