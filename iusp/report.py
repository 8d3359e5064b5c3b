"""The report: one HTML file that shows everything without a network connection."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from iusp.files import atomic
from iusp.taxonomy import Taxonomy

PICTURES = {
    "comparison": "Quality",
    "precision_recall": "Precision and recall, per category",
    "frame_similarities": "How similar the frames of a clip are to each other",
    "training": "Training",
}


def write_report(
    path: Path, metrics: Mapping[str, Any], latency: Mapping[str, Any], taxonomy: Taxonomy, plots: Path
) -> None:
    """Write `report.html` with its pictures inside.

    Args:
        path: to write.
        metrics: as in `metrics.json`.
        latency: as in `latency.json`.
        taxonomy: names the categories.
        plots: folder of the pictures.
    """
    environment = Environment(
        loader=PackageLoader("iusp"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
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
            ),
            encoding="utf-8",
        )
