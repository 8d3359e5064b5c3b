"""Write the files beside a student's ONNX files: tags, thresholds, settings, licence and model card."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from numpy.typing import NDArray

from iusp.artifacts.dataset import Source
from iusp.artifacts.evaluation import Parity
from iusp.artifacts.metrics import Metrics
from iusp.config.features import Features
from iusp.device.runtime import DESCRIPTION
from iusp.features.log_mel import clip_length, frame_count
from iusp.io.files import atomic, sha256, write_json

APACHE = "Apache-2.0"


def best_thresholds(truth: NDArray[np.bool_], known: NDArray[np.bool_], scores: NDArray[np.float64]) -> list[float]:
    """Return for each of K tags the threshold with the best F1.

    A threshold lies midway between two scores, so that rounding moves no clip across it. Of equally good thresholds,
    the highest is taken. A tag without any positive clip gets 0.5.

    Args:
        truth: presence (N, K) of the tags.
        known: mask (N, K), False where the truth is unknown.
        scores: probabilities (N, K).
    """
    return [_threshold(truth[rows, column], scores[rows, column]) for column, rows in enumerate(known.T.astype(bool))]


def _threshold(truth: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    if not truth.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(scores) + 1) + hits[-1])
    following = np.append(scores[1:], 0)
    # A threshold cannot separate equal scores.
    best = int(np.argmax(np.where(np.append(scores[:-1] > following[:-1], True), f1, -1)))
    return float((scores[best] + following[best]) / 2)


@dataclass(frozen=True)
class CardFacts:
    """The content of a student's model card.

    Attributes:
        name: name of the student.
        metrics: quality and cost of every network, and the data.
        categories: coarse tags by category id.
        features_digest: digest of the features that the student was trained on.
        bytes: size of each ONNX file.
        parity: how far each ONNX file is from the network in PyTorch.
    """

    name: str
    metrics: Metrics
    categories: Mapping[str, str]
    features_digest: str
    bytes: Mapping[str, int]
    parity: Mapping[str, Parity]


def write_package(folder: Path, thresholds: Mapping[str, float], features: Features, facts: CardFacts) -> None:
    """Write `LICENSE`, `MODEL_CARD.md` and, last, `device.json`, which names every other file of the folder.

    Args:
        folder: folder with the ONNX files.
        thresholds: threshold of each tag, in the order of the network's outputs.
        features: settings of the front-end.
        facts: content of the model card.
    """
    source = facts.metrics.data
    with atomic(folder / "LICENSE") as temporary:
        temporary.write_text(_license_text(source), encoding="utf-8")
    with atomic(folder / "MODEL_CARD.md") as temporary:
        temporary.write_text(_card(thresholds, features, facts), encoding="utf-8")
    files = sorted(path for path in folder.iterdir() if path.name != DESCRIPTION)
    write_json(
        folder / DESCRIPTION,
        {
            "tags": list(thresholds),
            "thresholds": dict(thresholds),
            "features": features.model_dump(mode="json"),
            "license": source.weights_license,
            "files": {path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in files},
        },
    )


def _license_text(source: Source) -> str:
    """Return the licence of the weights: its whole text for Apache-2.0, its SPDX expression otherwise."""
    text = distribution("iusp").read_text("licenses/LICENSE") if source.weights_license == APACHE else None
    return text or f"SPDX-License-Identifier: {source.weights_license}\n\n{source.licence_note}\n"


def _card(thresholds: Mapping[str, float], features: Features, facts: CardFacts) -> str:
    environment = Environment(
        loader=PackageLoader("iusp.device", ""),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("model_card.md").render(
        vars(facts)
        | {
            "student": facts.metrics.students[facts.name],
            "teacher": facts.metrics.teacher,
            "data": facts.metrics.data,
            "split": facts.metrics.split,
            "absent_note": facts.metrics.absent_note,
            "thresholds": thresholds,
            "features": features,
            "samples": clip_length(features),
            "frames": frame_count(features),
        }
    )
