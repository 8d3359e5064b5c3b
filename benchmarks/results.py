"""Write the table and pictures of README.md from what `make run` measured."""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"


def networks(metrics: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The teacher, then every student."""
    yield "teacher", metrics["teacher"]
    yield from metrics["students"].items()


def readme() -> None:
    """Put the table of the last `make run` into README.md, and its picture beside it."""
    evaluation = ROOT / "reports" / "evaluation"
    metrics = json.loads((evaluation / "metrics.json").read_text())
    latency = json.loads((evaluation / "latency.json").read_text())
    lines = [
        "| network | method | parameters | MACs | net, ms | audio → tags, ms | micro AUPRC [95 %] | macro AUPRC [95 %] "
        "| micro AUPRC, all seeds |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, one in networks(metrics):
        cells = [name, one.get("method", "labels"), f"{one['parameters']:,}", f"{one['macs'] / 1e6:.1f} M"]
        cells += [f"{latency[name][what]:.2f}" for what in ("network", "audio_to_tags")]
        for kind in ("micro_auprc", "macro_auprc"):
            value, low, high = (one["coarse"][kind + end] for end in ("", "_low", "_high"))
            cells.append(f"{value:.3f} [{low:.3f}, {high:.3f}]")
        several = len(one.get("seeds", ())) > 1
        cells.append(f"{one['seeds_mean']:.3f} ± {one['seeds_std']:.3f} ({len(one['seeds'])})" if several else "")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"{metrics['clips']} generated {metrics['split']} clips; {machine()}; latency on one thread."]
    for name in ("comparison", "frame_similarities"):
        shutil.copy(evaluation / "plots" / f"{name}.png", PICTURES / f"{name}.png")
    path = ROOT / "README.md"
    before, start, rest = path.read_text().partition("<!-- results -->\n")
    _, end, after = rest.partition("<!-- /results -->")
    path.write_text(f"{before}{start}{chr(10).join(lines)}\n{end}{after}")


def main() -> None:
    """Write them."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    PICTURES.mkdir(parents=True, exist_ok=True)
    readme()


if __name__ == "__main__":
    main()
