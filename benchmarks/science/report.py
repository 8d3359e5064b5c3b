"""Write docs/results.md, docs/methods.md and their pictures from the record of runs."""

from pathlib import Path

from benchmarks.pages import write_page
from benchmarks.science.appendix import beyond, record, section
from benchmarks.science.conclusions import advice, all_differences, best_methods, conclusions, main_table
from benchmarks.science.figures import draw_methods, draw_overview, draw_regimes
from benchmarks.science.grid import CORE
from benchmarks.science.methods_page import methods_page
from benchmarks.science.study import Study, rank, read_study, title
from benchmarks.science.targets import targets

ENOUGH_SEEDS = 5


def results_page(study: Study, machine: str) -> str:
    """Return docs/results.md.

    Args:
        study: what was measured.
        machine: description of the machine that the runs were made on.
    """
    others = sorted({method for one in study.mains for method in one.methods} - set(CORE), key=rank)
    regimes = "\n![gains in every training regime](pictures/science_regimes.png)\n"
    return f"""# Results

This page compares the distillation methods. `make bench-science` writes it from `benchmarks/science/runs.csv`.

{_warning(study)}{conclusions(study)}
{main_table(study)}
Mean micro AUPRC on test; the best of a row is bold.{_teachers(study)}

![gain of each core method over labels alone, for each student](pictures/science_overview.png)

## How to read it

- **Micro AUPRC** is the area under the precision-recall curve over all coarse tags together (the metric of DCASE 2019
  Task 5); 1 is perfect.
- **A setting** is a student, a data set and a training regime. A regime is an augmentation (clean, light or heavy), a
  number of epochs and a batch size.
- **Choices** (weights, epochs, the best of several methods) are made on the split validate. All scores are from the
  split test, unless a table says otherwise.
- **Comparisons** are made seed by seed: runs with the same seed start from the same weights and see the same batches.
- **An interval** is the 95 % interval of the paired t-test over seeds. It shows how a result varies with the seed, not
  with the test clips or the teacher. It is not corrected for the number of comparisons.
- **"Beats"** means that the interval of the difference excludes zero.
- **p-values** are corrected for the number of differences in their table (Holm's method); bold means p < 0.05.

The rest of this page is the appendix: all methods, all training regimes, all tables.

## Appendix: targets

The targets were set before the study.

{targets(study)}
## Appendix: all methods

Differences of micro AUPRC in the main settings; bold means that the interval excludes zero.

{all_differences(study, others)}
![gains of all methods over labels alone, for each student](pictures/science_methods.png)

## Appendix: when to use which method

The table counts the settings, over all training regimes, in which the interval of the difference is above zero
(better), is below zero (worse), or includes zero (no clear difference).

{advice(study)}
The method with the best mean on validate in each setting:

{best_methods(study)}{regimes if any(study.regimes(data) for data in study.data) else ""}
{"".join(f"{section(study, data)}{chr(10)}" for data in study.data)}## Appendix: beyond the paper

{beyond(study)}
## Appendix: how it was run

{record(study, machine)}"""


def _warning(study: Study) -> str:
    """Warn if the study is incomplete."""
    fewest = min(len(runs) for one in study.mains for runs in one.runs.values())
    if fewest >= ENOUGH_SEEDS:
        return ""
    return (
        f"**This is not the whole study: some methods have only {fewest} seeds, which is too few to rank them. "
        "`make bench-science` runs what is missing.**\n\n"
    )


def _teachers(study: Study) -> str:
    scores = [f"{score:.3f} on {title(data)}" for data, score in study.teachers.items()]
    return f" The teacher reaches {' and '.join(scores)}." if scores else ""


def write_report(csv: Path, docs: Path, machine: str) -> None:
    """Write results.md, methods.md and pictures/science_*.png.

    Args:
        csv: record of runs.
        docs: folder to write.
        machine: description of the machine that the runs were made on.

    Raises:
        InputError: the record cannot be used; see `read_study`.
    """
    study = read_study(csv)
    pictures = docs / "pictures"
    draw_overview(study, pictures / "science_overview.png")
    draw_methods(study, pictures / "science_methods.png")
    if any(study.regimes(data) for data in study.data):
        draw_regimes(study, pictures / "science_regimes.png")
    write_page(docs / "results.md", results_page(study, machine))
    write_page(docs / "methods.md", methods_page(study))
