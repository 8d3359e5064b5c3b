"""Simulate how often `iusp monitor` raises a false alarm and how often it detects a shift, for docs/release.md."""

import argparse
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.pages import DOCS, replace_section, table
from iusp.device.drift import Drift, compare

REFERENCE, TAGS = 300, 8
CLIPS, SHIFTS, TIMES = (20, 50, 100, 300, 1000), (0, 0.25, 0.5, 1, 2), 500
PSI, ALPHA = 0.2, 0.05


def scores(generator: np.random.Generator, clips: int, shift: float = 0) -> dict[str, NDArray[np.float64]]:
    """Draw scores of correlated tags; the logit of the first tag is shifted.

    Args:
        generator: source of randomness.
        clips: number of clips.
        shift: shift of the first tag, in standard deviations of its logit.
    """
    logits = 0.5 * generator.normal(size=(clips, 1)) + generator.normal(size=(clips, TAGS))
    logits[:, 0] += shift * math.sqrt(1.25)
    return {f"tag {index}": 1 / (1 + np.exp(1 - logits[:, index])) for index in range(TAGS)}


def simulate(clips: int, shift: float, times: int) -> list[list[Drift]]:
    """Compare new clips with a reference `times` times, by the default limits of `iusp monitor`."""
    generator = np.random.default_rng(clips)
    return [
        compare(scores(generator, REFERENCE), scores(generator, clips, shift), {}, PSI, ALPHA) for _ in range(times)
    ]


def share(simulations: list[list[Drift]], alarm: Callable[[Drift], bool]) -> float:
    """Return the share of simulations in which at least one tag raises an alarm."""
    return sum(any(map(alarm, drifts)) for drifts in simulations) / len(simulations)


def main() -> None:
    """Write the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    rows = []
    for clips in CLIPS:
        simulations = [simulate(clips, shift, TIMES) for shift in SHIFTS]
        shares = [share(found, lambda drift: drift.drifted) for found in simulations]
        shares.append(share(simulations[0], lambda drift: drift.p_value <= ALPHA))
        shares.append(share(simulations[0], lambda drift: drift.psi >= PSI))
        rows.append([str(clips), *(f"{share:.1%}" for share in shares)])
    shifts = [f"shift {shift:g}" if shift else "no shift" for shift in SHIFTS]
    head = ["new clips", *shifts, "no shift, KS test alone", "no shift, PSI alone"]
    note = (
        f"Each cell is the share of {TIMES} simulations in which at least one of {TAGS} tags has drifted, against a "
        f"reference of {REFERENCE} clips.\n"
    )
    replace_section(DOCS / "release.md", f"{table(head, rows, 0)}\n{note}", "drift")


if __name__ == "__main__":
    main()
