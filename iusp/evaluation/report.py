"""The report: one HTML file that shows everything without a network connection."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from iusp.data.taxonomy import Taxonomy
from iusp.evaluation.slices import MIN_CLIPS, MIN_POSITIVES, weakest
from iusp.io.files import atomic, read_json

PICTURES = {
    "comparison": "Quality",
    "precision_recall": "Precision and recall, per category",
    "frame_similarities": "How similar the frames of a clip are to each other",
    "training": "Training",
}
WEAK_GROUPS = 12


def write_report(
    path: Path,
    metrics: Mapping[str, Any],
    latency: Mapping[str, Any],
    taxonomy: Taxonomy,
    plots: Path,
    slices: pd.DataFrame,
    best: str,
) -> None:
    """Write `report.html` with its pictures inside.

    Args:
        path: to write.
        metrics: as in `metrics.json`.
        latency: as in `latency.json`.
        taxonomy: names the categories.
        plots: folder of the pictures.
        slices: as `slices.slice_scores` returns them.
        best: the student that they have intervals of.
    """
    environment = Environment(
        loader=PackageLoader("iusp.evaluation", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = {
        title: base64.b64encode((plots / f"{name}.png").read_bytes()).decode()
        for name, title in PICTURES.items()
        if (plots / f"{name}.png").exists()
    }
    with atomic(path) as temporary:
        temporary.write_text(
            environment.get_template("report.html").render(
                metrics=metrics,
                networks={"teacher": metrics["teacher"], **metrics["students"]},
                latency=latency,
                categories=taxonomy.coarse,
                pictures=pictures,
                best=best,
                weakest=weakest(slices, best, WEAK_GROUPS),
                groups=slices[slices["network"] == best],
                enough={"clips": MIN_CLIPS, "positives": MIN_POSITIVES},
            ),
            encoding="utf-8",
        )


def write_comparison(path: Path, metrics: Mapping[str, Any], latency: Mapping[str, Any]) -> None:
    """Write a Markdown table of all networks: quality beside cost.

    Args:
        path: to write.
        metrics: as in `metrics.json`.
        latency: as in `latency.json`.
    """
    lines = [
        f"Coarse tags of {metrics['clips']} {metrics['split']} clips, 95 % intervals over clips.",
        "",
        "| network | method | parameters | MACs | ms/clip | micro AUPRC | macro AUPRC |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for name, network in {"teacher": metrics["teacher"], **metrics["students"]}.items():
        cells = [name, network.get("method", "labels"), f"{network['parameters']:,}", f"{network['macs'] / 1e6:.1f} M"]
        cells.append(f"{latency[name]['torch']['network']['p50']:.2f}")
        for kind in ("micro_auprc", "macro_auprc"):
            value, low, high = (network["coarse"][kind + end] for end in ("", "_low", "_high"))
            cells.append(f"{value:.3f} [{low:.3f}, {high:.3f}]")
        lines.append(f"| {' | '.join(cells)} |")
    with atomic(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def headline_numbers(evaluation: Path) -> dict[str, float]:
    """Return the few numbers by which runs are compared, by network and name, such as `small.micro_auprc`.

    Args:
        evaluation: folder that the evaluation step wrote.

    Raises:
        InputError: it is not one.
    """
    metrics = read_json(evaluation / "metrics.json", "teacher", "students")
    latency = read_json(evaluation / "latency.json", "teacher")
    numbers: dict[str, float] = {}
    for name, network in {"teacher": metrics["teacher"], **metrics["students"]}.items():
        numbers |= {f"{name}.{kind}": network["coarse"][kind] for kind in ("micro_auprc", "macro_auprc")}
        numbers |= {f"{name}.{cost}": network[cost] for cost in ("parameters", "macs", "bytes")}
        numbers[f"{name}.milliseconds"] = latency[name]["torch"]["network"]["p50"]
    return numbers
