"""The training step in default float32, in channels-last memory and in bfloat16: time, AUPRC, and share of a GEMM."""

import statistics
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from scipy import stats
from torch import Tensor, nn

from benchmarks.speed.epochs import Setting, epoch
from benchmarks.speed.timing import Report, embedded, interleaved, milliseconds, one_thread, operators, ratio, settings
from iusp.config.augmentation import Augmentation
from iusp.config.base import Architecture
from iusp.config.training import Training
from iusp.evaluation.cost import multiply_accumulates
from iusp.features.augmentation import draw_view
from iusp.models import width_for
from iusp.training.data import Batch, TrainingData, batches, epoch_order
from iusp.training.loop import TrainingJob, label_loss, train
from iusp.training.networks import new_network

NETWORKS: dict[str, tuple[Architecture, int]] = {
    "default teacher": ("residual", 320_000),
    "plain student (24 k parameters)": ("plain", 24_000),
    "plain student (7 k parameters)": ("plain", 7000),
    "CNN-LSTM student (24 k parameters)": ("cnn_lstm", 24_000),
}
CLIPS, SEEDS, EPOCHS = 64, range(6), 6
GEMM = 2048


def gemm(precision: torch.dtype) -> float:
    """Return multiply-accumulates per second of a large matrix product on one thread."""
    matrix = torch.randn(GEMM, GEMM).to(precision)
    times = interleaved({"gemm": lambda: matrix @ matrix}, 5)["gemm"]
    return GEMM**3 / statistics.median(times)


def auprc(
    network: tuple[Architecture, int],
    data: TrainingData,
    augmentation: Augmentation,
    config: Training,
    seed: int,
    contiguous: bool,
) -> float:
    """Train and return the best micro AUPRC on the validation clips."""
    tagger, description = new_network(*network, data, config, seed)
    if contiguous:
        tagger.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def losses(logits: Tensor, maps: tuple[Tensor, ...], batch: Batch) -> dict[str, Tensor]:
        return {"labels": label_loss(logits, batch.targets, batch.mask)}

    def epoch_batches(number: int) -> Iterator[Batch]:
        view = draw_view(augmentation, seed, "training", number, data.shape)
        return batches(data, view, epoch_order(len(data.clips), seed, number), config.batch_size, tagger.device)

    with TemporaryDirectory() as folder:
        job = TrainingJob(tagger, description, data, epoch_batches, losses, config, auxiliary=nn.Module())
        return float(train(job, Path(folder), lambda row: None).validate_micro_auprc)


def main() -> None:
    """Measure and print."""
    one_thread()
    config = settings()
    data, _ = embedded(400, 100)
    report = Report()
    peaks = {"float32": gemm(torch.float32), "bfloat16": gemm(torch.bfloat16)}
    report.notes.append(
        "A large matrix product reaches "
        + " and ".join(f"{2 * peak / 1e9:,.0f} GFLOP/s in {name}" for name, peak in peaks.items())
        + " on one thread."
    )
    for title, network in NETWORKS.items():
        of = config.teacher.training if "teacher" in title else config.distillation.training
        augmentation = config.augmentation.teacher if "teacher" in title else config.augmentation.views
        kinds = {precision: of.model_copy(update={"precision": precision}) for precision in ("float32", "bfloat16")}
        view = draw_view(augmentation, 0, "training", 0, data.shape)
        jobs = {
            "default": epoch(Setting(*network, kinds["float32"], contiguous=True, clips=CLIPS), data, view),
            "channels-last": epoch(Setting(*network, kinds["float32"], clips=CLIPS), data, view),
            "both": epoch(Setting(*network, kinds["bfloat16"], clips=CLIPS), data, view),
        }
        times = interleaved(jobs, 4)
        over = f"{title}: step in default float32"
        report.figures.append(ratio(f"{over} ÷ step in bfloat16 + channels-last", times["default"], times["both"], 1.8))
        report.figures.append(
            ratio(f"{over} ÷ step in float32 + channels-last", times["default"], times["channels-last"])
        )
        width = width_for(*network, len(data.clips.tags), config.features.mel_bands)
        macs = 3 * CLIPS * multiply_accumulates(network[0], width, len(data.clips.tags), config.features)
        shares = {
            name: macs / statistics.median(times[job]) / peaks[name]
            for name, job in (("float32", "channels-last"), ("bfloat16", "both"))
        }
        steps = {
            job: milliseconds([seconds * of.batch_size / CLIPS for seconds in times[job]])
            for job in ("channels-last", "both")
        }
        report.notes.append(
            f"{title}: with channels-last, a step of {of.batch_size} clips takes {steps['channels-last']} in float32 "
            f"and {steps['both']} in bfloat16. If a step counts as three forward passes, it reaches "
            f"{shares['float32']:.0%} (float32) and {shares['bfloat16']:.1%} (bfloat16) of the throughput of a large "
            "matrix product in the same precision."
        )
        if network[0] != "cnn_lstm":
            short = {name: one.model_copy(update={"epochs": EPOCHS, "threads": 1}) for name, one in kinds.items()}
            usual = [auprc(network, data, augmentation, short["float32"], seed, True) for seed in SEEDS]
            both = [auprc(network, data, augmentation, short["bfloat16"], seed, False) for seed in SEEDS]
            test = stats.ttest_rel(both, usual)
            low, high = test.confidence_interval()
            report.notes.append(
                f"{title}: after at most {EPOCHS} epochs of {len(data.clips)} clips, the best micro AUPRC on the "
                f"validation clips is {statistics.mean(usual):.3f} ± {statistics.stdev(usual):.3f} in default float32 "
                f"and {statistics.mean(both):.3f} ± {statistics.stdev(both):.3f} in bfloat16 + channels-last (mean ± "
                f"standard deviation over {len(SEEDS)} seeds). The difference is "
                f"{statistics.mean(both) - statistics.mean(usual):+.3f}, with the 95 % interval [{low:+.3f}, "
                f"{high:+.3f}]."
            )
        if title in ("default teacher", "plain student (7 k parameters)"):
            report.profiles[f"{title}, an epoch in bfloat16, by operator"] = operators(jobs["both"], 10)
    report.print()


if __name__ == "__main__":
    main()
