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

{_warning(study)}In the answers below, "A beats B" means that the whole 95 % interval of the difference A - B lies above
zero.

{conclusions(study)}
{main_table(study)}
The table shows the mean micro AUPRC on the test clips. The highest value of each row is bold.{_teachers(study)}

![gain of each core method over labels alone, for each student](pictures/science_overview.png)

## How to read it

- **Micro AUPRC** is the area under the precision-recall curve over all coarse tags together (the metric of DCASE 2019
  Task 5); 1 is perfect. **Macro AUPRC** is the mean of the AUPRCs of the single coarse tags.
- **The data sets** are `embedded`, which contains generated scenes, and `esc-ust`, which contains real recordings.
- **The students** are tiny, small, medium and large. Tables show the architecture family (plain or CNN-LSTM) and the
  number of parameters in brackets.
- **The methods** are described in [methods.md](methods.md). `labels` is training on labels alone. `+` combines methods.
- **A regime** is an augmentation, a number of epochs and a batch size. The main regime is light augmentation, 20 epochs
  and batches of 32 clips. With clean augmentation, the training clips are not changed. With light augmentation, they
  are shifted in time and their volume changes. With heavy augmentation, they are also masked and mixed.
- **A setting** is a student, a data set and a regime.
- **A seed** determines the initial network weights and the order of the clips. Each method is trained with several
  seeds.
- **Validation clips** (split `validate`) are used for all choices: the loss weights, the epoch to keep, and the best of
  several methods. All scores are from the test clips (split `test`), unless a table says otherwise.
- **Comparisons** use pairs of runs with the same seed. The two runs start from the same network weights and see the
  same batches.
- **An interval** is the 95 % interval of the paired t-test over seeds. It shows how a result varies with the seed. It
  does not show how the result varies with the test clips or with the teacher. It is not corrected for the number of
  comparisons.
- **p** is the p-value of the same t-test, corrected by Holm's method for the number of differences in the table. In
  tables with p, bold means p < 0.05. In the table of all methods, bold means that the interval excludes zero.

The rest of this page is the appendix. It has all methods, all training regimes and all tables.

## Appendix: targets

The targets were set before the study.

{targets(study)}
## Appendix: all methods

The table shows differences of micro AUPRC in the main regime. Bold means that the interval of the difference excludes
zero.

{all_differences(study, others)}
![gains of all methods over labels alone, for each student](pictures/science_methods.png)

## Appendix: when to use which method

Each row compares two methods in every setting. *Better*, *worse* and *no clear difference* are numbers of settings. In
a setting, the first method is better if the whole interval of the difference is above zero, and worse if the whole
interval is below zero. The last column is the number of settings with p < 0.05, after Holm's correction for the number
of settings in the row.

{advice(study)}
The next table shows, for each setting, the method with the highest mean on the validation clips:

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
