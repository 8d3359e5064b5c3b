"""Write the tables and the picture of README.md and docs/device.md from what `make run` measured."""

import argparse
import shutil
from collections.abc import Iterator

from benchmarks.machine import machine
from benchmarks.pages import DOCS, PICTURES, ROOT, replace_section, table
from iusp.artifacts.evaluation import EvaluationFolder
from iusp.artifacts.metrics import Metrics, NetworkResult, NetworkTimes, StudentResult, Times, method_of
from iusp.cli.console import readable_failures

RUNTIMES = {"torch": "PyTorch", "float32": "ONNX float32", "int8": "ONNX int8"}


def readme_table(evaluation: EvaluationFolder) -> str:
    """Return the table of README.md: the teacher, then the students, the best first."""
    metrics = evaluation.metrics
    latencies = evaluation.latencies(*metrics.networks)
    rows = []
    for name, network in sorted_networks(metrics):
        coarse = network.coarse
        rows.append(
            [
                name,
                method_of(network),
                f"{network.parameters:,}",
                f"{latencies[name].float32.audio_to_tags.p50:.2f}",
                f"{coarse.micro_auprc:.3f} [{coarse.micro_auprc_low:.3f}, {coarse.micro_auprc_high:.3f}]",
            ]
        )
    head = ["network", "method", "parameters", "ms per clip", "micro AUPRC [95 % interval]"]
    source = "generated scenes" if metrics.data.generated else metrics.data.name
    note = (
        f"The AUPRC is measured on {metrics.clips} {metrics.split} clips ({source}). Some students are "
        "trained several times, each time with another\n"
        "random seed. For these students, the table shows the seed that is best on the validation clips. The intervals "
        "show how the\n"
        "AUPRC varies with the choice of test clips. The time is the time from audio to tags. It is measured with the "
        "float32 ONNX\n"
        f"file on one thread of this machine: {machine()}.\n"
    )
    return f"{table(head, rows, 2)}\n{note}"


def sorted_networks(metrics: Metrics) -> list[tuple[str, NetworkResult]]:
    """Return the teacher, then the students by falling micro AUPRC."""
    students = sorted(metrics.students.items(), key=lambda item: -item[1].coarse.micro_auprc)
    return [("teacher", metrics.teacher), *students]


def device_table(evaluation: EvaluationFolder) -> str:
    """Return the table of docs/device.md: what each file costs on a device, and what int8 loses."""
    metrics = evaluation.metrics
    latencies = evaluation.latencies(*metrics.networks)
    rows = [
        row
        for name, network in sorted_networks(metrics)
        for row in _device_rows(evaluation, name, network, latencies[name])
    ]
    head = [
        *("network", "file", "network alone, ms p50 / p95", "audio to tags, ms p50 / p95", "kB, network / end to end"),
        *("micro AUPRC lost to int8", "largest difference from PyTorch"),
    ]
    note = (
        f"Measured on {metrics.clips} {metrics.split} clips of 10 s, one at a time, on one thread of this machine: "
        f"{machine()}.\n"
    )
    return f"{table(head, rows, 2)}\n{note}"


def _device_rows(
    evaluation: EvaluationFolder, name: str, network: NetworkResult, times: NetworkTimes
) -> Iterator[list[str]]:
    """Yield a row for each runtime. The teacher goes to no device, so only its times are known."""
    by_runtime: dict[str, Times] = {"torch": times.torch, "float32": times.float32, "int8": times.int8}
    measured = None
    if isinstance(network, StudentResult):
        measured = evaluation.model(f"{name}-seed-{network.best_seed}").measurements
    for runtime, title in RUNTIMES.items():
        spans = (by_runtime[runtime].network, by_runtime[runtime].audio_to_tags)
        cells = [name, title, *(f"{span.p50:.2f} / {span.p95:.2f}" for span in spans)]
        if measured and runtime != "torch":
            parity = measured.parity[f"{runtime}.onnx"]
            cells.append(" / ".join(f"{measured.bytes[f'{part}{runtime}.onnx'] / 1000:.0f}" for part in ("net_", "")))
            cells.append("" if parity.auprc_loss is None else f"{parity.auprc_loss:.4f}")
            cells.append(f"{parity.max_difference:.1e}")
        else:
            cells += [""] * 3
        yield cells


def write(evaluation: EvaluationFolder) -> None:
    """Write both tables, and copy the picture of README.md."""
    replace_section(ROOT / "README.md", readme_table(evaluation))
    replace_section(DOCS / "device.md", device_table(evaluation))
    PICTURES.mkdir(parents=True, exist_ok=True)
    shutil.copy(evaluation.plots / "comparison.png", PICTURES)


def main() -> None:
    """Write them."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with readable_failures():
        write(EvaluationFolder(ROOT / "reports" / "evaluation"))


if __name__ == "__main__":
    main()
