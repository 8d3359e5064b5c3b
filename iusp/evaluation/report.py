"""Write the report, which is one HTML file that can be read offline, and a Markdown table of all networks."""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from iusp.artifacts.evaluation import EvaluationFolder
from iusp.artifacts.metrics import Auprc, Latencies, Metrics, Percentiles
from iusp.data.taxonomy import Taxonomy
from iusp.evaluation.slices import MIN_CLIPS, MIN_POSITIVES, weakest
from iusp.evaluation.table import LEFT, macro, micro, network_rows, provenance, title
from iusp.io.files import atomic

PICTURES = {
    "comparison": "Quality",
    "precision_recall": "Precision and recall, per category",
    "frame_similarities": "Similarity of the frames of a clip",
    "training": "Training",
}
WEAK_GROUPS = 12


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        rows: rows of the table. Each row has its cells as text, by heading; all rows have the same headings.
        bold: indices of the rows that are shown in bold.
    """

    rows: list[dict[str, str]]
    bold: set[int] = field(default_factory=set)

    @property
    def headings(self) -> list[str]:
        """Headings of the columns."""
        return list(self.rows[0])


@dataclass(frozen=True)
class Weakness:
    """The groups of clips on which the best student is weak.

    Attributes:
        student: name of the student.
        overall: micro-averaged AUPRC of the student on all clips.
        groups: number of groups.
        small: number of groups that are too small to be scored.
        table: table of the weakest groups; None if no group could be scored.
    """

    student: str
    overall: float
    groups: int
    small: int
    table: Table | None


def write_report(
    folder: EvaluationFolder, metrics: Metrics, latencies: Latencies, taxonomy: Taxonomy, slices: pd.DataFrame
) -> None:
    """Write `report.html`, which contains the pictures.

    Args:
        folder: folder of the evaluation, which already contains the picture files.
        metrics: quality and cost of every network.
        latencies: measured times of every network.
        taxonomy: names of the categories.
        slices: table that `slice_scores` returned.
    """
    environment = Environment(
        loader=PackageLoader("iusp.evaluation", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("report.html").render(
        metrics=metrics,
        provenance=provenance(metrics.data),
        left=LEFT,
        networks=Table(list(network_rows(metrics, latencies)), bold={0}),
        times=Table(list(_time_rows(metrics, latencies)), bold={0}),
        coarse=_category_table({name: one.coarse for name, one in metrics.networks.items()}, taxonomy),
        fine=_category_table({name: one.fine for name, one in metrics.networks.items() if one.fine}, taxonomy),
        weakness=_weakness(metrics, slices),
        enough={"clips": MIN_CLIPS, "positives": MIN_POSITIVES},
        pictures=_pictures(folder),
    )
    with atomic(folder.report) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _pictures(folder: EvaluationFolder) -> dict[str, str]:
    """Return each picture that was drawn, in base64, by its title."""
    paths = {title: folder.plots / f"{name}.png" for name, title in PICTURES.items()}
    return {title: base64.b64encode(path.read_bytes()).decode() for title, path in paths.items() if path.exists()}


def _time_rows(metrics: Metrics, latencies: Latencies) -> Iterator[dict[str, str]]:
    def shown(times: Percentiles) -> str:
        return f"{times.p50:.2f} ({times.p95:.2f})"

    for name in metrics.networks:
        times = latencies[name]
        row = {"network": name}
        for runtime, measured in (("PyTorch", times.torch), ("float32", times.float32), ("int8", times.int8)):
            row |= {
                f"{runtime}: network": shown(measured.network),
                f"{runtime}: from audio": shown(measured.audio_to_tags),
            }
        yield row


def _category_table(quality: Mapping[str, Auprc], taxonomy: Taxonomy) -> Table | None:
    """Return a table with one row for each average and each category, and one column for each network."""
    if not quality:
        return None
    rows = [
        {"AUPRC": "micro average"} | {name: micro(one) for name, one in quality.items()},
        {"AUPRC": "macro average"} | {name: macro(one) for name, one in quality.items()},
    ]
    rows += [
        {"AUPRC": tag} | {name: f"{one.classwise[category]:.3f}" for name, one in quality.items()}
        for category, tag in taxonomy.coarse.items()
        if all(category in one.classwise for one in quality.values())
    ]
    return Table(rows)


def _weakness(metrics: Metrics, slices: pd.DataFrame) -> Weakness | None:
    best = metrics.best_student
    groups = slices[slices["network"] == best]
    if groups.empty:
        return None
    overall = metrics.students[best].coarse.micro_auprc
    weak = weakest(slices, best, WEAK_GROUPS)
    rows = [
        {
            "group": f"{str(row['by']).replace('sensor_id', 'sensor')} {row['group']}",
            "clips": str(row["clips"]),
            "positive tags": str(row["positives"]),
            "share": f"{row['positive_share']:.3f}",
            "micro AUPRC": f"{row['micro_auprc']:.3f} [{row['low']:.3f}, {row['high']:.3f}]",
        }
        for row in weak
    ]
    bold = {number for number, row in enumerate(weak) if row["high"] < overall}
    return Weakness(
        student=best,
        overall=overall,
        groups=len(groups),
        small=int(groups["micro_auprc"].isna().sum()),
        table=Table(rows, bold) if rows else None,
    )


def write_comparison(path: Path, metrics: Metrics, latencies: Latencies) -> None:
    """Write a Markdown table with the quality and the cost of all networks.

    Args:
        path: file to write.
        metrics: quality and cost of every network.
        latencies: measured times of every network.
    """
    rows = list(network_rows(metrics, latencies))
    headings = list(rows[0])
    lines = [f"{title(metrics)}. {provenance(metrics.data)}", ""]
    for warning in filter(None, (metrics.data.warning, metrics.absent_note)):
        lines += [f"**Warning.** {warning}", ""]
    lines += [f"| {' | '.join(headings)} |", f"|{'|'.join('---' if name in LEFT else '--:' for name in headings)}|"]
    lines += [f"| {' | '.join(row.values())} |" for row in rows]
    with atomic(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


HEADLINES = ("coarse.micro_auprc", "coarse.macro_auprc", "parameters", "macs", "bytes")


def headline_numbers(evaluation: EvaluationFolder) -> dict[str, float]:
    """Return the numbers that are used to compare runs, under the names that `dvc metrics show` prints.

    Args:
        evaluation: folder that the evaluation step wrote.

    Raises:
        InputError: the folder holds no evaluation.
    """
    metrics = evaluation.metrics
    latencies = evaluation.latencies(*metrics.networks)
    numbers = {name: value for name, value in metrics.numbers.items() if name.endswith(HEADLINES)}
    return numbers | {f"{name}.torch.network.p50": latencies[name].torch.network.p50 for name in metrics.networks}
