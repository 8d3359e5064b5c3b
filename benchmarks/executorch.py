"""Compare ExecuTorch with ONNX Runtime (size, operators in XNNPACK, parity, time), for docs/device.md.

This needs the extra (`make executorch`). The networks are normalised on recordings but not trained, because no
figure here depends on training.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import machine
from benchmarks.pages import DOCS, ROOT, replace_section
from benchmarks.speed.timing import interleaved, one_thread
from iusp import models
from iusp.artifacts.evaluation import NETS, WHOLE
from iusp.config.params import load
from iusp.device.conversion import write_onnx
from iusp.device.executorch import NET, open_program, write_programs
from iusp.device.executorch import WHOLE as WHOLE_PROGRAM
from iusp.device.runtime import open_session
from iusp.features.log_mel import log_mel
from iusp.io.files import write_json
from iusp.models.layers import Tagger
from iusp.sources.embedded import scene

PARAMETERS = 80_000
TAGS = [f"tag_{number}" for number in range(8)]
CLIPS = 100


def normalise(network: Tagger, spectrograms: torch.Tensor) -> None:
    """Set the normalisation of a network so that its output depends on the clip, as after training.

    Without it, all clips give the same output, and equal outputs would prove nothing.
    """
    with torch.no_grad():
        network.mean.copy_(spectrograms.mean(dim=(0, 1)))
        network.std.copy_(spectrograms.std(dim=(0, 1)))
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        network.train()(spectrograms)
        network.eval()


def main() -> None:
    """Measure every family and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args().rounds
    one_thread()
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

    _unsafe_reset_threadpool(1)
    config = load(ROOT / "params.yaml").features
    clips = torch.from_numpy(np.stack([scene(0, "test", number).samples for number in range(CLIPS)]).astype(np.float32))
    spectrograms = torch.stack([log_mel(one, config) for one in clips])
    lines = [
        "| family | parameters | kB, net / end to end (ONNX file in brackets) | operators in XNNPACK, net / end to end "
        "| largest difference from PyTorch | time ÷ time of ONNX Runtime, net / end to end |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for architecture in models.ARCHITECTURES:
        width = models.width_for(architecture, PARAMETERS, len(TAGS), config.mel_bands)
        network = models.build(architecture, width, len(TAGS), config.mel_bands)
        normalise(network, spectrograms[:16])
        with torch.no_grad():
            ours = network(spectrograms)[0].sigmoid()
        described = {
            "architecture": architecture,
            "width": width,
            "tags": TAGS,
            "features": config.model_dump(mode="json"),
        }
        with tempfile.TemporaryDirectory() as temporary:
            model, folder = Path(temporary) / "model", Path(temporary) / "programs"
            models.save(model / "extra_files", network, described)
            device = model / "device"
            write_onnx(network, config, spectrograms[:8].numpy().astype(np.float16), device)
            write_json(device / "device.json", {"thresholds": dict.fromkeys(TAGS, 0.5), "license": "Apache-2.0"})
            (device / "LICENSE").touch()
            programs = write_programs(model, folder)
            opened = {name: open_program(folder / name) for name in programs}
            given = {NET: spectrograms, WHOLE_PROGRAM: clips}
            difference = max(
                float((opened[name].execute([values[row : row + 1]])[0] - ours[row]).abs().max())
                for name, values in given.items()
                for row in range(CLIPS)
            )
            jobs: dict[str, Callable[[], object]] = {
                name: partial(opened[name].execute, [values[:1]]) for name, values in given.items()
            }
            for name, values, key in ((NETS[0], spectrograms, "log_mel"), (WHOLE[0], clips, "waveform")):
                jobs[name] = partial(open_session(device / name).run, None, {key: values[:1].numpy()})
            times = {name: statistics.median(seconds) for name, seconds in interleaved(jobs, rounds).items()}
            pairs = ((NET, NETS[0]), (WHOLE_PROGRAM, WHOLE[0]))
            cells = [
                architecture,
                f"{models.parameter_count(network):,}",
                " / ".join(
                    f"{(folder / name).stat().st_size / 1000:.0f} ({(device / other).stat().st_size / 1000:.0f})"
                    for name, other in pairs
                ),
                " / ".join(f"{one.delegated} of {one.delegated + one.remaining}" for one in programs.values()),
                f"{difference:.1e}",
                " / ".join(f"{times[name] / times[other]:.2f}" for name, other in pairs),
            ]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], json.dumps({name: round(value * 1000, 3) for name, value in times.items()}), flush=True)
    note = f"Measured on {CLIPS} generated clips of 10 s, one at a time, on one thread of this machine: {machine()}."
    lines += ["", note]
    replace_section(DOCS / "device.md", "\n".join(lines) + "\n", "executorch")


if __name__ == "__main__":
    main()
