"""Write the figures of README.md and docs/results.md from what the pipeline measured.

python -m benchmarks.results readme                    after `make run`: the table and picture of README.md
python -m benchmarks.results recordings FOLDER         train on recordings in SONYC-UST's format and write
                                                       docs/results.md; resumes, as the steps do
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from scipy import stats

from benchmarks.machine import machine
from iusp.files import code_digest, digest, sha256

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
METHODS = ("labels", "kd", "sp", "iusp", "iusp+kd")
SIZES = {"small": 7000, "medium": 24000}
SEEDS = [0, 1, 2, 3]


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


def recordings(source: Path) -> None:
    """Train a teacher and every student on recordings, and write docs/results.md."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["dataset"] |= {"source": "folder", "path": str(source.resolve())}
    params["students"] = {
        f"{size}_{method.replace('+', '_')}": {
            "architecture": "plain",
            "parameters": parameters,
            "method": method,
            "seeds": SEEDS,
        }
        for size, parameters in SIZES.items()
        for method in METHODS
    }
    key = digest([params, code_digest(), *(sha256(path) for path in sorted(source.glob("*.csv")))])
    work = ROOT / "data" / "study" / key[:12]
    work.mkdir(parents=True, exist_ok=True)
    (work / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    steps = [("dataset", "data/dataset"), ("features", "data/features"), ("teacher", "models/teacher")]
    steps += [(f"student {name}", f"models/students/{name}") for name in params["students"]]
    for step, output in [*steps, ("evaluation", "reports/evaluation")]:
        if not (work / output).exists():
            subprocess.run([Path(sys.executable).with_name("iusp"), *step.split()], cwd=work, check=True)
    metrics = json.loads((work / "reports/evaluation/metrics.json").read_text())
    shutil.copy(work / "reports/evaluation/plots/comparison.png", PICTURES / "recordings.png")
    (ROOT / "docs" / "results.md").write_text(page(metrics, params, source.name))


def page(metrics: dict[str, Any], params: dict[str, Any], source: str) -> str:
    """Return docs/results.md."""
    training = params["student"]["training"]
    teacher = metrics["teacher"]["coarse"]
    weights = ", ".join(f"{weight} ({method})" for method, weight in params["student"]["weights"].items())
    text = f"""# Results on real recordings

Written by `make results DATA=<folder>`; not by hand.

`{source}`: {metrics["clips"]} {metrics["split"]} clips. Micro-averaged AUPRC of the coarse tags (DCASE 2019 Task 5),
mean ± standard deviation over {len(SEEDS)} seeds. All students learn from the same teacher's stored knowledge, on the
same views in the same order for the same seed.

- {training["epochs"]} epochs, batches of {training["batch_size"]}, AdamW one-cycle at {training["learning_rate"]},
  λ {weights}, {params["teacher"]["views"]} views: the settings of `params.yaml`, chosen on the
  embedded data and not tuned here.
- {machine()}.
- Teacher ({metrics["teacher"]["parameters"]:,} parameters): micro AUPRC {teacher["micro_auprc"]:.3f}
  [{teacher["micro_auprc_low"]:.3f}, {teacher["micro_auprc_high"]:.3f}], macro {teacher["macro_auprc"]:.3f}.

| student | parameters | {" | ".join(METHODS)} |
|---|--:|{"--:|" * len(METHODS)}
"""
    by_size = {
        size: {method: metrics["students"][f"{size}_{method.replace('+', '_')}"] for method in METHODS}
        for size in SIZES
    }
    for size, students in by_size.items():
        cells = [f"{one['seeds_mean']:.3f} ± {one['seeds_std']:.3f}" for one in students.values()]
        text += f"| {size} | {students['labels']['parameters']:,} | {' | '.join(cells)} |\n"
    text += """
## Differences, seed by seed

Mean difference of micro AUPRC, its 95 % interval over seeds (paired t) and p; not corrected for their number.

| student | difference | mean | 95 % interval | p |
|---|---|--:|--:|--:|
"""
    clear: list[str] = []
    pairs = [(method, "labels") for method in METHODS[1:]] + [("iusp", "sp"), ("iusp+kd", "kd")]
    for size, students in by_size.items():
        for method, other in pairs:
            a, b = (list(students[one]["seeds"].values()) for one in (method, other))
            test = stats.ttest_rel(a, b)
            low, high = test.confidence_interval()
            mean = statistics.mean(x - y for x, y in zip(a, b, strict=True))
            if low > 0 or high < 0:
                clear.append(f"{method} {'above' if low > 0 else 'below'} {other} ({size})")
            text += f"| {size} | {method} - {other} | {mean:+.3f} | [{low:+.3f}, {high:+.3f}] | {test.pvalue:.3f} |\n"
    text += (
        f"\nClear of zero: {', '.join(clear) or 'none'}. Of the other differences these seeds do not tell the sign.\n"
    )
    return text + "\n![micro AUPRC of every network](pictures/recordings.png)\n"


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    commands.add_parser("readme", help="after `make run`")
    commands.add_parser("recordings", help="minutes to hours").add_argument("folder", type=Path)
    arguments = parser.parse_args()
    PICTURES.mkdir(parents=True, exist_ok=True)
    if arguments.command == "readme":
        readme()
    else:
        recordings(arguments.folder)


if __name__ == "__main__":
    main()
