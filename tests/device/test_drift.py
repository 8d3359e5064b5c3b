"""Drift: against naive twins, false alarms and power by simulation, and the command as cron calls it."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.drift import share, simulate
from iusp.cli.main import main
from iusp.device.drift import BINS, Drift, compare, holm
from iusp.evaluation.predictions import write_predictions

pytestmark = pytest.mark.integration

TAGS = ["1_engine", "8_dog"]
# Few different values, so that ties, within and between, are the rule.
numbers = st.lists(st.integers(0, 12).map(lambda value: value / 8), min_size=1, max_size=60).map(np.array)


def naive_index(reference: list[float], new: list[float]) -> float:
    ordered = sorted(reference)
    deciles = [ordered[math.ceil(place * len(ordered) / BINS) - 1] for place in range(1, BINS)]
    belongs: list[Callable[[float], bool]] = []
    below = -math.inf
    for edge in sorted(set(deciles)):
        if deciles.count(edge) > 1:
            belongs.append(lambda value, low=below, high=edge: low < value < high)
            belongs.append(lambda value, at=edge: value == at)
        else:
            belongs.append(lambda value, low=below, high=edge: low < value <= high)
        below = edge
    belongs.append(lambda value, low=below: value > low)
    total = 0.0
    for inside in belongs:
        p = (sum(map(inside, reference)) + 0.5) / (len(reference) + 0.5 * len(belongs))
        q = (sum(map(inside, new)) + 0.5) / (len(new) + 0.5 * len(belongs))
        total += (q - p) * math.log(q / p)
    return total


def naive_ks(reference: list[float], new: list[float]) -> float:
    def share(values: list[float], at: float) -> float:
        return sum(value <= at for value in values) / len(values)

    return max(abs(share(reference, at) - share(new, at)) for at in reference + new)


def one(reference: NDArray[np.float64], new: NDArray[np.float64], psi: float = 0.2, alpha: float = 0.05) -> Drift:
    (drift,) = compare({"x": reference}, {"x": new}, {"x": 0.5}, psi, alpha)
    return drift


@given(numbers, numbers)
def test_both_statistics_are_those_of_their_naive_twins(
    reference: NDArray[np.float64], new: NDArray[np.float64]
) -> None:
    drift = one(reference, new)
    assert drift.psi == pytest.approx(naive_index(reference.tolist(), new.tolist()), abs=1e-12)
    assert drift.ks == pytest.approx(naive_ks(reference.tolist(), new.tolist()), abs=1e-12)
    assert 0 <= drift.p_value <= 1
    assert drift.reference.above == sum(value >= 0.5 for value in reference) / len(reference)


@given(numbers, numbers, st.floats(0.1, 10), st.floats(-5, 5))
def test_units_do_not_matter(
    reference: NDArray[np.float64], new: NDArray[np.float64], scale: float, shift: float
) -> None:
    first, second = one(reference, new), one(reference * scale + shift, new * scale + shift)
    assert (first.psi, first.ks, first.p_value) == pytest.approx((second.psi, second.ks, second.p_value), abs=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0, 0.9))
def test_holm_rejects_what_its_procedure_rejects(p_values: list[float], alpha: float) -> None:
    rejected = set()
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        if (len(p_values) - step) * p_values[index] > alpha:
            break
        rejected.add(index)
    assert {index for index, value in enumerate(holm(p_values)) if value <= alpha} == rejected


@pytest.mark.parametrize(("then", "now"), [(0, 1), (1, 0), (0.5, 0.4999), (0, 1e-300)])
def test_a_constant_that_becomes_another_has_drifted(then: float, now: float) -> None:
    assert one(np.full(50, then), np.full(50, now)).drifted
    assert one(np.full(50, then), np.full(50, then)).psi == pytest.approx(0)


@pytest.mark.parametrize("clips", [20, 50, 300])
def test_false_alarms_are_as_rare_as_they_should_be(clips: int) -> None:
    simulations = simulate(clips, 0, 100)
    # 100 times with a chance of 0.05 or less: more than 11 happen in one of 200 simulations.
    assert share(simulations, lambda drift: drift.drifted) <= 0.11
    assert share(simulations, lambda drift: drift.p_value <= 0.05) <= 0.11
    # With few clips, the index alone is large by chance.
    assert (share(simulations, lambda drift: drift.psi >= 0.2) > 0.5) == (clips < 300)


@pytest.mark.parametrize(("clips", "shift", "power"), [(50, 1, 0.9), (300, 1, 0.99), (20, 2, 0.9)])
def test_what_matters_is_seen(clips: int, shift: float, power: float) -> None:
    assert share(simulate(clips, shift, 100), lambda drift: drift.drifted) >= power


def test_what_does_not_matter_is_no_alarm() -> None:
    generator = np.random.default_rng(0)
    drift = one(generator.normal(size=20_000), generator.normal(0.1, size=20_000))
    assert drift.p_value < 1e-9
    assert not drift.drifted


# The command ----------------------------------------------------------------------------------------------------------


def predictions(path: Path, seed: int, shift: float = 0, level: float = -30, clips: int = 200) -> Path:
    """Scores of two tags, of which the second may shift, and the level of each clip."""
    generator = np.random.default_rng(seed)
    values = 1 / (1 + np.exp(-generator.normal([-1, shift - 1], 1, size=(clips, 2))))
    write_predictions(path, [f"{clip}.wav" for clip in range(clips)], values, TAGS)
    header, *rows = path.read_text().splitlines()
    lines = [f"{row},{level + generator.normal():.2f},somewhere" for row in rows]
    path.write_text("\n".join([f"{header},level_dbfs,place", *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("predictions")
    files = {
        "reference": predictions(folder / "reference.csv", 0),
        "same": predictions(folder / "same.csv", 1),
        "more": predictions(folder / "more.csv", 2),
        "other": predictions(folder / "other.csv", 3, shift=1.5),
        "quiet": predictions(folder / "quiet.csv", 4, level=-40),
        "device": folder / "device.json",
    }
    files["device"].write_text(json.dumps({"thresholds": {TAGS[0]: 0.3, TAGS[1]: 0.6}}))
    return files


def monitor(files: dict[str, Path], *arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["monitor", "--reference", str(files["reference"]), *map(str, arguments)])


def test_exit_status_tells_cron(files: dict[str, Path]) -> None:
    for names, status, drifted in (
        (("same", "more"), 0, []),
        (("other",), 1, ["8_dog"]),
        (("quiet",), 1, ["level_dbfs"]),
        (("other", "quiet"), 1, ["8_dog", "level_dbfs"]),
    ):
        done = monitor(files, *(files[name] for name in names))
        assert done.exit_code == status, done.output
        lines = [line.split() for line in done.output.splitlines() if "→" in line]
        assert [line[1] for line in lines] == [*TAGS, "level_dbfs"]
        assert [line[1] for line in lines if "drifted" in line] == drifted
        assert f"{200 * len(names)} new clips against 200 of the reference" in done.output


def test_json_has_all_that_the_table_has(files: dict[str, Path]) -> None:
    done = monitor(files, files["other"], "--device", files["device"], "--json")
    assert done.exit_code == 1
    engine, dog, level = json.loads(done.output)
    assert (engine["threshold"], dog["threshold"], level["threshold"]) == (0.3, 0.6, None)
    assert [one["drifted"] for one in (engine, dog, level)] == [False, True, False]
    column = np.loadtxt(files["other"], delimiter=",", skiprows=1, usecols=2)
    assert dog["new"]["count"] == 200
    assert dog["new"]["mean"] == pytest.approx(column.mean())
    assert dog["new"]["quantiles"] == pytest.approx(np.quantile(column, [0.1, 0.5, 0.9]).tolist())
    assert dog["new"]["above"] == pytest.approx((column >= 0.6).mean())
    assert level["new"]["above"] is None


def test_limits_are_the_users(files: dict[str, Path]) -> None:
    assert monitor(files, files["same"], "--psi", "0", "--alpha", "1").exit_code == 1
    assert monitor(files, files["other"], "--psi", "100").exit_code == 0
    assert monitor(files, files["other"], "--alpha", "0").exit_code == 0


def test_a_picture(files: dict[str, Path], tmp_path: Path) -> None:
    for name in ("first", "second"):
        monitor(files, files["other"], files["quiet"], "--picture", tmp_path / f"{name}.png")
    content = (tmp_path / "first.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert content == (tmp_path / "second.png").read_bytes()


def spoilt(change: Callable[[str], str]) -> Callable[[dict[str, Path], Path], list[Any]]:
    def make(files: dict[str, Path], path: Path) -> list[Any]:
        path.write_text(change(files["same"].read_text()))
        return [path]

    return make


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda files, path: [path], "No such file or directory; give a predictions CSV"),
        (
            spoilt(lambda text: text.replace("8_dog", "9_cat", 1)),
            "lacks the column 8_dog; compare predictions of the same",
        ),
        (spoilt(lambda text: text.replace("audio_filename", "clip", 1)), "lacks the column audio_filename"),
        (spoilt(lambda text: text.replace("level_dbfs", "8_dog", 1)), "column 8_dog occurs twice"),
        (spoilt(lambda text: text.replace("level_dbfs", "\x1b[2J", 1)), r"column '\x1b[2J' cannot be printed"),
        (spoilt(lambda text: text.replace(".wav,0.", ".wav,7.", 1)), "line 2, column 1_engine: '7."),
        (spoilt(lambda text: text.replace(".wav,0.", ".wav,nan", 1)), "line 2, column 1_engine: 'nan"),
        (spoilt(lambda text: text.replace(",somewhere", "", 1)), "line 2 has 4 cells, but the header has 5"),
        (spoilt(lambda text: text.splitlines()[0]), "has no predictions"),
        (lambda files, path: [files["same"], "--device", path], "no such file"),
        (lambda files, path: [files["same"], "--device", files["reference"]], "not what its step writes"),
    ],
)
def test_bad_input_is_one_line(
    files: dict[str, Path], tmp_path: Path, make: Callable[[dict[str, Path], Path], list[Any]], words: str
) -> None:
    done = monitor(files, *make(files, tmp_path / "new"))
    assert done.exit_code == 2
    assert words in done.output
    assert done.output.startswith("iusp: ")
    assert done.output.count("\n") == 1


def test_thresholds_that_are_none(files: dict[str, Path], tmp_path: Path) -> None:
    for thresholds in ([], {"1_engine": "0.5"}, None):
        (tmp_path / "device.json").write_text(json.dumps({"thresholds": thresholds}))
        done = monitor(files, files["same"], "--device", tmp_path / "device.json")
        assert done.exit_code == 2
        assert "thresholds must be numbers by tag" in done.output


def test_nothing_to_compare(files: dict[str, Path], tmp_path: Path) -> None:
    reference = tmp_path / "reference.csv"
    reference.write_text("audio_filename,level\na.wav,-3\n")
    done = CliRunner().invoke(main, ["monitor", "--reference", str(reference), str(files["same"])])
    assert done.exit_code == 2
    assert f"has no column of numbers in common with {reference}" in done.output
