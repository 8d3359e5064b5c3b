"""The gate decides whether a version may become the champion.

It is a function of the measurements of the version and of today's champion. Each version carries them in `evaluation/`:
`measurements.json`, its scores of the evaluated clips (`predictions.csv`) and the ground truth of these clips
(`truth.csv`). No network runs again.
"""

import csv
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from iusp.config.base import Share
from iusp.config.evaluation import Evaluation
from iusp.config.registration import Budgets, Floors, Gate, Regression
from iusp.config.registration import Parity as ParityLimits
from iusp.data.taxonomy import Taxonomy
from iusp.errors import InputError
from iusp.evaluation.metrics import paired_difference, score, score_table
from iusp.evaluation.predictions import CLIP, read_predictions
from iusp.io.text import first_names

FLOAT32, INT8 = ("net_float32.onnx", "float32.onnx"), ("net_int8.onnx", "int8.onnx")
# Micro AUPRC of the same scores differs by up to 0.0003 between processors (iusp.evaluation.metrics).
SAME_AUPRC = 0.001

Size = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Length = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    # Unlike `iusp.artifacts.evaluation.Measurements`, these classes hold only what the gate needs, so that it can read
    # versions that an older or a newer iusp registered.
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class Coarse(_Part):
    """AUPRC on the coarse tags; `classwise` holds the AUPRC of each category, by its id."""

    micro_auprc: Share
    macro_auprc: Share
    classwise: dict[str, Share]


class Latency(_Part):
    """Milliseconds for one clip: median and 95th percentile."""

    p50: Length
    p95: Length


class Parity(_Part):
    """Difference of a file for devices from the network: largest in probability, and for int8 in micro AUPRC."""

    max_difference: Length
    auprc_loss: Finite | None = None


class Measurements(_Part):
    """`measurements.json`; `bytes`, `latency_ms` and `parity` have an entry for each file for devices."""

    split: str
    coarse: Coarse
    parameters: Size
    macs: Size
    bytes: dict[str, Size]
    latency_ms: dict[str, Latency]
    parity: dict[str, Parity]
    tags: Annotated[list[str], Field(min_length=1)]
    features: dict[str, object]


@dataclass(frozen=True)
class Evidence:
    """Content of a version's `evaluation/`.

    Attributes:
        version: number of the version.
        measurements: quality, cost and parity.
        taxonomy: coarse tags and the fine tags below each, derived from the tags' names.
        truth: ground truth (N, coarse tags) in {0, 1}, indexed by clip.
        scores: scores (N, coarse tags) in [0, 1] of the same clips in the same order.
    """

    version: int
    measurements: Measurements
    taxonomy: Taxonomy
    truth: pd.DataFrame
    scores: pd.DataFrame


class Comparison(_Part):
    """Difference in micro AUPRC, version minus champion, on the same clips.

    Attributes:
        champion: number of the champion.
        clips: number of clips.
        difference: difference on these clips.
        low: lower end of its 95 % bootstrap interval over clips.
        high: upper end of the interval.
        probability_worse: share of the resamples in which the difference is negative.
    """

    champion: int
    clips: int
    difference: Finite
    low: Finite
    high: Finite
    probability_worse: Share

    def __str__(self) -> str:
        """Return one line for people."""
        return (
            f"micro AUPRC {self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}] against version {self.champion} "
            f"on the same {self.clips} clips, probability of being worse {self.probability_worse:.3f}"
        )


class Verdict(_Part):
    """Decision of the gate.

    Attributes:
        reasons: every reason against a promotion; empty if the version passes.
        comparison: comparison with the champion, if both can be compared.
    """

    reasons: list[str]
    comparison: Comparison | None = None


def read_evidence(folder: Path, version: int) -> Evidence:
    """Read the downloaded `evaluation/` of a version.

    Args:
        folder: downloaded folder.
        version: number of the version.

    Raises:
        InputError: a file is missing or damaged, or the files contradict each other.
    """
    path = folder / "measurements.json"
    try:
        measurements = Measurements.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; register the version again") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {place and f'{place}: '}{first['msg']}; register the version again") from None
    taxonomy = _taxonomy(folder / "truth.csv", measurements.tags)
    tags = list(taxonomy.coarse_tags)
    truth = read_predictions(folder / "truth.csv", taxonomy)[tags]
    if not truth.isin((0, 1)).to_numpy().all():
        raise InputError(f"{folder / 'truth.csv'}: must hold only 0 and 1; register the version again")
    predictions = read_predictions(folder / "predictions.csv", taxonomy)
    if list(predictions.index) != list(truth.index):
        raise InputError(f"{folder / 'predictions.csv'}: has other clips than truth.csv; register the version again")
    by_tag = score_table(predictions[measurements.tags].to_numpy(), measurements.tags, taxonomy, "coarse")
    scores = pd.DataFrame(by_tag, index=truth.index, columns=tags)
    evidence = Evidence(version, measurements, taxonomy, truth, scores)
    stated, computed = measurements.coarse.micro_auprc, _micro_auprc(evidence)
    if abs(stated - computed) > SAME_AUPRC:
        raise InputError(
            f"{folder / 'predictions.csv'}: gives micro AUPRC {computed:.4f} where measurements.json says "
            f"{stated:.4f}; register the version again"
        )
    return evidence


def _taxonomy(truth: Path, tags: list[str]) -> Taxonomy:
    """Return the coarse tags in the header of truth.csv (`1_engine`), and the fine tags of each in `tags` (`1-2_…`)."""
    try:
        with truth.open(encoding="utf-8-sig", newline="") as stream:
            header = next(csv.reader(stream), [])
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{truth}: cannot be read ({error}); register the version again") from None
    coarse = {tag.partition("_")[0]: tag for tag in header if tag != CLIP}
    fine = {
        category: tuple(tag for tag in tags if tag.partition("_")[0].partition("-")[0] == category and tag != name)
        for category, name in coarse.items()
    }
    unknown = set(tags) - set(coarse.values()) - {tag for below in fine.values() for tag in below}
    absent = [name for category, name in coarse.items() if name not in tags and not fine[category]]
    if unknown or absent or not coarse:
        raise InputError(f"{truth}: its tags differ from those of measurements.json; register the version again")
    return Taxonomy(coarse, fine, {})


def _arrays(evidence: Evidence) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    return evidence.truth.to_numpy() > 0.5, evidence.scores.to_numpy()


def _micro_auprc(evidence: Evidence) -> float:
    return score(*_arrays(evidence), evidence.taxonomy, "coarse").micro_auprc


def judge(candidate: Evidence, champion: Evidence | None, gate: Gate, evaluation: Evaluation) -> Verdict:
    """Compare a version with the thresholds and with today's champion.

    Args:
        candidate: measurements of the version that would become the champion.
        champion: measurements of today's champion; None if no version is the champion.
        gate: thresholds of the gate.
        evaluation: settings of the bootstrap.
    """
    measured = candidate.measurements
    reasons = [
        *_floors(candidate, gate.floors),
        *_budgets(measured, gate.budgets),
        *_parity(measured, gate.parity),
    ]
    if champion is None:
        return Verdict(reasons=reasons)
    reasons += _same_task(measured, champion)
    if difference := _other_clips(candidate.truth, champion.truth):
        reasons.append(f"cannot be compared with version {champion.version}, the champion: {difference}")
        return Verdict(reasons=reasons)
    comparison = compare(candidate, champion, evaluation)
    return Verdict(reasons=[*reasons, *_regression(comparison, gate.regression)], comparison=comparison)


def compare(candidate: Evidence, champion: Evidence, evaluation: Evaluation) -> Comparison:
    """Compare two versions by a paired bootstrap over their clips."""
    truth, scores = _arrays(candidate)
    reference = champion.scores.loc[candidate.truth.index, list(candidate.truth)].to_numpy()
    difference = paired_difference(
        truth, scores, reference, candidate.taxonomy, "coarse", evaluation.resamples, evaluation.seed
    )
    return Comparison(champion=champion.version, clips=len(truth), **asdict(difference))


def _floors(candidate: Evidence, floors: Floors) -> Iterator[str]:
    coarse, split = candidate.measurements.coarse, candidate.measurements.split
    measured: dict[str, tuple[float | None, float]] = {
        "micro AUPRC": (coarse.micro_auprc, floors.micro_auprc),
        "macro AUPRC": (coarse.macro_auprc, floors.macro_auprc),
    }
    categories = {tag: category for category, tag in candidate.taxonomy.coarse.items()}
    for tag, floor in floors.classes.items():
        measured[f"AUPRC of {tag}"] = coarse.classwise.get(categories.get(tag, "")), floor
    for name, (value, floor) in measured.items():
        if value is None:
            yield f"{name} was not measured, but registration.gate.floors.classes sets a floor"
        elif value < floor:
            yield f"{name} {value:.4f} on {split} is below the floor {floor:g}{_without_clips(candidate, name)}"


def _without_clips(candidate: Evidence, name: str) -> str:
    """Return a note if an average or the AUPRC of a tag is low because no clip has a tag."""
    absent = [str(tag) for tag in candidate.truth if not candidate.truth[tag].any()]
    concerned = absent if name == "macro AUPRC" else [tag for tag in absent if name == f"AUPRC of {tag}"]
    return f" (no clip has {first_names(concerned)}, whose AUPRC therefore counts as 0)" if concerned else ""


def _budgets(measured: Measurements, budgets: Budgets) -> Iterator[str]:
    costs: dict[str, tuple[float | None, float]] = {
        "parameters": (measured.parameters, budgets.parameters),
        "MACs": (measured.macs, budgets.macs),
    }
    for file, most in budgets.bytes.items():
        costs[f"bytes of {file}"] = measured.bytes.get(file), most
    for file, longest in budgets.latency_ms.items():
        latency = measured.latency_ms.get(file)
        costs[f"median ms of {file}"] = latency.p50 if latency else None, longest
    for name, (cost, budget) in costs.items():
        if cost is None:
            yield f"{name}: not measured, but registration.gate.budgets sets a budget"
        elif cost > budget:
            yield f"{name}: {cost:,.10g} is more than the budget of {budget:,.10g}"


def _parity(measured: Measurements, limits: ParityLimits) -> Iterator[str]:
    for file in (*FLOAT32, *INT8):
        parity = measured.parity.get(file)
        if parity is None or (file in INT8 and parity.auprc_loss is None):
            yield f"{file}: its difference from the network was not measured"
        elif file in FLOAT32 and parity.max_difference > limits.max_difference:
            yield (
                f"{file}: its probabilities differ from the network's by up to {parity.max_difference:.2g}, "
                f"more than {limits.max_difference:g}"
            )
        elif file in INT8 and parity.auprc_loss is not None and parity.auprc_loss > limits.auprc_loss:
            yield f"{file}: loses {parity.auprc_loss:.4f} micro AUPRC, more than {limits.auprc_loss:g}"


def _same_task(candidate: Measurements, champion: Evidence) -> Iterator[str]:
    if candidate.tags != champion.measurements.tags:
        yield f"its tags differ from those of version {champion.version}, the champion"
    old, new = champion.measurements.features, candidate.features
    if differing := [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]:
        yield f"its front-end differs from that of version {champion.version}, the champion: {', '.join(differing)}"


def _other_clips(candidate: pd.DataFrame, champion: pd.DataFrame) -> str | None:
    """Return how two sets of ground truth differ, or None; the order of clips and tags does not matter."""
    if set(candidate) != set(champion):
        return "its ground truth has other coarse tags"
    if set(candidate.index) != set(champion.index):
        shared = len(candidate.index.intersection(champion.index))
        return (
            f"it was evaluated on other clips ({len(candidate)} against {len(champion)}, {shared} in common); "
            "evaluate both on the same clips"
        )
    unequal = candidate.to_numpy() != champion.loc[candidate.index, list(candidate)].to_numpy()
    if count := int(unequal.any(axis=1).sum()):
        return f"the ground truth differs for {count} of {len(candidate)} clips; evaluate both on the same data"
    return None


def _regression(comparison: Comparison, limits: Regression) -> Iterator[str]:
    if comparison.probability_worse > limits.probability_worse:
        yield (
            f"the probability of being worse than version {comparison.champion}, the champion, is "
            f"{comparison.probability_worse:.3f}, more than {limits.probability_worse:g}"
        )
    if comparison.low < limits.difference_low:
        yield (
            f"it may be worse than version {comparison.champion}, the champion, by {-comparison.low:.4f} micro AUPRC, "
            f"more than {-limits.difference_low:g}"
        )
