"""Simulate how often `iusp monitor` raises a false alarm and how often it sees a shift; write it to docs/release.md."""

import argparse
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iusp.drift import compare

PAGE = Path(__file__).parents[1] / "docs" / "release.md"
REFERENCE, TAGS = 300, 8
CLIPS, SHIFTS, TIMES = (20, 50, 100, 300, 1000), (0, 0.25, 0.5, 1, 2), 500


def scores(generator: np.random.Generator, clips: int, shift: float = 0) -> dict[str, NDArray[np.float64]]:
    """Scores of tags that go together, the first of which is shifted by some standard deviations of its logit."""
    logits = 0.5 * generator.normal(size=(clips, 1)) + generator.normal(size=(clips, TAGS))
    logits[:, 0] += shift * math.sqrt(1.25)
    return {f"tag {index}": 1 / (1 + np.exp(1 - logits[:, index])) for index in range(TAGS)}


def alarms(clips: int, shift: float, psi: float, alpha: float, times: int) -> float:
    """Return the share of simulations in which any tag has drifted."""
    generator = np.random.default_rng(clips)
    found = 0
    for _ in range(times):
        drifts = compare(scores(generator, REFERENCE), scores(generator, clips, shift), {}, psi, alpha)
        found += any(drift.drifted for drift in drifts)
    return found / times


def main() -> None:
    """Write the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    lines = [
        "| new clips | "
        + " | ".join(f"shift {shift:g}" if shift else "no shift" for shift in SHIFTS)
        + " | no shift, test alone | no shift, index alone |",
        "|--:" * (len(SHIFTS) + 3) + "|",
    ]
    for clips in CLIPS:
        shares = [alarms(clips, shift, 0.2, 0.05, TIMES) for shift in SHIFTS]
        shares += [alarms(clips, 0, 0, 0.05, TIMES), alarms(clips, 0, 0.2, 1, TIMES)]
        lines.append(f"| {clips} | " + " | ".join(f"{share:.1%}" for share in shares) + " |")
    lines += ["", f"{TIMES} simulations each, {TAGS} tags, a reference of {REFERENCE} clips."]
    before, start, rest = PAGE.read_text().partition("<!-- drift -->\n")
    _, end, after = rest.partition("<!-- /drift -->")
    PAGE.write_text(f"{before}{start}{chr(10).join(lines)}\n{end}{after}")


if __name__ == "__main__":
    main()
