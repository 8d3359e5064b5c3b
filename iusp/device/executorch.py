"""A student as ExecuTorch programs for XNNPACK, in float32: net only and end to end."""

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iusp import models
from iusp.config.features import Features
from iusp.device.front_end import FrontEnd
from iusp.device.runtime import DESCRIPTION
from iusp.errors import InputError
from iusp.features.log_mel import clip_length, log_mel
from iusp.io.files import atomic, read_json, sha256, write_json
from iusp.models.layers import Probabilities

NET, WHOLE = "net.pte", "float32.pte"
BATCH = 8  # clips at most at once: a program's memory is planned when it is written
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Program:
    """What is known of a written program.

    Attributes:
        delegated: operators that XNNPACK computes.
        remaining: operators that ExecuTorch's own kernels compute.
        max_difference: of any probability from PyTorch's.
    """

    delegated: int
    remaining: int
    max_difference: float


def write_programs(model: Path, folder: Path) -> dict[str, Program]:
    """Write `NET`, from log-mel (B, T, M), and `WHOLE`, from a waveform (B, samples), to probabilities (B, K).

    B is 1 to `BATCH`. Beside them come `LICENSE` and `device.json`: tags, thresholds, front-end, SHA-256 of each file.

    Args:
        model: folder of a registered version, or the one that evaluation registers.
        folder: to write into.

    Returns:
        What is known of each program, by its name.

    Raises:
        InputError: the extra is not installed, the model cannot be loaded, or a program computes anything else than
            PyTorch.
    """
    network, description = models.load(model / "extra_files")
    known = read_json(model / "device" / DESCRIPTION, "thresholds", "license")
    config = Features.model_validate(description["features"])
    # XNNPACK's passes take weights in this memory format only.
    net = Probabilities(network).to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    noise = torch.randn(BATCH, clip_length(config), generator=torch.Generator().manual_seed(0)) / 10
    spectrograms = torch.stack([log_mel(one, config.sample_rate, config) for one in noise])
    programs = {}
    with torch.no_grad(), _quiet():
        ours = net(spectrograms)
        for name, module, given in (
            (NET, net, spectrograms),
            (WHOLE, nn.Sequential(FrontEnd(config), net).eval(), noise),
        ):
            programs[name] = _write(module, given, ours, folder / name)
    shutil.copyfile(model / "device" / "LICENSE", folder / "LICENSE")
    files = [folder / name for name in (NET, WHOLE, "LICENSE")]
    write_json(
        folder / DESCRIPTION,
        {
            "tags": description["tags"],
            "thresholds": known["thresholds"],
            "features": config.model_dump(mode="json"),
            "license": known["license"],
            "files": {path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in files},
        },
    )
    return programs


def open_program(path: Path) -> Any:
    """Open a program; `execute([input])` of what is returned gives a list of one output."""
    from executorch.runtime import Runtime

    return Runtime.get().load_program(path).load_method("forward")


def _write(module: nn.Module, given: Tensor, ours: Tensor, path: Path) -> Program:
    """Write a program, unless it differs from PyTorch on one clip, three, or the most that are possible."""
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.devtools.backend_debug import get_delegation_info
        from executorch.exir import to_edge_transform_and_lower
    except ModuleNotFoundError as error:
        raise InputError(
            f"ExecuTorch is not installed ({error.name} is missing); run make executorch, or install iusp[executorch]"
        ) from None
    # The exporter takes a batch of one for a constant.
    shapes = ({0: torch.export.Dim("batch", min=1, max=BATCH)},)
    exported = torch.export.export(module, (given[:2],), dynamic_shapes=shapes)
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    info = get_delegation_info(lowered.exported_program().graph_module)
    with atomic(path) as temporary:
        temporary.write_bytes(lowered.to_executorch().buffer)
        program = open_program(temporary)
        differences = [
            float((program.execute([given[:count]])[0] - ours[:count]).abs().max()) for count in (1, 3, BATCH)
        ]
        if not all(one <= TOLERANCE for one in differences):
            found = ", ".join(f"{one:.1e}" for one in differences)
            raise InputError(f"{path}: differs from PyTorch ({found} on 1, 3, {BATCH} clips); use the ONNX files")
    return Program(info.num_delegated_nodes, info.num_non_delegated_nodes, max(differences))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep from people what ExecuTorch, torchao and PyTorch tell each other while they export."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
