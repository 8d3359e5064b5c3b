"""Scale: 1000, 10,000 and 100,000 generated clips through dataset, features, a view's knowledge and an epoch.

python -m benchmarks.speed.scale                  writes scale.json and docs/scale.md (about an hour, 50 GB)
python -m benchmarks.speed.scale --sizes 100,200     other sizes; writes nothing but prints the page
python -m benchmarks.speed.scale --render            only write the page again

Each part has a process of its own, and what it found is kept: run again, the script goes on where it was stopped. The
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
from benchmarks.speed.__main__ import table
from benchmarks.speed.epochs import Setting, epoch, untrained_teacher
from benchmarks.speed.growth import Memory
from benchmarks.speed.timing import ROOT, WORK, settings
from iusp.config.params import Config
from iusp.features.augmentation import draw_view
from iusp.io.files import write_json
from iusp.reporter import Reporter
from iusp.sources import embedded
from iusp.steps import dataset, features
from iusp.training.data import TrainingData, TrainingFolders, batches, epoch_order, read_training_data
from iusp.training.knowledge import Knowledge, read_knowledge

SIZES = (1000, 10_000, 100_000)
RECORD, PAGE = ROOT / "benchmarks" / "speed" / "scale.json", ROOT / "docs" / "scale.md"
STUDENT = ("plain", 7000)
CORES = os.cpu_count() or 1
# AudioSet's size, and list prices of the usual clouds, in dollars.
PLAN_CLIPS, PODS, CORE_HOUR, GB_MONTH = 2_000_000, 16, 0.04, 0.023
WAV_BYTES = 882_044  # 10 s of 44.1 kHz, 16 bit
ORDER = ("dataset", "features", "knowledge of a view", "teacher's epoch", "epoch", "input pipeline")
TEACHER_CLIPS = 2000  # of its epoch: it takes as long for each clip, and long


@dataclass(frozen=True)
class Place:
    """Where so many clips are taken through the pipeline."""

    size: int

    @property
    def folder(self) -> Path:
        """Holds all of it."""
        return WORK / f"scale-{self.size}"

    @property
    def clips(self) -> dict[str, int]:
        """Clips of each split."""
        held_out = self.size // 20
        return {"train": self.size - 2 * held_out, "validate": held_out, "test": held_out}

    @property
    def config(self) -> Config:
        """params.yaml, on these clips."""
        return settings("dataset.source=folder", f"dataset.path={self.folder / 'source'}")

    def data(self, name: str) -> Path:
        """Where a step writes."""
        return self.folder / "data" / name

    def training(self) -> TrainingData:
        """Open what networks are trained on."""
        return read_training_data(TrainingFolders(self.data("dataset"), self.data("features")), "coarse")

    def knowledge(self, training: TrainingData) -> Knowledge:
        """Open what the teacher knows of it."""
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
    inputs = place.data("dataset"), place.data("recordings"), packed
    return _measured(lambda: features.run(place.config.features, *inputs, Reporter(), workers=cores))


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
    """Make all batches of an epoch, and do nothing with them."""
    similarity = place.folder / "knowledge" / "view-000" / "similarity-1.npy"
    files = place.data("features") / "train.npy", similarity
    training = place.training()
    knowledge = place.knowledge(training)
    known = {"similarity-1": knowledge.read("similarity-1", 0)}
    for path in files if from_disk else ():  # else they are in memory, as opening them has compared their SHA-256
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
    """Kill the features step (SIGKILL) when half of the shards are made, and start it again."""
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
    """Return when each shard was made, by its name."""
    made = {}
    for parts in folder.glob("data/.features.work-*/parts"):
        # The step packs and removes them while we look.
        with suppress(FileNotFoundError):
            made |= {one.name: one.stat().st_mtime_ns for one in os.scandir(parts) if one.name.endswith(".npy")}
    return {name: time for name, time in made.items() if not name.startswith(".")}


def _forget(path: Path) -> None:
    """Let the kernel drop its copy of a file, so that it is read from the disk again."""
    with path.open("r+b") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_from_disk() -> int:
    """Return how many bytes this process has had read from disks."""
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
    times = [["part", *(f"{int(size):,} clips" for size in sizes), "ms per clip", "per clip, against a tenth"]]
    peaks = [["part", *(f"{int(size):,} clips" for size in sizes), "growth, bytes per clip"]]
    each, growth, base = {}, {}, {}
    parts = [name for name in greatest if "seconds" in greatest[name]]
    for name in sorted(parts, key=lambda name: ORDER.index(name.split(",")[0])):
        seconds, memory = ([found[size][name][what] for size in sizes] for what in ("seconds", "peak"))
        each[name] = seconds[-1] / last
        growth[name] = (memory[-1] - memory[-2]) / (last - int(sizes[-2]))
        base[name] = memory[-1] - growth[name] * last
        linear = each[name] / (before[name]["seconds"] / int(sizes[-2]))
        shown = name.replace("1 cores", "1 core")
        times.append([shown, *(f"{one:,.1f} s" for one in seconds), f"{1000 * each[name]:.2f}", f"{linear:.2f}×"])
        # What ends before its memory is looked at has no peak.
        peaks.append([shown, *(f"{one / 2**20:,.0f} MiB" if one else "" for one in memory), f"{growth[name]:,.0f}"])
    waiting, cold = (each[name] / each["epoch"] for name in ("input pipeline", "input pipeline, from the disk"))
    came = greatest["input pipeline, from the disk"]["from disk"]
    killed, held = greatest["killed"], greatest["bytes"]
    kept = [["kept of a clip", "bytes"], *([name, f"{held[name]:,.0f}"] for name in held)]
    return f"""# Scale

Written by `python -m benchmarks.speed.scale`; not by hand. {record["machine"]}; {record["date"]}.

The clips are those of the embedded data set, all different: 10 s at 16 kHz, FLAC, as a folder of recordings. Each
part has a process of its own. Its time is from its call to its return; its peak is of the memory of all its processes,
with what Python and its libraries take, and without pages of files, which the kernel takes back when it needs them.

## Time

{table(times)}

The features step makes {1 / each["features, 1 cores"]:,.0f} clips per second on one core, and
{1 / each[f"features, {cores} cores"]:,.0f} on {cores}.

## Memory

{table(peaks)}

What grows are the tables: a clip's name, checksum and labels, in the dataset step also its annotations (three for each
clip of train), and what pandas needs to sort and join them. Audio, features and knowledge are streamed.

## A kill

The features step, killed (SIGKILL) when {killed["kept"]} of {killed["shards"]} shards were made, and started again: of
these, {killed["made again"]} were made again. What a kill loses is the shards in the making, one for each worker.

## Training streams

A batch is gathered from the packed file, augmented and handed over, and the model waits for that. Making an epoch's
batches takes {waiting:.0%} of the epoch of the smallest student ({STUDENT[0]}, at most {STUDENT[1]:,} parameters), for
which it matters most; {cold:.0%} if the files are not in memory ({came:.0%} of their bytes then come from the disk).

## On the disk

{table(kept)}

Knowledge is a constant number of bytes for each clip and view: SP's clips are hashed, IUSP's matrices are of the frames
of one clip. Nothing is kept of a pair of clips.

{_plan(each, growth, base, held, cores)}"""


def _plan(
    each: dict[str, float], growth: dict[str, float], base: dict[str, float], held: dict[str, float], cores: int
) -> str:
    """Return what PLAN_CLIPS would take, from each clip's seconds, bytes of memory and bytes on the disk."""
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
    head = ["step", "pods", "core-hours", "hours", "GB of memory", "GB kept", "GB for a while"]
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
    limits, ends = [["step", "memory of a pod", "clips", "time of a pod", "clips"]], {}
    for step in (*seconds_of, "student"):
        pod, part = cluster.pod_of(step), memory_of.get(step, "epoch")
        # Training takes one core; noise may make the smaller size the greater one.
        used = float(parse_quantity(pod.cpu)) if step in ("dataset", "features") else 1
        fits = (float(parse_quantity(pod.memory)) - base[part]) / max(growth[part], 1)
        ends[f"memory of *{step}*"] = fits
        ends[f"time of *{step}*"] = done = pod.timeout_seconds * used / seconds_of.get(step, student)
        limits.append([step, pod.memory, f"{fits:,.0f}", f"{pod.timeout_seconds:,} s", f"{done:,.0f}"])
    first = min(ends, key=ends.__getitem__)
    return f"""## A plan for {PLAN_CLIPS:,} clips

AudioSet's size. From the figures above, per clip, with the defaults of params.yaml ({epochs} epochs, {views} views) and
on cores like these. A core is taken at ${CORE_HOUR} an hour and storage at ${GB_MONTH} a GB and month, about what
clouds ask; nothing of it has been run at this size.

{table(rows)}

Most of the time is *{slowest}*'s, {hours[slowest] / sum(hours.values()):.0%} of the hours of all steps, which a GPU or
`torchrun` shortens; most of what is kept, {sizes[largest] / sum(sizes.values()):.0%}, is *{largest}*'s.
Recordings are those above: as WAV of 44.1 kHz and 16 bit they would take {WAV_BYTES / held["recordings"]:.1f} times the
storage, and [performance.md](performance.md) has the time of their features. Those that are fetched into
`dataset.sonyc_ust.keep` or lie in a folder are there once more.

On Kubeflow: `kubeflow.feature_parts: {PODS}` divides the {shards:,} shards of the features among as many pods, and
`kubeflow.work_claim` lets each go on where it was killed; the shards are there beside what they are merged into. The
dataset step is one pod with as many workers as it has cores; students train side by side, one pod for each seed.

## What breaks first

`kubeflow.pod` and `kubeflow.steps` of params.yaml end a step with so many clips; evaluation and registration, which see
the held-out clips only, are not measured:

{table(limits)}

First, it is the {first}, at {ends[first]:,.0f} clips. A pod that runs out of time is tried {cluster.pod.retries} times;
with `kubeflow.work_claim`, each goes on where the one before was ended.
"""


def _taken(place: Place) -> dict[str, Any]:
    """Do each part in a process of its own, and keep what it found; done again, go on with the next one."""
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
    """Measure each size in its own process, keep the record and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="ascending, with commas in between")
    parser.add_argument("--render", action="store_true", help="measure nothing")
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
    PAGE.write_text(page(json.loads(RECORD.read_text())))


if __name__ == "__main__":
    main()
