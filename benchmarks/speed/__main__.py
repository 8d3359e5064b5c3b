"""Measure how fast everything is, and write docs/performance.md.

python -m benchmarks.speed               run all scripts
python -m benchmarks.speed features …    run some scripts; the last results of the others are kept
python -m benchmarks.speed --render      run none, only write the page
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
from benchmarks.pages import DOCS, ROOT, table, write_page
from iusp.io.files import write_json

RECORD = Path(__file__).with_name("performance.json")
LIBRARIES = ("torch", "numpy", "scipy", "librosa", "soxr", "soundfile")

SCRIPTS = {
    "features": """## Features

From an audio file (44.1 kHz, 16-bit WAV) to log-mel frames, one clip after another on one core. The alternative is what
a user would write: `librosa.load(path, sr=16000)` and `librosa.feature.melspectrogram` with the same window, hop and
bands. The lower bound is the time of the unavoidable operations alone; its resampler is soxr's, as in librosa. Our
resampler has a steeper filter and takes longer.""",
    "distillation": """## Distillation

This section compares the training time of a student on one thread in three cases. The student learns from labels alone,
from labels and the stored knowledge of the teacher, or from labels and the teacher in the training loop
(`distillation.knowledge: online`). A view is a clip after one random augmentation.""",
    "training": """## Training step

A step is the forward pass, the backward pass, AdamW and the input pipeline, on one thread. *Default float32* is the
default of PyTorch: float32 numbers in contiguous memory. *Channels-last* is another order of the numbers in memory.
*Plain* and *CNN-LSTM* are families of networks. The gain of bfloat16 depends on the instruction set of the processor,
which is named below the tables. The instruction set `amx_bf16` multiplies matrices in bfloat16; `avx512_bf16`
multiplies only vectors in bfloat16.""",
    "scoring": """## Score and bootstrap

This section compares the function `score`, which computes the metric, with loops over the thresholds. For each
threshold, the textbook loop counts the true and false positives over all clips and tags. A faster loop counts each tag
once and adds the counts.""",
    "overhead": """## The whole pipeline

This section measures `make run` with the settings of params.yaml. No step has a cached result.""",
    "growth": """## Growth

The same steps run on 250, 1,000 and 4,000 clips. From 250 to 1,000 clips, 750 clips are added. From 1,000 to 4,000
clips, 3,000 clips are added, which is 4 times as many. If the time grows in proportion to the number of clips, the
ratio is 1.""",
    "gpu": """## On a GPU
""",
}


def measure(name: str) -> dict[str, Any]:
    """Run a script in a process of its own, and return what it found."""
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
    """Return a number with three digits, and its unit."""
    return f"{value:,.0f}{unit}" if abs(value) >= 100 else f"{value:.3g}{unit}"


def met(figure: dict[str, Any]) -> bool:
    """Return whether a figure reaches its target."""
    value, target = figure["value"], figure["target"]
    return bool(value <= target if figure["at_most"] else value >= target)


def figures(found: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the table rows of one script."""
    for figure in found["figures"]:
        verdict = target = ""
        if figure["target"] is not None:
            target = f"{'≤' if figure['at_most'] else '≥'} {number(figure['target'], figure['unit'])}"
            verdict = "met" if met(figure) else "**missed**"
        spread = "" if figure["low"] == figure["high"] else f"{figure['low']:.3g} – {figure['high']:.3g}"
        yield [figure["what"], target, number(figure["value"], figure["unit"]), spread, verdict]


def page(record: dict[str, Any]) -> str:
    """Return docs/performance.md."""
    aims = [
        figure
        for name in SCRIPTS
        if name in record
        for figure in record[name]["figures"]
        if figure["target"] is not None
    ]
    missed = [figure["what"] for figure in aims if not met(figure)]
    text = (
        "# Performance\n\nThis page says how fast each part is, compared with the usual alternative, and whether it "
        f"meets its target. `make bench` writes it.\n\n{len(aims) - len(missed)} of {len(aims)} targets are met."
    )
    text += " These targets are missed:\n\n" + "\n".join(f"- {what}" for what in missed) + "\n" if missed else "\n"
    text += (
        "\nOur code and the alternative take turns on the same core with the same clips. A ratio (×) is the quotient "
        "of two median CPU times. The table names the dividend and the divisor: *A ÷ B* is the time of A divided by "
        "the time of B. In a turn, each of them is measured "
        "once. The spread is the smallest and the largest ratio of a single turn.\n"
    )
    return text + "".join(
        section(introduction, record[name]) for name, introduction in SCRIPTS.items() if name in record
    )


def section(introduction: str, found: dict[str, Any]) -> str:
    """Return the part of the page that one script measured."""
    text = f"\n{introduction.strip()}\n"
    if found["figures"]:
        text += "\n" + table(["measured", "target", "value", "spread", "verdict"], figures(found))
    text += "".join(f"\n{note[0].upper()}{note[1:]}\n" for note in found["notes"])
    for caption, (head, *rows) in found["profiles"].items():
        text += f"\nProfile: {caption}\n\n{table(head, rows)}"
    libraries = ", ".join(f"{library} {number}" for library, number in found["versions"].items() if library != "torch")
    if not found["figures"] and any(note.startswith("Not measured") for note in found["notes"]):
        return text
    return f"{text}\nMeasured on {found['machine']}, with {libraries}; {found['date']}.\n"


def main() -> None:
    """Run the scripts and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="*", help=", ".join(SCRIPTS))
    parser.add_argument("--render", action="store_true", help="run no script; write the page from the last results")
    arguments = parser.parse_args()
    if unknown := set(arguments.scripts) - set(SCRIPTS):
        parser.error(f"no such script: {', '.join(sorted(unknown))}")
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for name in [] if arguments.render else arguments.scripts or SCRIPTS:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        record[name] = measure(name)
        write_json(RECORD, record)
    write_page(DOCS / "performance.md", page(record))


if __name__ == "__main__":
    main()
