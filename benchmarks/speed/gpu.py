"""Training of the large teacher on a GPU: clips per second, and share of the peak throughput."""

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.speed.epochs import Setting, epoch
from benchmarks.speed.timing import Report, embedded, settings
from iusp.config.base import Architecture
from iusp.evaluation.cost import multiply_accumulates
from iusp.features.augmentation import draw_view
from iusp.models import width_for

TEACHER: tuple[Architecture, int] = ("vggish", 13_000_000)
BATCH, GEMM, ROUNDS = 256, 8192, 5


def seconds(job: Callable[[], object]) -> float:
    """Return the median wall time of a job on the GPU, after one run to warm up."""
    times = []
    for _ in range(ROUNDS + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        job()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    """Measure and print."""
    report = Report()
    if not torch.cuda.is_available():
        report.notes.append(
            "Not measured, because this machine has no GPU. Run `python -m benchmarks.speed.gpu` on a machine with a "
            "GPU."
        )
        report.print()
        return
    config = settings()
    data, _ = embedded(2048, 64)
    training = config.teacher.training.model_copy(
        update={"precision": "bfloat16", "batch_size": BATCH, "device": "cuda"}
    )
    matrix = torch.randn(GEMM, GEMM, device="cuda", dtype=torch.bfloat16)
    peak = GEMM**3 / seconds(lambda: matrix @ matrix)
    view = draw_view(config.augmentation.teacher, 0, "training", 0, data.shape)
    rate = len(data.clips) / seconds(epoch(Setting(*TEACHER, training), data, view))
    bands, tags = config.features.mel_bands, len(data.clips.tags)
    width = width_for(*TEACHER, tags, bands)
    macs = 3 * multiply_accumulates(TEACHER[0], width, tags, config.features)
    small = Setting(*TEACHER, training.model_copy(update={"precision": "float32"}))
    slow = len(data.clips) / seconds(epoch(small, data, view))
    report.notes.append(
        f"On {torch.cuda.get_device_name()}, the VGGish-style teacher (13 M parameters) trains on {rate:,.0f} clips "
        f"per second in bfloat16 and on {slow:,.0f} clips per second in float32, in batches of {BATCH} clips. In "
        f"bfloat16, it reaches {rate * macs / peak:.0%} of the throughput of a large matrix product, which is "
        f"{2 * peak / 1e12:,.0f} TFLOP/s. The clips are copied to the GPU in float16 from pinned memory and augmented "
        "there."
    )
    report.print()


if __name__ == "__main__":
    main()
