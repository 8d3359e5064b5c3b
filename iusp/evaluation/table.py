"""The table of all networks, which the command line, the report and the Markdown file show."""

from collections.abc import Iterator

from iusp.artifacts.metrics import (
    Auprc,
    Data,
    Latencies,
    Metrics,
    NetworkTimes,
    StudentResult,
    TeacherResult,
    method_of,
)

LEFT = ("network", "method", "family")
"""Headings of the columns that are aligned to the left."""


def network_rows(metrics: Metrics, latencies: Latencies) -> Iterator[dict[str, str]]:
    """Yield the row of each network: its cells as text, by the heading of the column. The teacher comes first.

    Args:
        metrics: AUPRC, size and multiply-accumulates of every network.
        latencies: measured times of every network.
    """
    for name, network in metrics.networks.items():
        yield {"network": name} | _cells(network, latencies[name])


def _cells(network: TeacherResult | StudentResult, times: NetworkTimes) -> dict[str, str]:
    return {
        "method": method_of(network),
        "parameters": f"{network.parameters:,}",
        "MACs": f"{network.macs / 1e6:.1f} M",
        "ms/clip": f"{times.torch.network.p50:.2f}",
        "micro AUPRC": micro(network.coarse),
        "macro AUPRC": macro(network.coarse),
        "seeds": _spread(network),
    }


def micro(quality: Auprc) -> str:
    """Return the micro-averaged AUPRC and its interval as text."""
    return f"{quality.micro_auprc:.3f} [{quality.micro_auprc_low:.3f}, {quality.micro_auprc_high:.3f}]"


def macro(quality: Auprc) -> str:
    """Return the macro-averaged AUPRC and its interval as text."""
    return f"{quality.macro_auprc:.3f} [{quality.macro_auprc_low:.3f}, {quality.macro_auprc_high:.3f}]"


def _spread(network: TeacherResult | StudentResult) -> str:
    if isinstance(network, StudentResult) and len(network.seeds) > 1:
        return f"{network.seeds_mean:.3f} ± {network.seeds_std:.3f}"
    return ""


def title(metrics: Metrics) -> str:
    """Return the title of the table."""
    return f"Coarse tags of {metrics.clips} {metrics.split} clips, 95 % intervals over clips"


def provenance(data: Data) -> str:
    """Return one line with the title, the number of clips, the digest and the licence of the data."""
    clips = sum(data.clips.values())
    licence = data.license or "not stated"
    return f"Data: {data.title}, {clips:,} clips, digest {data.digest[:12]}, licence: {licence}."


def notes(metrics: Metrics) -> list[str]:
    """Return the lines to show below the table: the source of the data, and warnings."""
    warnings = [warning for warning in (metrics.data.warning, metrics.absent_note) if warning]
    return [provenance(metrics.data), *(f"Warning: {warning}" for warning in warnings)]
