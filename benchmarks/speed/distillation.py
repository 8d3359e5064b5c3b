"""Distillation with stored knowledge, compared with labels alone and with the teacher in the training loop."""

import math
import shutil
import statistics
import time

from benchmarks.speed.epochs import NAMES, Setting, epoch, untrained_teacher
from benchmarks.speed.timing import (
    WORK,
    Report,
    duration,
    embedded,
    interleaved,
    one_thread,
    operators,
    ratio,
    settings,
)
from iusp.config.base import Architecture
from iusp.training.knowledge import read_knowledge

TEACHERS: dict[str, tuple[Architecture, int, int]] = {
    "default teacher": ("residual", 320_000, 5),
    "VGGish-style teacher (13 M parameters)": ("vggish", 13_000_000, 15),
}
"""Family, parameters, and the target of the ratio."""
CLIPS, SLOW_CLIPS = 192, 64
STUDENTS: dict[str, tuple[Architecture, int]] = {
    "plain student (7 k parameters)": ("plain", 7000),
    "CNN-LSTM student (3.5 k parameters)": ("cnn_lstm", 3500),
}


def main() -> None:
    """Measure and print."""
    one_thread()
    config = settings()
    data, _ = embedded(250, 50)
    report = Report()
    for title, (architecture, parameters, target) in TEACHERS.items():
        folder = WORK / "teacher"
        shutil.rmtree(folder, ignore_errors=True)
        start = time.process_time()
        teacher = untrained_teacher(
            architecture, parameters, data, config.teacher.training, config.augmentation.views, folder
        )
        making = (time.process_time() - start) / len(data.clips)
        knowledge = read_knowledge(folder, data)
        view = knowledge.view(0)
        for student, network in STUDENTS.items():
            fast = Setting(*network, config.distillation.training, clips=CLIPS)
            slow = Setting(*network, config.distillation.training, clips=SLOW_CLIPS)
            if architecture == "residual":
                cached = {method: epoch(fast, data, view, method, knowledge) for method in NAMES}
                times = interleaved(cached, 8)
                for method in ("kd", "sp", "iusp"):
                    what = f"{student}: step with stored knowledge ({method}) ÷ step with labels alone"
                    report.figures.append(ratio(what, times[method], times["labels"], 1.15, at_most=True))
                caption = f"{student}: an epoch with stored knowledge (iusp), by operator"
                report.profiles[caption] = operators(cached["iusp"])
            times = interleaved(
                {
                    "cached": epoch(slow, data, view, "iusp", knowledge),
                    "online": epoch(slow, data, view, "iusp", knowledge, teacher),
                },
                4,
            )
            what = f"{student}: epoch with the {title} in the loop ÷ epoch with stored knowledge (iusp)"
            report.figures.append(ratio(what, times["online"], times["cached"], target))
            cached_clip, online_clip = (statistics.median(times[name]) / SLOW_CLIPS for name in ("cached", "online"))
            views, epochs = config.teacher.views, config.distillation.training.epochs
            report.notes.append(
                f"{title}, {student}: it takes {duration(making)} to compute and store the knowledge of one view of a "
                f"clip. This is done once. Storing the knowledge of {views} views saves time after "
                f"{math.ceil(views * making / (online_clip - cached_clip))} epochs in total, counted over all students "
                f"and seeds. Each student trains for {epochs} epochs with each seed."
            )
    report.print()


if __name__ == "__main__":
    main()
