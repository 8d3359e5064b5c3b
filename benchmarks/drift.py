"""Simulate how often `iusp monitor` raises a false alarm and how often it sees a shift; write it to docs/release.md."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iusp.device.drift import Drift, compare

PAGE = Path(__file__).parents[1] / "docs" / "release.md"
REFERENCE, TAGS = 300, 8
CLIPS, SHIFTS, TIMES = (20, 50, 100, 300, 1000), (0, 0.25, 0.5, 1, 2), 500
PSI, ALPHA = 0.2, 0.05


def scores(generator: np.random.Generator, clips: int, shift: float = 0) -> dict[str, NDArray[np.float64]]:
    """Scores of tags that go together, the first of which is shifted by some standard deviations of its logit."""
    logits = 0.5 * generator.normal(size=(clips, 1)) + generator.normal(size=(clips, TAGS))
    logits[:, 0] += shift * math.sqrt(1.25)
    return {f"tag {index}": 1 / (1 + np.exp(1 - logits[:, index])) for index in range(TAGS)}


def simulate(clips: int, shift: float, times: int) -> list[list[Drift]]:
    """Compare new clips with a reference, again and again; `Drift.drifted` is by the command's own limits."""
    generator = np.random.default_rng(clips)
    return [
        compare(scores(generator, REFERENCE), scores(generator, clips, shift), {}, PSI, ALPHA) for _ in range(times)
    ]


def share(simulations: list[list[Drift]], alarm: Callable[[Drift], bool]) -> float:
    """Return the share of simulations in which there is an alarm for any tag."""
    return sum(any(map(alarm, drifts)) for drifts in simulations) / len(simulations)


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
        simulations = [simulate(clips, shift, TIMES) for shift in SHIFTS]
        shares = [share(found, lambda drift: drift.drifted) for found in simulations]
        shares.append(share(simulations[0], lambda drift: drift.p_value <= ALPHA))
        shares.append(share(simulations[0], lambda drift: drift.psi >= PSI))
        lines.append(f"| {clips} | " + " | ".join(f"{share:.1%}" for share in shares) + " |")
    lines += ["", f"{TIMES} simulations each, {TAGS} tags, a reference of {REFERENCE} clips."]
    before, start, rest = PAGE.read_text().partition("<!-- drift -->\n")
    _, end, after = rest.partition("<!-- /drift -->")
    PAGE.write_text(f"{before}{start}{chr(10).join(lines)}\n{end}{after}")


if __name__ == "__main__":
    main()
