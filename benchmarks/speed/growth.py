"""Time and memory of the features step and of one training epoch, for 250, 1,000 and 4,000 clips.

The clips are 250 embedded recordings, repeated. Each size runs in a process of its own.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from multiprocessing import active_children
from pathlib import Path

import pandas as pd

from benchmarks.speed.epochs import Setting, epoch
from benchmarks.speed.timing import ROOT, WORK, Figure, Report, embedded, one_thread, settings
from iusp.config.base import Architecture
from iusp.features.augmentation import draw_view
from iusp.reporter import Reporter
from iusp.steps import features
from iusp.training.data import TrainingFolders, read_training_data

SIZES = (250, 1000, 4000)
STUDENT: tuple[Architecture, int] = ("plain", 7000)


class Memory(threading.Thread):
    """Watches the anonymous memory of this process and its workers; `peak` is the maximum in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.ended = 0, threading.Event()

    def run(self) -> None:
        """Look at the memory every 20 ms."""
        while not self.ended.wait(0.02):
            self.peak = max(
                self.peak, sum(_anonymous(pid) for pid in [os.getpid(), *(c.pid for c in active_children())])
            )


def _anonymous(pid: int | None) -> int:
    """Return the bytes of a process without cached files, which the kernel can drop."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def _seconds() -> float:
    """Return the CPU seconds of this process and of its finished child processes."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def one(size: int) -> dict[str, list[float]]:
    """Return CPU seconds and peak bytes of the features step and of an epoch."""
    one_thread()
    config = settings()
    _, source = embedded(SIZES[0], 50)
    folder = WORK / f"growth-{size}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(source / "dataset" / "taxonomy.yaml", folder)
    for name in ("index", "labels"):
        table = pd.read_parquet(source / "dataset" / f"{name}.parquet")
        train, rest = table[table["split"] == "train"], table[table["split"] != "train"]
        pd.concat([*[train] * (size // SIZES[0]), rest]).to_parquet(folder / f"{name}.parquet", index=False)
    found = {}
    for what in ("features", "epoch"):
        memory = Memory()
        memory.start()
        if what == "features":
            start = _seconds()
            features.run(
                config.features,
                features.Inputs(folder, source / "recordings"),
                folder / "features",
                Reporter(),
                workers=1,
            )
        else:
            data = read_training_data(TrainingFolders(folder, folder / "features"), "coarse")
            view = draw_view(config.augmentation.views, 0, "training", 0, data.shape)
            job = epoch(Setting(*STUDENT, config.distillation.training), data, view)
            start = _seconds()
            job()
        found[what] = [_seconds() - start, memory.peak]
        memory.ended.set()
    shutil.rmtree(folder)
    return found


def main() -> None:
    """Measure each size in its own process and print."""
    if len(sys.argv) > 1:
        print(json.dumps(one(int(sys.argv[1]))))
        return
    embedded(SIZES[0], 50)
    found = {}
    for size in SIZES:
        command = [sys.executable, "-m", "benchmarks.speed.growth", str(size)]
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        found[size] = json.loads(answer.splitlines()[-1])
    report = Report()
    for what in ("features", "epoch"):
        seconds = [found[size][what][0] for size in SIZES]
        peaks = [found[size][what][1] for size in SIZES]
        step = (SIZES[2] - SIZES[1]) / (SIZES[1] - SIZES[0])
        # Differences leave out the start of the process.
        growth = (seconds[2] - seconds[1]) / (seconds[1] - seconds[0]) / step
        name = {"features": "the features step", "epoch": "a training epoch"}[what]
        report.figures.append(
            Figure(
                f"{name}: time for 3,000 more clips ÷ (4 × time for 750 more clips)",
                growth,
                growth,
                growth,
                target=1.15,
                at_most=True,
            )
        )
        memory = peaks[2] / peaks[0]
        report.figures.append(
            Figure(
                f"{name}: peak memory for 4,000 clips ÷ peak memory for 250 clips",
                memory,
                memory,
                memory,
                target=1.1,
                at_most=True,
            )
        )
        report.notes.append(
            f"{name}: "
            + "; ".join(
                f"{size:,} clips take {second:.1f} s and {peak / 2**20:.0f} MiB"
                for size, second, peak in zip(SIZES, seconds, peaks, strict=True)
            )
            + ". The times are CPU seconds. They include the start of processes. The memory does not include cached "
            "files, which the kernel can drop."
        )
    report.print()


if __name__ == "__main__":
    main()
