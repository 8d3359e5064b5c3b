"""Export a student as ExecuTorch programs for XNNPACK in float32: the network alone, and end to end."""

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
BATCH = 8  # largest batch; the export plans the memory of a program in advance
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Program:
    """Properties of an exported program.

    Attributes:
        delegated: number of operators that XNNPACK computes.
        remaining: number of operators that ExecuTorch's own kernels compute.
        max_difference: largest difference of a probability from PyTorch's.
    """

    delegated: int
    remaining: int
    max_difference: float


def write_programs(model: Path, folder: Path) -> dict[str, Program]:
    """Write `NET`, from log-mel (B, T, M), and `WHOLE`, from a waveform (B, samples), to probabilities (B, K).

    B is 1 to `BATCH`. `LICENSE` and `device.json` (tags, thresholds, front-end, SHA-256 of each file) are written too.

    Args:
        model: folder of a registered version, or the folder that the evaluation step prepares for registration.
        folder: folder to write into.

    Returns:
        The properties of each program, by its name.

    Raises:
        InputError: the extra `executorch` is not installed, the model cannot be loaded, or the output of a program
            differs from PyTorch's.
    """
    network, description = models.load(model / "extra_files")
    packaged = read_json(model / "device" / DESCRIPTION, "thresholds", "license")
    config = Features.model_validate(description["features"])
    # XNNPACK accepts weights in this memory format only.
    net = Probabilities(network).to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    noise = torch.randn(BATCH, clip_length(config), generator=torch.Generator().manual_seed(0)) / 10
    spectrograms = torch.stack([log_mel(clip, config) for clip in noise])
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
            "thresholds": packaged["thresholds"],
            "features": config.model_dump(mode="json"),
            "license": packaged["license"],
            "files": {path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in files},
        },
    )
    return programs


def open_program(path: Path) -> Any:
    """Open a program; `execute([input])` of the result returns a list of one output."""
    from executorch.runtime import Runtime

    return Runtime.get().load_program(path).load_method("forward")


def _write(module: nn.Module, given: Tensor, ours: Tensor, path: Path) -> Program:
    """Write a program after comparing it with PyTorch on one clip, three clips and the largest batch."""
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.devtools.backend_debug import get_delegation_info
        from executorch.exir import to_edge_transform_and_lower
    except ModuleNotFoundError as error:
        raise InputError(
            f"ExecuTorch is not installed ({error.name} is missing); run make executorch, or install iusp[executorch]"
        ) from None
    # The exporter would treat a batch of one as a constant.
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
        if not all(difference <= TOLERANCE for difference in differences):
            found = ", ".join(f"{difference:.1e}" for difference in differences)
            raise InputError(f"{path}: differs from PyTorch ({found} on 1, 3, {BATCH} clips); use the ONNX files")
    return Program(info.num_delegated_nodes, info.num_non_delegated_nodes, max(differences))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide log messages and warnings of ExecuTorch, torchao and PyTorch that do not concern the user."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
