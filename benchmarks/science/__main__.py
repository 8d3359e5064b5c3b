"""Compare all distillation methods on the knowledge of one teacher, with enough seeds to rank them.

python -m benchmarks.science                train every run that runs.csv does not hold yet (some hours on two cores),
                                            then write docs/results.md and docs/methods.md
python -m benchmarks.science --quick        train a small part of it, and write the pages into data/science/quick/
python -m benchmarks.science --report-only  train nothing, only write the pages

The embedded data go through the steps dataset, features and teacher, as in `dvc repro`, and so do recordings in the
format of SONYC-UST, if --recordings names a folder. Then students are trained. First, the weight of each method is
searched on validate, with the same number of values for each and seeds of their own. Then the methods are compared:
runs with the same seed start from the same weights and see the same batches. Each finished run is added to the record
at once, so a killed study continues where it stopped.
"""

import argparse
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict
from pathlib import Path

from joblib import cpu_count

from benchmarks.machine import machine
from benchmarks.pages import DOCS, ROOT
from benchmarks.science.grid import EMBEDDED, Record, Row, Run, Wave, quick_grid, whole_grid
from benchmarks.science.report import write_report
from benchmarks.science.training import measured, train
from benchmarks.science.worlds import WORK, World, know, prepare
from iusp.cli.console import readable_failures, shown_progress
from iusp.config.params import Config, load
from iusp.errors import InputError
from iusp.io.processes import worker_pool

RECORD = Path(__file__).with_name("runs.csv")
MACHINE = Path(__file__).with_name("machine.txt")
"""The machine of the recorded runs."""


def sources(config: Config, recordings: Path | None, quick: bool) -> dict[str, Config]:
    """Return the settings of each data set, by its name.

    Args:
        config: settings of the embedded data.
        recordings: folder of recordings, if there are any.
        quick: whether to leave out the embedded data if there are recordings.

    Raises:
        InputError: the folder does not exist.
    """
    if recordings is None:
        return {EMBEDDED: config}
    if not recordings.is_dir():
        raise InputError(f"{recordings}: no such folder; name one in SONYC-UST's format")
    changes = {"source": "folder", "path": str(recordings)}
    own = config.model_copy(update={"dataset": config.dataset.model_copy(update=changes)})
    return ({} if quick else {EMBEDDED: config}) | {recordings.resolve().name: own}


def add_teacher(record: Record, world: World) -> None:
    """Record the teacher."""
    run = Run("teacher", world.name, "teacher", "labels", "{}", 0.0, 0, augmentation="heavy")
    if not record.has(run):
        record.add(asdict(run) | {"cpu_seconds": 0.0} | measured(world.teacher("light"), world))


def study(record: Record, worlds: Mapping[str, World], config: Config, waves: Sequence[Wave], workers: int) -> None:
    """Train every run that is not on record, and show the progress."""
    with shown_progress() as reporter, worker_pool(workers) as pool:
        for number, wave in enumerate(waves, start=1):
            runs = [run for data in worlds for run in wave(data) if not record.has(run)]
            for run in runs:
                know(config, worlds[run.data], run.knowledge, reporter)
            futures = [pool.submit(train, run, worlds[run.data], config) for run in runs]
            for done, future in enumerate(as_completed(futures), start=1):
                row = future.result()
                record.add(row)
                reporter.progress(f"part {number} of {len(waves)}", done, len(runs), _line(row))


def _line(row: Row) -> str:
    name = f"{row['data']} {row['student']} {row['method']} {row['variant']}".rstrip()
    return f"{name} {row['weights']} seed {row['seed']}: validate {row['validate_micro_auprc']:.3f}"


def run_study(recordings: Path | None, quick: bool, workers: int) -> None:
    """Train what is missing and write the pages.

    Args:
        recordings: folder of recordings that are used beside the embedded data.
        quick: whether to train a small part only, on the recordings if there are any.
        workers: number of trainings at once.
    """
    config = load(ROOT / "params.yaml")
    record = Record(WORK / "quick" / "runs.csv" if quick else RECORD)
    with shown_progress() as reporter:
        worlds = {name: prepare(own, name, reporter) for name, own in sources(config, recordings, quick).items()}
    for world in worlds.values():
        add_teacher(record, world)
    study(record, worlds, config, quick_grid(config) if quick else whole_grid(record), workers)
    if not quick:
        MACHINE.write_text(machine() + "\n")
    write_report(record.path, WORK / "quick" if quick else DOCS, machine())


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="train a small part; on --recordings alone, if given")
    parser.add_argument("--recordings", type=Path, help="folder in SONYC-UST's format, used beside the embedded data")
    parser.add_argument("--workers", type=int, default=cpu_count(), help="number of trainings at once, a thread each")
    parser.add_argument("--report-only", action="store_true", help="train nothing; write the pages from the record")
    arguments = parser.parse_args()
    with readable_failures():
        if arguments.report_only:
            write_report(RECORD, DOCS, MACHINE.read_text().strip())
        else:
            run_study(arguments.recordings, arguments.quick, arguments.workers)


if __name__ == "__main__":
    main()
