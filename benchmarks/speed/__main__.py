"""Measure how fast everything is, and write docs/performance.md.

python -m benchmarks.speed               all scripts
python -m benchmarks.speed features …    some; the others' last results are kept
python -m benchmarks.speed --render      only write the page again
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from iusp.io.files import write_json

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "benchmarks" / "speed" / "performance.json"
PAGE = ROOT / "docs" / "performance.md"
LIBRARIES = ("torch", "numpy", "scipy", "librosa", "soxr", "soundfile")

SCRIPTS = {
    "features": """## Features

From an audio file (44.1 kHz, 16 bit WAV) to log-mel frames, clip after clip on one core. The rival is what a user would
write: `librosa.load(path, sr=16000)` and `librosa.feature.melspectrogram` with the same window, hop and bands. The
front-end takes its spectra at the clip's own rate, so the limit of its own way has no resampling in it; the limit of
the usual way has (soxr, as in librosa).""",
    "distillation": """## Distillation

Epochs of a student on one thread, with the teacher's stored knowledge, with labels alone, and with the teacher in the
loop (`distillation.knowledge: online`).""",
    "training": """## Training step

Forward, backward, AdamW and the input pipeline on one thread. Plain is what PyTorch does by itself: float32 and
contiguous. What bfloat16 gains hangs on the processor, which the machine's line names: `amx_bf16` multiplies matrices
in it, `avx512_bf16` vectors only.""",
    "scoring": """## Score and bootstrap

Against the textbook: for each threshold, for each clip and tag, count.""",
    "overhead": """## The whole pipeline

`make run` with the settings of params.yaml, from nothing.""",
    "growth": """## Growth

The same steps on more and more clips.""",
    "gpu": """## On a GPU
""",
}


def measure(name: str) -> dict[str, Any]:
    """Run a script in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.speed.{name}"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {library: version(library) for library in LIBRARIES},
    }


def number(value: float, unit: str) -> str:
    """Write three digits and the unit."""
    return f"{value:,.0f}{unit}" if abs(value) >= 100 else f"{value:.3g}{unit}"


def table(rows: list[list[str]]) -> str:
    """Write a table; the first row is its head."""
    head, *body = rows
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def met(one: dict[str, Any]) -> bool:
    """Tell whether a figure reaches its target."""
    return bool(one["value"] <= one["target"] if one["at_most"] else one["value"] >= one["target"])


def figures(found: dict[str, Any]) -> Iterator[list[str]]:
    """The table's rows of one script."""
    for one in found["figures"]:
        verdict = target = ""
        if one["target"] is not None:
            target = f"{'≤' if one['at_most'] else '≥'} {number(one['target'], one['unit'])}"
            verdict = "met" if met(one) else "**missed**"
        spread = "" if one["low"] == one["high"] else f"{one['low']:.3g} – {one['high']:.3g}"
        yield [one["what"], target, number(one["value"], one["unit"]), spread, verdict]


def page(record: dict[str, Any]) -> str:
    """Return docs/performance.md."""
    aims = [one for name in SCRIPTS if name in record for one in record[name]["figures"] if one["target"] is not None]
    missed = [one["what"] for one in aims if not met(one)]
    text = "# Performance\n\nWritten by `make bench`; not by hand.\n\n"
    text += f"Of {len(aims)} targets {len(aims) - len(missed)} are met."
    text += " Missed:\n\n" + "\n".join(f"- {what}" for what in missed) + "\n" if missed else "\n"
    text += (
        "\nWhat is compared takes turns on the same core, with the same clips. Ratios are of medians of CPU time; the "
        "spread is the least and the greatest of the pairs.\n"
    )
    for name, introduction in SCRIPTS.items():
        if name not in record:
            continue
        found = record[name]
        text += f"\n{introduction.strip()}\n"
        if found["figures"]:
            text += "\n" + table([["measured", "target", "value", "spread", ""], *figures(found)]) + "\n"
        text += "".join(f"\n{note}\n" for note in found["notes"])
        for caption, rows in found["profiles"].items():
            text += f"\nProfile: {caption}\n\n{table(rows)}\n"
        libraries = ", ".join(f"{library} {one}" for library, one in found["versions"].items() if library != "torch")
        text += f"\n{found['machine']}, {libraries}; {found['date']}.\n"
    return text


def main() -> None:
    """Measure what is asked for and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="*", help=", ".join(SCRIPTS))
    parser.add_argument("--render", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    if unknown := set(arguments.scripts) - set(SCRIPTS):
        parser.error(f"no such script: {', '.join(sorted(unknown))}")
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for name in [] if arguments.render else arguments.scripts or SCRIPTS:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        record[name] = measure(name)
        write_json(RECORD, record)
    PAGE.write_text(page(record))


if __name__ == "__main__":
    main()
