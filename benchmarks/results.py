"""Write the tables and pictures of README.md and docs/device.md from what `make run` measured."""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
RUNTIMES = ("torch", "float32", "int8")


def networks(metrics: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The teacher, then every student."""
    yield "teacher", metrics["teacher"]
    yield from metrics["students"].items()


def readme(evaluation: Path, metrics: dict[str, Any], latency: dict[str, Any]) -> None:
    """Put the table of the last `make run` into README.md, and its picture beside it."""
    lines = [
        "| network | method | parameters | MACs | net, ms (torch / ONNX / int8) "
        "| audio → tags, ms (torch / ONNX / int8) | micro AUPRC [95 %] | macro AUPRC [95 %] | micro AUPRC, all seeds |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, one in networks(metrics):
        cells = [name, one.get("method", "labels"), f"{one['parameters']:,}", f"{one['macs'] / 1e6:.1f} M"]
        for what in ("network", "audio_to_tags"):
            cells.append(" / ".join(f"{latency[name][runtime][what]['p50']:.2f}" for runtime in RUNTIMES))
        for kind in ("micro_auprc", "macro_auprc"):
            value, low, high = (one["coarse"][kind + end] for end in ("", "_low", "_high"))
            cells.append(f"{value:.3f} [{low:.3f}, {high:.3f}]")
        several = len(one.get("seeds", ())) > 1
        cells.append(f"{one['seeds_mean']:.3f} ± {one['seeds_std']:.3f} ({len(one['seeds'])})" if several else "")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"{metrics['clips']} generated {metrics['split']} clips; {machine()}; latency on one thread."]
    for name in ("comparison", "frame_similarities"):
        shutil.copy(evaluation / "plots" / f"{name}.png", PICTURES / f"{name}.png")
    put(ROOT / "README.md", lines)


def device(evaluation: Path, metrics: dict[str, Any], latency: dict[str, Any]) -> None:
    """Put what students cost and lose on a device into docs/device.md."""
    lines = [
        "| network | file | net, ms p50 / p95 | audio → tags, ms p50 / p95 | kB, net / end to end "
        "| micro AUPRC lost to int8 | largest difference from PyTorch |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for name, one in networks(metrics):
        folder = evaluation / "networks" / f"{name}-seed-{one.get('best_seed')}" / "model" / "evaluation"
        # The teacher goes to no device: only its times are known.
        path = folder / "measurements.json"
        measured = json.loads(path.read_text()) if path.exists() else None
        for runtime, what in zip(RUNTIMES, ("in PyTorch", "ONNX float32", "ONNX int8"), strict=True):
            cells = [name, what]
            for part in ("network", "audio_to_tags"):
                cells.append(" / ".join(f"{latency[name][runtime][part][share]:.2f}" for share in ("p50", "p95")))
            if measured and runtime != "torch":
                parity = measured["parity"][f"{runtime}.onnx"]
                cells.append(" / ".join(f"{measured['bytes'][f'{k}{runtime}.onnx'] / 1000:.0f}" for k in ("net_", "")))
                cells.append(f"{parity['auprc_loss']:.4f}" if "auprc_loss" in parity else "")
                cells.append(f"{parity['max_difference']:.1e}")
            else:
                cells += [""] * 3
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"{metrics['clips']} {metrics['split']} clips of 10 s; {machine()}; one thread, all in turn."]
    put(ROOT / "docs" / "device.md", lines)


def put(path: Path, lines: list[str], mark: str = "results") -> None:
    """Replace what is between the marks."""
    before, start, rest = path.read_text().partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    path.write_text(f"{before}{start}{chr(10).join(lines)}\n{end}{after}")


def main() -> None:
    """Write them."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    PICTURES.mkdir(parents=True, exist_ok=True)
    evaluation = ROOT / "reports" / "evaluation"
    metrics, latency = (json.loads((evaluation / f"{name}.json").read_text()) for name in ("metrics", "latency"))
    readme(evaluation, metrics, latency)
    device(evaluation, metrics, latency)


if __name__ == "__main__":
    main()
