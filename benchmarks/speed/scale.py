"""Take 1,000, 10,000 and 100,000 generated clips through the steps dataset, features, teacher and student.

python -m benchmarks.speed.scale                  write scale.json and docs/scale.md (about an hour, 50 GB)
python -m benchmarks.speed.scale --sizes 100,200  measure other sizes, and only print the page
python -m benchmarks.speed.scale --render         measure nothing, only write the page

Each part runs in a process of its own, and its result is stored, so a stopped script continues where it stopped. The
clips are those of the embedded data set, all different.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kubernetes.utils.quantity import parse_quantity

from benchmarks.machine import machine
from benchmarks.pages import DOCS, table, write_page
from benchmarks.speed.epochs import Setting, epoch, untrained_teacher
from benchmarks.speed.growth import Memory
from benchmarks.speed.timing import ROOT, WORK, settings
from iusp.config.base import Architecture
from iusp.config.params import Config
from iusp.features.augmentation import draw_view
from iusp.io.files import write_json
from iusp.reporter import Reporter
from iusp.sources import embedded
from iusp.steps import dataset, features
from iusp.training.data import TrainingData, TrainingFolders, batches, epoch_order, read_training_data
from iusp.training.knowledge import Knowledge, read_knowledge

SIZES = (1000, 10_000, 100_000)
RECORD = Path(__file__).with_name("scale.json")
STUDENT: tuple[Architecture, int] = ("plain", 7000)
CORES = os.cpu_count() or 1
# The size of AudioSet, and list prices of common clouds in dollars.
PLAN_CLIPS, PODS, CORE_HOUR, GB_MONTH = 2_000_000, 16, 0.04, 0.023
WAV_BYTES = 882_044  # 10 s of 44.1 kHz, 16 bit
ORDER = ("dataset", "features", "knowledge of a view", "teacher's epoch", "epoch", "input pipeline")
TEACHER_CLIPS = 2000  # of the teacher's epoch, which is slow and takes the same time for every clip


@dataclass(frozen=True)
class Place:
    """The folders of one size.

    Attributes:
        size: number of clips.
    """

    size: int

    @property
    def folder(self) -> Path:
        """Folder with everything of this size."""
        return WORK / f"scale-{self.size}"

    @property
    def clips(self) -> dict[str, int]:
        """Number of clips of each split."""
        held_out = self.size // 20
        return {"train": self.size - 2 * held_out, "validate": held_out, "test": held_out}

    @property
    def config(self) -> Config:
        """Settings of params.yaml, applied to these clips."""
        return settings("dataset.source=folder", f"dataset.path={self.folder / 'source'}")

    def data(self, name: str) -> Path:
        """Return the output folder of a step."""
        return self.folder / "data" / name

    def training(self) -> TrainingData:
        """Return the training data."""
        return read_training_data(TrainingFolders(self.data("dataset"), self.data("features")), "coarse")

    def knowledge(self, training: TrainingData) -> Knowledge:
        """Return the knowledge of the teacher."""
        return read_knowledge(self.folder, training)


def _measured(job: Callable[[], object]) -> dict[str, float]:
    memory = Memory()
    memory.start()
    began = time.perf_counter()
    job()
    seconds = time.perf_counter() - began
    memory.ended.set()
    return {"seconds": seconds, "peak": memory.peak}


def _source(place: Place) -> dict[str, float]:
    embedded.write(place.folder / "source", place.config.dataset.seed, place.clips, CORES, Reporter())
    return {}


def _dataset(place: Place) -> dict[str, float]:
    indexed, recordings = place.data("dataset"), place.data("recordings")
    found = _measured(lambda: dataset.run(place.config.dataset, indexed, recordings, Reporter()))
    shutil.rmtree(place.folder / "source")
    return found


def _features(cores: int, place: Place) -> dict[str, float]:
    packed = place.data("features")
    shutil.rmtree(packed, ignore_errors=True)
    inputs = features.Inputs(place.data("dataset"), place.data("recordings"))
    return _measured(lambda: features.run(place.config.features, inputs, packed, Reporter(), workers=cores))


def _knowledge(place: Place) -> dict[str, float]:
    config, training = place.config, place.training()
    of = config.teacher.architecture, config.teacher.parameters, training, config.teacher.training
    return _measured(lambda: untrained_teacher(*of, config.augmentation.views, place.folder))


def _teacher_epoch(place: Place) -> dict[str, float]:
    config, training = place.config, place.training()
    setting = Setting(
        config.teacher.architecture, config.teacher.parameters, config.teacher.training, clips=TEACHER_CLIPS
    )
    view = draw_view(config.augmentation.teacher, 0, "training", 0, training.shape)
    found = _measured(epoch(setting, training, view))
    return found | {"seconds": found["seconds"] * max(1, len(training.clips) / TEACHER_CLIPS)}


def _epoch(place: Place) -> dict[str, float]:
    training = place.training()
    knowledge = place.knowledge(training)
    setting = Setting(*STUDENT, place.config.distillation.training)
    return _measured(epoch(setting, training, knowledge.view(0), "iusp", knowledge))


def _input_pipeline(place: Place, from_disk: bool = False) -> dict[str, float]:
    """Make all batches of an epoch without training on them."""
    similarity = place.folder / "knowledge" / "view-000" / "similarity-1.npy"
    files = place.data("features") / "train.npy", similarity
    training = place.training()
    knowledge = place.knowledge(training)
    known = {"similarity-1": knowledge.read("similarity-1", 0)}
    for path in files if from_disk else ():  # they are in memory, because opening them verified their SHA-256
        _forget(path)
    view, order = knowledge.view(0), epoch_order(len(training.clips), 0, 0)
    size, device = place.config.distillation.training.batch_size, torch.device("cpu")

    def job() -> None:
        for _ in batches(training, view, order, size, device, known):
            pass

    before = _read_from_disk()
    found = _measured(job)
    return found | {"from disk": (_read_from_disk() - before) / sum(path.stat().st_size for path in files)}


def _kept(place: Place) -> dict[str, float]:
    clips = place.clips["train"]
    return {
        "recordings": _size(place.data("recordings")) / place.size,
        "features": _size(place.data("features")) / place.size,
        **{path.stem: path.stat().st_size / clips for path in sorted((place.folder / "knowledge/view-000").iterdir())},
    }


def _kill_and_resume(place: Place) -> dict[str, float]:
    """Kill the features step (SIGKILL) when half of the shards are written, and start it again."""
    folder, shards = place.folder, -(-place.size // place.config.features.clips_per_shard)
    shutil.rmtree(place.data("features"), ignore_errors=True)
    command = [sys.executable, "-m", "iusp", "--params", str(ROOT / "params.yaml"), "features"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=sys.stderr) as step:
        while step.poll() is None and len(_made(folder)) < shards // 2:
            time.sleep(0.02)
        step.kill()
    kept = _made(folder)
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=sys.stderr) as step:
        again = set()
        while step.poll() is None:
            again |= {name for name, made in _made(folder).items() if made != kept.get(name, made)}
            time.sleep(0.1)
    if step.returncode:
        raise RuntimeError(f"the features step ended with status {step.returncode}")
    return {"shards": shards, "kept": len(kept), "made again": len(again)}


def _made(folder: Path) -> dict[str, int]:
    """Return the modification time of each shard, by name."""
    made: dict[str, int] = {}
    for parts in folder.glob("data/.features.work-*/parts"):
        # The step packs and removes shards at the same time.
        with suppress(FileNotFoundError):
            made |= {one.name: one.stat().st_mtime_ns for one in os.scandir(parts) if one.name.endswith(".npy")}
    return {name: time for name, time in made.items() if not name.startswith(".")}


def _forget(path: Path) -> None:
    """Drop the kernel's cached copy of a file, so that it is read from the disk again."""
    with path.open("r+b") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_from_disk() -> int:
    """Return the number of bytes that this process has read from disks."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


PARTS: dict[str, Callable[[Place], dict[str, float]]] = {
    "source": _source,
    "dataset": _dataset,
    "features, 1 cores": partial(_features, 1),
    f"features, {CORES} cores": partial(_features, CORES),
    "killed": _kill_and_resume,
    "knowledge of a view": _knowledge,
    "teacher's epoch": _teacher_epoch,
    "epoch": _epoch,
    "input pipeline": _input_pipeline,
    "input pipeline, from the disk": partial(_input_pipeline, from_disk=True),
    "bytes": _kept,
}


def page(record: dict[str, Any]) -> str:
    """Return docs/scale.md."""
    found, cores = record["sizes"], record["cores"]
    sizes = sorted(found, key=int)
    last, greatest, before = int(sizes[-1]), found[sizes[-1]], found[sizes[-2]]
    times = [
        [
            "part",
            *(f"{int(size):,} clips" for size in sizes),
            "ms per clip",
            f"relative to {int(sizes[-2]):,} clips",
        ]
    ]
    peaks = [["part", *(f"{int(size):,} clips" for size in sizes), "growth in bytes per clip"]]
    each, growth, base = {}, {}, {}
    parts = [name for name in greatest if "seconds" in greatest[name]]
    for name in sorted(parts, key=lambda name: ORDER.index(name.split(",")[0])):
        seconds, memory = ([found[size][name][what] for size in sizes] for what in ("seconds", "peak"))
        each[name] = seconds[-1] / last
        growth[name] = (memory[-1] - memory[-2]) / (last - int(sizes[-2]))
        base[name] = memory[-1] - growth[name] * last
        linear = each[name] / (before[name]["seconds"] / int(sizes[-2]))
        shown = "student's epoch" if name == "epoch" else name.replace("1 cores", "1 core")
        times.append([shown, *(f"{one:,.1f} s" for one in seconds), f"{1000 * each[name]:.2f}", f"{linear:.2f}×"])
        # A part that ends before the first look at its memory has no peak.
        peaks.append([shown, *(f"{one / 2**20:,.0f} MiB" if one else "" for one in memory), f"{growth[name]:,.0f}"])
    waiting, cold = (each[name] / each["epoch"] for name in ("input pipeline", "input pipeline, from the disk"))
    came = greatest["input pipeline, from the disk"]["from disk"]
    killed, held = greatest["killed"], greatest["bytes"]
    kept = [["what is stored", "bytes for each clip (and view)"], *([name, f"{held[name]:,.0f}"] for name in held)]
    return f"""# Scale

This page says how time, memory and disk space grow with the number of clips, and what two million clips would need.
`python -m benchmarks.speed.scale` writes it. The figures were measured on this machine: {record["machine"]}
({record["date"]}).

The clips are generated scenes (data set `embedded`). No two clips are equal. Each clip is a FLAC file of 10 s at 16
kHz. A view is a clip after one random augmentation.

Each part of the pipeline runs in a process of its own. Time is wall time. Memory is the peak of the memory of all
processes of the part together. It includes the memory of Python and its libraries. It does not include cached files,
which the kernel can drop.

## Time

{table(times[0], times[1:])}
- *knowledge of a view*: the teacher computes and stores its knowledge of one view of each training clip.
- *teacher's epoch*: the default teacher trains for one epoch. The time is measured on at most {TEACHER_CLIPS:,} clips
  and multiplied.
- *student's epoch*: a small student (architecture family {STUDENT[0]}, at most {STUDENT[1]:,} parameters) trains for
  one epoch with IUSP.
- *input pipeline*: all batches of an epoch are read and augmented, without training. *From the disk* means that the
  files are not cached in memory.

The column *ms per clip* is the time for {last:,} clips, divided by {last:,}. The last column is this value divided by
the same value for {int(sizes[-2]):,} clips; if the time grows in proportion to the number of clips, it is 1.

The features step processes {1 / each["features, 1 cores"]:,.0f} clips per second on one core, and
{1 / each[f"features, {cores} cores"]:,.0f} clips per second on {cores} cores.

## Memory

{table(peaks[0], peaks[1:])}
The last column is the memory that one more clip takes. Memory grows only with the tables of clips. A table contains the
name, the checksum and the labels of each clip. In the dataset step, there is also a table with three annotations for
each training clip. pandas needs memory to sort and join the tables. Audio, features and knowledge are streamed, so they
are never in memory as a whole.

## After a kill

The features step was killed (SIGKILL) when {killed["kept"]} of {killed["shards"]} shards were written, and then it was
started again. It wrote {killed["made again"]} of the {killed["kept"]} finished shards a second time. A kill loses only
the shards that are being written. Each worker writes one shard at a time.

## Waiting for data

The model waits while a batch is read from the packed file and augmented. A small student waits for a larger share of
its training time than a large one. For the student of the table above, reading and augmenting the batches takes
{waiting:.0%} of the time of an epoch. If the packed files are not cached in memory, it takes {cold:.0%}; {came:.0%} of
the bytes of these files then come from the disk.

## Disk space

{table(kept[0], kept[1:])}
The rows *recordings* and *features* are bytes for each clip. The other rows are the knowledge of the teacher, in bytes
for each training clip and each view: `embedding-1` is for SP, `similarity-1` is for IUSP, and `logits` is for KD.
Nothing is stored for pairs of clips, so the knowledge grows in proportion to the number of clips.

{_plan(each, growth, base, held, cores)}"""


def _plan(
    each: dict[str, float], growth: dict[str, float], base: dict[str, float], held: dict[str, float], cores: int
) -> str:
    """Return what PLAN_CLIPS clips would need.

    Args:
        each: seconds for each clip, by part.
        growth: bytes of memory for each clip, by part.
        base: bytes of memory without any clip, by part.
        held: bytes on the disk for each clip, by file.
        cores: number of cores of the machine.
    """
    config = settings()
    epochs, views = config.teacher.training.epochs, config.teacher.views
    shards = PLAN_CLIPS // config.features.clips_per_shard
    knowledge = views * sum(held[name] for name in config.teacher.knowledge_names)
    student = config.distillation.training.epochs * each["epoch"]
    steps = [  # name, pods, cores of a pod, core-seconds, the part whose memory it takes, bytes kept, bytes for a while
        ("dataset", 1, cores, cores * each["dataset"], "dataset", held["recordings"], 0),
        ("features", PODS, 1, each["features, 1 cores"], "features, 1 cores", held["features"], held["features"]),
        ("teacher, training", 1, 1, epochs * each["teacher's epoch"], "teacher's epoch", 0, 0),
        ("teacher, knowledge", 1, 1, views * each["knowledge of a view"], "knowledge of a view", knowledge, 0),
        (f"student ({STUDENT[0]}, iusp)", 1, 1, student, "epoch", 0, 0),
    ]
    head = ["step", "pods", "core-hours", "hours", "GB of memory", "GB stored", "GB temporary"]
    rows, hours, sizes = [[*head, "computing, $", "storage, $ a month"]], {}, {}
    for name, pods, pod_cores, seconds, part, kept, passing in steps:
        core_hours = seconds * PLAN_CLIPS / 3600
        hours[name], sizes[name] = core_hours / pods / pod_cores, kept * PLAN_CLIPS / 1e9
        rows.append(
            [
                name,
                str(pods),
                f"{core_hours:,.0f}",
                f"{hours[name]:,.1f}",
                f"{(base[part] + max(growth[part], 0) * PLAN_CLIPS) / 1e9:,.1f}",
                f"{sizes[name]:,.0f}",
                f"{passing * PLAN_CLIPS / 1e9:,.0f}",
                f"{core_hours * CORE_HOUR:,.2f}",
                f"{sizes[name] * GB_MONTH:,.0f}",
            ]
        )
    slowest, largest = (max(values, key=values.__getitem__) for values in (hours, sizes))
    # By step: core-seconds that one core of one pod works on, and the part that takes the most memory.
    cluster, teacher = config.kubeflow, steps[2][3] + steps[3][3]
    seconds_of = {"dataset": steps[0][3], "features": steps[1][3] / cluster.feature_parts, "teacher": teacher}
    memory_of = {"dataset": "dataset", "features": "features, 2 cores", "teacher": "teacher's epoch"}
    limits, ends = [["step", "memory limit", "clips at the memory limit", "time limit", "clips at the time limit"]], {}
    for step in (*seconds_of, "student"):
        pod, part = cluster.pod_of(step), memory_of.get(step, "epoch")
        # Training takes one core; noise may make the smaller size the greater one.
        used = float(parse_quantity(pod.cpu)) if step in ("dataset", "features") else 1
        fits = (float(parse_quantity(pod.memory)) - base[part]) / max(growth[part], 1)
        ends[f"memory limit of *{step}*"] = fits
        ends[f"time limit of *{step}*"] = done = pod.timeout_seconds * used / seconds_of.get(step, student)
        limits.append([step, pod.memory, f"{fits:,.0f}", f"{pod.timeout_seconds:,} s", f"{done:,.0f}"])
    first = min(ends, key=ends.__getitem__)
    return f"""## A plan for {PLAN_CLIPS:,} clips

AudioSet has about this number of clips. The plan multiplies the figures for each clip above by {PLAN_CLIPS:,}, and by
the numbers of epochs and views in params.yaml ({epochs} epochs, {views} views). It assumes cores like those of the
machine above, and prices of ${CORE_HOUR} per core-hour and ${GB_MONTH} per GB and month, which are common in clouds.
Nothing was run at this size.

{table(rows[0], rows[1:])}
The row *{slowest}* has {hours[slowest] / sum(hours.values()):.0%} of the hours of all rows. A GPU or `torchrun`
shortens this time. The row *{largest}* has {sizes[largest] / sum(sizes.values()):.0%} of the stored bytes of all rows.

WAV files of 44.1 kHz and 16 bit would take {WAV_BYTES / held["recordings"]:.1f} times as many bytes as these FLAC
files. [performance.md](performance.md) says how long it takes to compute features from such WAV files. The dataset step
copies recordings that come from a folder, or that are downloaded into the folder `dataset.sonyc_ust.keep`. The
originals stay in that folder, so such recordings are stored twice.

On Kubeflow, `kubeflow.feature_parts: {PODS}` divides the {shards:,} shards of the features among {PODS} pods. With
`kubeflow.work_claim`, a pod that was killed continues where it stopped. The persistent volume of this claim then
contains the shards in addition to the merged file of features. The dataset step is one pod with one worker for each
core. Students train in parallel, in one pod for each seed.

## What breaks first

On Kubeflow, each step has a memory limit and a time limit (`kubeflow.pod` and `kubeflow.steps` of params.yaml). The
table shows the number of clips at which a step reaches each limit. With more clips, Kubeflow stops the step. The table
does not contain the steps evaluation and registration, which were not measured. They read only the validation and test
clips.

{table(limits[0], limits[1:])}
The first limit that a growing data set reaches is the {first}, at {ends[first]:,.0f} clips. A pod that runs out of time
is retried {cluster.pod.retries} times. With `kubeflow.work_claim`, each retry continues where the pod before it
stopped.
"""


def _taken(place: Place) -> dict[str, Any]:
    """Run each part in a process of its own, and store what it found; a second call continues with the next part."""
    kept = place.folder / "found.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for part in (part for part in PARTS if part not in found):
        print(f"{place.size} clips, {part} …", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "benchmarks.speed.scale", "--sizes", str(place.size), "--part", part]
        answer = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
        write_json(kept, found := found | {part: json.loads(answer.splitlines()[-1])})
    shutil.rmtree(place.folder)
    return found


def main() -> None:
    """Measure each size and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="numbers of clips, ascending, with commas")
    parser.add_argument("--render", action="store_true", help="measure nothing; write the page from the last results")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](Place(int(arguments.sizes)))))
        return
    sizes = list(map(int, arguments.sizes.split(",")))
    if not arguments.render:
        record: dict[str, Any] = {"machine": machine(), "cores": CORES, "date": datetime.now(UTC).date().isoformat()}
        record["sizes"] = {}
        for size in sizes:
            record["sizes"][str(size)] = _taken(Place(size))
        if tuple(sizes) != SIZES:
            print(page(record))
            return
        write_json(RECORD, record)
    write_page(DOCS / "scale.md", page(json.loads(RECORD.read_text())))


if __name__ == "__main__":
    main()
