import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks.science.report import results_page, write
from benchmarks.science.statistics import fieller, gap_closed, mean_of, relative_gain
from benchmarks.science.study import COLUMNS, METHODS, read_study
from iusp.device.drift import holm
from iusp.errors import InputError

TEACHERS = {"embedded": 0.81, "esc-ust": 0.55}
SIZES = {"small": (5_568, 0.60), "medium": (21_496, 0.66), "lstm": (60_000, 0.68)}
# Gain over labels on test; where the effect is near its spread, a result is null.
GAINS = {
    **{"labels": 0.0, "kd": 0.05, "sp": 0.02, "iusp": 0.04, "iusp+kd": 0.07, "iusp_centred": 0.05, "iusp_scales": 0.04},
    **{"vic": 0.0, "inter": 0.03, "skill": 0.02, "non_target": 0.045, "multilevel": 0.05, "attention": -0.04},
    **{"fitnet": -0.01, "consistency": 0.0},
}


def run(generator, stage, data, student, method, seed, base, gain=0.0, **changed):
    parameters, level = SIZES.get(student, (305_992, 0.81))
    score = level - 0.2 * (data == "esc-ust") + base + gain + 0.004 * generator.normal()
    weights = {} if method in ("labels", "consistency") else dict.fromkeys(method.split("+"), 30)
    row = {
        "stage": stage,
        "data": data,
        "student": student,
        "architecture": "cnn_lstm" if student == "lstm" else "plain",
        "parameters": parameters,
        "method": method,
        "variant": "",
        "weights": json.dumps(weights),
        "augmentation": "light",
        "epochs": 20,
        "batch_size": 32,
        "learning_rate": 0.01,
        "seed": seed,
        "kept_epoch": 18,
        "validate_micro_auprc": score + 0.01 + 0.002 * generator.normal(),
        "micro_auprc": score,
        "macro_auprc": score - 0.02,
        "cpu_seconds": 13 + 20 * gain + generator.normal() / 10,
    }
    return row | changed


def grid(data=tuple(TEACHERS), sizes=tuple(SIZES), seeds=range(5), whole=True, gains=GAINS):
    """Runs with known effects, as `make bench-science` writes them; the same every time."""
    generator = np.random.default_rng(0)
    rows = []
    for name in data:
        rows.append(run(generator, "teacher", name, "teacher", "labels", 0, 0, micro_auprc=TEACHERS[name]))
        # What seeds share: initialisation and batches.
        shared = {(size, seed): 0.01 * generator.normal() for size in sizes for seed in seeds}

        def runs(stage, size, method, gain, name=name, shared=shared, **changed):
            return [
                run(generator, stage, name, size, method, seed, shared[size, seed], gain, **changed) for seed in seeds
            ]

        for size in sizes:
            for method, gain in gains.items():
                rows += runs("main", size, method, gain)
        if not whole:
            continue
        for method, gain in gains.items():
            for value in (3, 10, 30, 100):
                changed = {"weights": json.dumps(dict.fromkeys(method.split("+"), value))}
                if method in ("labels", "consistency"):
                    changed = {"learning_rate": value / 3000}
                # On validate, 30 is best.
                score = 0.5 + gain - 0.01 * abs(math.log10(value / 30))
                rows.append(
                    run(generator, "search", name, "small", method, 100, 0, validate_micro_auprc=score, **changed)
                )
        for regime in ({"augmentation": "clean"}, {"augmentation": "heavy"}, {"epochs": 60}, {"batch_size": 64}):
            for method in ("labels", "kd", "sp", "iusp"):
                # SP catches up with a long budget.
                gain = gains["iusp" if method == "sp" and "epochs" in regime else method]
                rows += runs("regime", "small", method, gain, **regime)
        for method, variant, gain in (("iusp", "decay", 0.04), ("kd", "ensemble", 0.08), ("kd", "clean knowledge", 0)):
            rows += runs("variant", "small", method, gain, variant=variant)
    return pd.DataFrame(rows)[list(COLUMNS)]


def page(table, tmp_path):
    table.to_csv(tmp_path / "science.csv", index=False)
    return results_page(read_study(tmp_path / "science.csv"), "A machine")


def part(text, title):
    """What stands below a title, or below bold words, up to the next."""
    mark = "**" if title.startswith("**") else title.partition(" ")[0] + " "
    return text.partition(f"{title}\n")[2].partition(f"\n{mark}")[0]


def cells(text, *start):
    """The cells of a table's row, after those that it starts with."""
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines()]
    return next(row[len(start) :] for row in rows if row[: len(start)] == list(start))


# Statistics


def test_mean_by_hand():
    one = mean_of([1.0, 2.0, 3.0, 4.0])
    # sd² = 5/3, standard error = √(5/12), t(3) = 3.182446 of any table.
    assert (one.n, one.mean, one.sd) == (4, 2.5, pytest.approx(math.sqrt(5 / 3)))
    assert one.low == pytest.approx(2.5 - 3.182446 * math.sqrt(5 / 12), abs=1e-6)
    assert one.high == pytest.approx(2.5 + 3.182446 * math.sqrt(5 / 12), abs=1e-6)
    assert one.p == pytest.approx(stats.ttest_1samp([1, 2, 3, 4], 0).pvalue)
    assert (one.sign, mean_of([-1.0, -2, -3, -4]).sign, mean_of([-1.0, 2]).sign) == (1, -1, 0)


def test_mean_without_spread():
    assert math.isnan(mean_of([0.3]).low)
    assert mean_of([0.3]).sign == 0
    assert (mean_of([0.0, 0.0]).p, mean_of([0.25, 0.25]).p) == (1, 0)


def test_mean_covers():
    draws = np.random.default_rng(1).normal(0.7, 2, (4000, 5))
    covered = np.mean([one.low <= 0.7 <= one.high for one in map(mean_of, draws)])
    assert covered == pytest.approx(0.95, abs=0.011)


def test_holm_by_hand():
    # Sorted: 0.005 · 4, 0.01 · 3, 0.03 · 2, 0.04 · 1; none below the one before; at most 1.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1, 1]
    corrected = holm([math.nan, 0.02, 0.03])
    assert math.isnan(corrected[0])
    assert corrected[1:] == pytest.approx([0.04, 0.04])
    assert holm([]) == []


def test_holm_keeps_the_familywise_error():
    families = np.random.default_rng(2).uniform(size=(4000, 8))
    assert np.mean([min(holm(family)) < 0.05 for family in families]) == pytest.approx(0.05, abs=0.011)


def holds(ratio, theta):
    """Whether a Fieller set holds a value."""
    inside = ratio.low <= theta <= ratio.high
    return theta <= ratio.low or theta >= ratio.high if ratio.disjoint else inside


@pytest.mark.parametrize("gain", [0.0, 0.3, 1.0, 4.0])
def test_fieller_is_the_t_test_turned_round(gain):
    generator = np.random.default_rng(3)
    kinds = set()
    for _ in range(30):
        y = generator.normal(gain, 1, 5)
        x = 1.5 * y + generator.normal(0, 1, 5)
        ratio = fieller(x, y)
        kinds.add("interval" if ratio.bounded else "disjoint" if ratio.disjoint else "all")
        for theta in np.linspace(-7, 9, 33):
            assert holds(ratio, theta) == (stats.ttest_1samp(x - theta * y, 0).pvalue >= 0.05)
    assert kinds == {0.0: {"interval", "disjoint", "all"}, 4.0: {"interval"}}.get(gain, kinds)


@pytest.mark.parametrize("gain", [0.5, 3.0])
def test_fieller_covers(gain):
    generator = np.random.default_rng(4)
    covered = []
    for _ in range(4000):
        shared = generator.normal(0, 1, 5)
        y, x = gain + shared + generator.normal(0, 1, 5), 2 * gain + shared + generator.normal(0, 1, 5)
        covered.append(holds(fieller(x, y), 2))
    assert np.mean(covered) == pytest.approx(0.95, abs=0.011)


def test_fieller_of_equal_and_of_no_gains():
    assert fieller([1, 2, 3], [1, 2, 3]) == fieller([2, 4, 6], [2, 4, 6])
    equal = fieller([0.1, 0.11, 0.13], [0.1, 0.11, 0.13])
    assert (equal.value, equal.low, equal.high) == (1, pytest.approx(1, abs=1e-6), pytest.approx(1, abs=1e-6))
    nothing = fieller([0.1, 0.2], [0.0, 0.0])
    assert math.isnan(nothing.value)
    assert not nothing.bounded


def test_ratios_by_hand():
    labels, sp, iusp = np.array([[0.5, 0.6], [0.52, 0.64], [0.55, 0.67]])
    # IUSP gains 0.05 and 0.07, SP 0.02 and 0.04: 0.06 / 0.03 - 1.
    assert relative_gain(iusp, sp, labels).value == pytest.approx(1)
    # 0.06 of gaps of 0.3 and 0.2.
    assert gap_closed(iusp, labels, 0.8).value == pytest.approx(0.06 / 0.25)


# The pages


def test_known_effects_are_found(tmp_path):
    text = page(grid(), tmp_path)
    verdict = part(text, "## Verdict")
    assert "**labels < SP < IUSP at every size on embedded: met.**" in verdict
    assert "**The best combination beats KD alone at every size (embedded, esc-ust): met.**" in verdict
    # The lstm closes 0.07 of 0.81 - 0.68 on one, of 0.55 - 0.48 on the other.
    assert re.search(r"embedded lstm by iusp\+kd closes 5\d % \[.*?\]: not met", verdict)
    assert "- attention - labels: embedded small" in part(text, "**The other way, below zero**")
    assert "- consistency - labels: embedded small" in part(text, "**Null: the interval holds zero**")
    embedded = part(text, "## embedded")
    assert cells(part(embedded, "### The paper's statistic"), "lstm (60,000)")[0] == "IUSP gains more"
    changed = part(embedded, "### Regimes").partition("Whether a regime")[2]
    assert float(cells(changed, "small", "light, 60 epochs, batch 32")[0].strip("*").split()[0]) < -0.01
    beyond = part(text, "## Beyond the paper")
    assert "- Worth keeping: iusp_centred; iusp+kd; kd, ensemble." in beyond
    assert "- Not worth keeping: iusp_scales; kd, clean knowledge; iusp, decay." in beyond
    search = part(embedded, "### The search")
    assert "sp 30: **0.520** (used); sp 100: 0.515" in search
    assert "Every method had the same budget, 4 values." in search
    assert "762 runs" in text


def test_cells_are_what_pandas_says(tmp_path):
    table = grid()
    text = part(page(table, tmp_path), "## esc-ust")
    main = table[(table["stage"] == "main") & (table["data"] == "esc-ust") & (table["student"] == "medium")]
    wide = main.pivot(index="seed", columns="method", values="micro_auprc")
    mean, sd = wide["fitnet"].mean(), wide["fitnet"].std()
    assert cells(part(text, "### Micro AUPRC"), "fitnet")[1] == f"{mean:.3f} ± {sd:.3f} (5)"
    test = stats.ttest_rel(wide["fitnet"], wide["labels"])
    low, high = test.confidence_interval()
    cell = cells(part(text, "### Paired differences"), "fitnet")[1]
    assert cell.strip("*").startswith(f"{(wide['fitnet'] - wide['labels']).mean():+.3f} [{low:+.3f}, {high:+.3f}] p ")
    share = (wide["kd"] - wide["labels"]).mean() / (0.55 - wide["labels"]).mean()
    assert cells(part(text, "### Share of the gap closed"), "kd")[1].startswith(f"{100 * share:.0f} % [")


def test_a_result_the_other_way_is_said(tmp_path):
    text = page(grid(whole=False, gains=GAINS | {"iusp": 0.0, "iusp+kd": 0.052}), tmp_path)
    verdict = part(text, "## Verdict")
    assert "labels < SP < IUSP at every size on embedded: not met." in verdict
    assert "iusp - sp is below zero everywhere" in verdict
    assert "beats KD alone at every size (embedded, esc-ust): null" in verdict
    assert cells(verdict, "iusp > sp", "embedded", "small (5,568)")[0] == "the other way"
    assert "- iusp - sp: embedded small -0.0" in part(text, "**The other way, below zero**")
    assert "Prefer sp to iusp." in part(text, "**IUSP or SP?**")


def test_a_statistic_without_bounds_is_said_in_words(tmp_path):
    text = page(grid(data=["embedded"], whole=False, gains=GAINS | {"sp": 0.0}), tmp_path)
    rows = [cells(part(text, "### The paper's statistic"), f"{name} ({size:,})") for name, (size, _) in SIZES.items()]
    assert {row[0] for row in rows} == {"SP's gain is not clear of zero: hardly any ratio is excluded"}
    assert all("no bound" in row[-1] or "at most" in row[-1] for row in rows)


def test_the_best_is_chosen_on_validate(tmp_path):
    table = grid(data=["embedded"], whole=False, gains=GAINS | {"sp+kd": 0.09})
    table.loc[table["method"] == "sp+kd", "validate_micro_auprc"] = 0.1
    verdict = part(page(table, tmp_path), "## Verdict")
    assert "iusp+kd > kd" in verdict
    assert "sp+kd > kd" not in verdict.replace("iusp+kd", "")


def test_only_seeds_of_both_are_compared(tmp_path):
    table = grid(data=["embedded"], whole=False, seeds=range(8))
    table = table[(table["method"] != "sp") | (table["seed"] > 2)]
    study_page = page(table.sample(frac=1, random_state=0), tmp_path)
    main = table[(table["student"] == "small") & (table["seed"] > 2)].pivot(
        index="seed", columns="method", values="micro_auprc"
    )
    assert cells(part(study_page, "### Micro AUPRC"), "sp")[0].endswith("(5)")
    difference = cells(part(study_page, "### Paired differences"), "sp")[0].strip("*")
    assert difference.startswith(f"{(main['sp'] - main['labels']).mean():+.3f} [")


@pytest.mark.parametrize(
    "table",
    [
        grid(),
        grid(data=["embedded"], sizes=["small", "medium"], seeds=range(2), whole=False),
        grid(data=["esc-ust"], sizes=["lstm"], seeds=[0], whole=False),
        grid(data=["esc-ust"], sizes=["small"], whole=False, gains={"labels": 0, "iusp": 0.04}),
        grid(data=["embedded"], sizes=["small"])[lambda table: table["stage"] != "teacher"],
    ],
    ids=["whole", "quick", "one seed", "two methods", "no teacher"],
)
def test_pages_are_whole_and_the_same_every_time(table, tmp_path):
    for folder in ("a", "b"):
        table.sample(frac=1, random_state=ord(folder)).to_csv(tmp_path / "science.csv", index=False)
        write(tmp_path / "science.csv", tmp_path / folder, "A machine")
    written = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert all((tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes() for path in written)
    for name in ("results.md", "methods.md"):
        text = (tmp_path / "a" / name).read_text()
        assert "nan" not in text
        for rows in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            assert len({row.count("|") for row in rows.splitlines()}) == 1, rows
        for picture in re.findall(r"\(pictures/(.*?)\)", text):
            assert (tmp_path / "a" / "pictures" / picture).stat().st_size > 1000
    assert ("Not the whole study" in (tmp_path / "a" / "results.md").read_text()) == (table["seed"].nunique() < 5)


def test_methods_have_a_row_each_with_measured_gain(tmp_path):
    grid().to_csv(tmp_path / "science.csv", index=False)
    write(tmp_path / "science.csv", tmp_path, "A machine")
    rows = (tmp_path / "methods.md").read_text().splitlines()
    for method in METHODS:
        (row,) = (row for row in rows if re.match(rf"\| \[?`{method}`", row))
        assert row.count("$`") == row.count("`$") == 1
        assert method == "labels" or re.search(r"\| × \d\.\d\d (\| [+-]0\.\d{3} \[.*?\] ){2}\|$", row)


def test_consistency_has_gains_where_only_a_variant_could_be_run(tmp_path):
    table = grid(data=["embedded"], sizes=["small"], whole=False)
    both = table[table["method"].isin(["labels", "consistency"])].assign(stage="variant", variant="tags both")
    both.loc[both["method"] == "consistency", "micro_auprc"] += 0.1
    table = pd.concat([table[table["method"] != "consistency"], both])
    text = page(table, tmp_path)
    assert cells(text, "consistency, tags both", "labels, tags both", "embedded small")[0].startswith("**+0.09")
    write(tmp_path / "science.csv", tmp_path, "A machine")
    (row,) = (row for row in (tmp_path / "methods.md").read_text().splitlines() if "`consistency`" in row)
    assert "| +0.09" in row


def test_what_cannot_be_reported_is_refused(tmp_path):
    table = grid(data=["embedded"], sizes=["small"], seeds=range(2), whole=False)
    with pytest.raises(InputError, match="no column macro_auprc"):
        page(table.drop(columns="macro_auprc"), tmp_path)
    with pytest.raises(InputError, match=rf"line {len(table) + 2} repeats a run"):
        page(pd.concat([table, table.tail(1)]), tmp_path)
    with pytest.raises(InputError, match="no run of stage main yet"):
        page(table[table["stage"] == "teacher"], tmp_path)
