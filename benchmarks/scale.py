"""Scale: 1000, 10,000 and 100,000 generated clips through dataset, features, a view's knowledge and an epoch.

python -m benchmarks.scale                     writes benchmarks/scale.json and docs/scale.md (about an hour, 50 GB)
python -m benchmarks.scale --sizes 100,200     other sizes; writes nothing but prints the page
python -m benchmarks.scale --render            only write the page again

Each size has a process of its own, and what it found is kept: run again, the script goes on where it was stopped. The
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
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.epochs import Setting, epoch, untrained_teacher
from benchmarks.growth import Memory
from benchmarks.machine import machine
from benchmarks.performance import table
from benchmarks.timing import ROOT, WORK, settings
from iusp import embedded
from iusp.augmentation import draw_view
from iusp.files import write_json
from iusp.knowledge import read_knowledge
from iusp.progress import silent
from iusp.steps import dataset, features
from iusp.training import batches, epoch_order, read_training_data

SIZES = (1000, 10_000, 100_000)
RECORD, PAGE = ROOT / "benchmarks" / "scale.json", ROOT / "docs" / "scale.md"
STUDENT = ("plain", 7000)
CORES = os.cpu_count() or 1
# AudioSet's size, and list prices of the usual clouds, in dollars.
PLAN_CLIPS, PODS, CORE_HOUR, GB_MONTH = 2_000_000, 16, 0.04, 0.023
ORDER = ("dataset", "features", "knowledge of a view", "teacher's epoch", "epoch", "input pipeline")
TEACHER_CLIPS = 2000  # of its epoch: it takes as long for each clip, and long


def one(size: int) -> dict[str, Any]:
    """Take so many clips through the pipeline; return seconds, peak bytes and bytes on the disk of each part."""
    folder = WORK / f"scale-{size}"
    source, data = folder / "source", folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    indexed, recordings, packed = (data / name for name in ("dataset", "recordings", "features"))
    held_out = size // 20
    clips = {"train": size - 2 * held_out, "validate": held_out, "test": held_out}
    config = settings("dataset.source=folder", f"dataset.path={source}")
    kept = folder / "found.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}

    def measure(name: str, job: Callable[[], object], share: float = 1) -> None:
        if name in found:
            return
        memory = Memory()
        memory.start()
        began = time.perf_counter()
        job()
        seconds = time.perf_counter() - began
        memory.ended.set()
        found[name] = {"seconds": seconds / share, "peak": memory.peak}
        write_json(kept, found)

    def make_features(cores: int) -> None:
        features.run(config.features, indexed, recordings, packed, silent, workers=cores)

    if "dataset" not in found:
        embedded.write(source, config.dataset.seed, clips, CORES, silent)
    measure("dataset", lambda: dataset.run(config.dataset, indexed, recordings, silent))
    shutil.rmtree(source, ignore_errors=True)
    for cores in (1, CORES):
        if f"features, {cores} cores" not in found:
            shutil.rmtree(packed, ignore_errors=True)
        measure(f"features, {cores} cores", partial(make_features, cores))
    if "killed" not in found:
        found["killed"] = _kill_and_resume(folder, -(-size // config.features.clips_per_shard))
        write_json(kept, found)
    training = read_training_data(indexed, packed, "coarse")
    teacher = config.teacher
    measure(
        "knowledge of a view",
        lambda: untrained_teacher(
            teacher.architecture, teacher.parameters, training, teacher.training, config.augmentation.views, folder
        ),
    )
    setting = Setting(teacher.architecture, teacher.parameters, teacher.training, clips=TEACHER_CLIPS)
    view = draw_view(config.augmentation.teacher, 0, "training", 0, training.shape)
    share = min(TEACHER_CLIPS, clips["train"]) / clips["train"]
    measure("teacher's epoch", epoch(setting, training, view), share)
    knowledge = read_knowledge(folder, training)
    view, setting = knowledge.view(0), Setting(*STUDENT, config.student.training)
    measure("epoch", epoch(setting, training, view, "iusp", knowledge))
    similarity = knowledge.folder / "view-000" / "similarity-1.npy"
    order = epoch_order(len(training.clips), 0, 0)

    def input_pipeline() -> None:
        known = {"similarity-1": knowledge.read("similarity-1", 0)}
        for _ in batches(training, view, order, setting.config.batch_size, torch.device("cpu"), known):
            pass

    measure("input pipeline", input_pipeline)
    for path in (packed / "train.npy", similarity):
        _forget(path)
    measure("input pipeline, from the disk", input_pipeline)
    found["bytes"] = {
        "recordings": _size(recordings) / size,
        "features": _size(packed) / size,
        **{path.stem: path.stat().st_size / clips["train"] for path in sorted(similarity.parent.iterdir())},
    }
    return found


def _kill_and_resume(folder: Path, shards: int) -> dict[str, float]:
    """Kill the features step (SIGKILL) when half of the shards are made, and start it again."""
    shutil.rmtree(folder / "data" / "features", ignore_errors=True)
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


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def page(record: dict[str, Any]) -> str:
    """Return docs/scale.md."""
    found, cores = record["sizes"], record["cores"]
    sizes = sorted(found, key=int)
    last, greatest, before = int(sizes[-1]), found[sizes[-1]], found[sizes[-2]]
    times = [["part", *(f"{int(size):,} clips" for size in sizes), "ms per clip", "per clip, against a tenth"]]
    peaks = [["part", *(f"{int(size):,} clips" for size in sizes), "growth, bytes per clip"]]
    each, growth = {}, {}
    parts = [name for name in greatest if "seconds" in greatest[name]]
    for name in sorted(parts, key=lambda name: ORDER.index(name.split(",")[0])):
        seconds, memory = ([found[size][name][what] for size in sizes] for what in ("seconds", "peak"))
        each[name] = seconds[-1] / last
        growth[name] = (memory[-1] - memory[-2]) / (last - int(sizes[-2]))
        linear = each[name] / (before[name]["seconds"] / int(sizes[-2]))
        shown = name.replace("1 cores", "1 core")
        times.append([shown, *(f"{one:,.1f} s" for one in seconds), f"{1000 * each[name]:.2f}", f"{linear:.2f}×"])
        # What ends before its memory is looked at has no peak.
        peaks.append([shown, *(f"{one / 2**20:,.0f} MiB" if one else "" for one in memory), f"{growth[name]:,.0f}"])
    waiting, cold = (each[name] / each["epoch"] for name in ("input pipeline", "input pipeline, from the disk"))
    killed, held = greatest["killed"], greatest["bytes"]
    kept = [["kept of a clip", "bytes"], *([name, f"{held[name]:,.0f}"] for name in held)]
    return f"""# Scale

Written by `python -m benchmarks.scale`; not by hand. {record["machine"]}; {record["date"]}.

The clips are those of the embedded data set, all different: 10 s at 16 kHz, FLAC, as a folder of recordings. A part's
time is from its call to its return; its peak is of the memory of all its processes, without pages of files, which the
kernel takes back when it needs them.

## Time

{table(times)}

The features step makes {1 / each["features, 1 cores"]:,.0f} clips per second on one core, and
{1 / each[f"features, {cores} cores"]:,.0f} on {cores}.

## Memory

{table(peaks)}

## A kill

The features step, killed (SIGKILL) when {killed["kept"]} of {killed["shards"]} shards were made, and started again: of
these, {killed["made again"]} were made again. What a kill loses is the shards in the making, one for each worker.

## Training streams

A batch is gathered from the packed file, augmented and handed over, and the model waits for that. Making an epoch's
batches takes {waiting:.0%} of the epoch of the smallest student ({STUDENT[0]}, at most {STUDENT[1]:,} parameters), for
which it matters most; {cold:.0%} with the files not in memory.

## On the disk

{table(kept)}

Knowledge is a constant number of bytes for each clip and view: SP's clips are hashed, IUSP's matrices are of the frames
of one clip. Nothing is kept of a pair of clips.

{_plan(each, growth, held, cores)}"""


def _plan(each: dict[str, float], growth: dict[str, float], held: dict[str, float], cores: int) -> str:
    """Return what PLAN_CLIPS would take, from each clip's seconds, growth of memory and bytes on the disk."""
    config = settings()
    epochs, views = config.teacher.training.epochs, config.teacher.views
    shards = PLAN_CLIPS // config.features.clips_per_shard
    knowledge = views * sum(held[name] for name in config.teacher.knowledge_names)
    steps = [  # name, pods, cores of a pod, core-seconds, bytes of memory, bytes on the disk
        ("dataset", 1, cores, cores * each["dataset"], growth["dataset"], held["recordings"]),
        ("features", PODS, 1, each["features, 1 cores"], growth["features, 1 cores"], held["features"]),
        ("teacher, training", 1, 1, epochs * each["teacher's epoch"], growth["teacher's epoch"], 0),
        ("teacher, knowledge", 1, 1, views * each["knowledge of a view"], growth["knowledge of a view"], knowledge),
        ("a student", 1, 1, config.student.training.epochs * each["epoch"], growth["epoch"], 0),
    ]
    head = ["step", "pods", "core-hours", "hours", "memory, GB", "storage, GB", "computing, $", "storage, $ a month"]
    rows, hours, memories, sizes = [head], {}, {}, {}
    for name, pods, pod_cores, seconds, memory, disk in steps:
        core_hours = seconds * PLAN_CLIPS / 3600
        hours[name] = core_hours / pods / pod_cores
        memories[name], sizes[name] = (max(each, 0) * PLAN_CLIPS / 1e9 for each in (memory, disk))
        rows.append(
            [
                name,
                str(pods),
                f"{core_hours:,.0f}",
                f"{hours[name]:,.1f}",
                f"{memories[name]:,.1f}",
                f"{sizes[name]:,.0f}",
                f"{core_hours * CORE_HOUR:,.2f}",
                f"{sizes[name] * GB_MONTH:,.0f}",
            ]
        )
    slowest, hungriest, largest = (max(values, key=values.__getitem__) for values in (hours, memories, sizes))
    return f"""## A plan for {PLAN_CLIPS:,} clips

AudioSet's size. From the figures above, per clip, with the defaults of params.yaml ({epochs} epochs, {views} views) and
on cores like these; memory is what grows with the clips. A core is taken at ${CORE_HOUR} an hour and storage at
${GB_MONTH} a GB and month, about what clouds ask; nothing of it has been run at this size.

{table(rows)}

On Kubeflow: `kubeflow.feature_parts: {PODS}` divides the {shards:,} shards of the features among as many pods, and
`kubeflow.work_claim` lets each go on where it was killed. The dataset step is one pod with as many workers as it has
cores; students train side by side, one pod for each seed.

What breaks first, in this table: of time, *{slowest}*, {hours[slowest] / sum(hours.values()):.0%} of the hours of all
steps; of memory, *{hungriest}*, which grows by {memories[hungriest]:.1f} GB; of storage, *{largest}*,
{sizes[largest] / sum(sizes.values()):.0%} of all bytes.
"""


def main() -> None:
    """Measure each size in its own process, keep the record and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="ascending, with commas in between")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one)))
        return
    sizes = list(map(int, arguments.sizes.split(",")))
    if not arguments.render:
        record: dict[str, Any] = {"machine": machine(), "cores": CORES, "date": datetime.now(UTC).date().isoformat()}
        record["sizes"] = {}
        for size in sizes:
            print(f"{size} clips …", file=sys.stderr, flush=True)
            command = [sys.executable, "-m", "benchmarks.scale", "--one", str(size)]
            answer = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
            record["sizes"][str(size)] = json.loads(answer.splitlines()[-1])
            shutil.rmtree(WORK / f"scale-{size}")
        if tuple(sizes) != SIZES:
            print(page(record))
            return
        write_json(RECORD, record)
    PAGE.write_text(page(json.loads(RECORD.read_text())))


if __name__ == "__main__":
    main()
