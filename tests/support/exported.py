"""Exported students: small networks, what calibrates them, and a package as the evaluation step writes it."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from benchmarks.executorch import normalise
from iusp import models
from iusp.artifacts.evaluation import NETS, WHOLE, Parity
from iusp.artifacts.metrics import Auprc, Data, Metrics, StudentResult, TeacherResult
from iusp.config.features import Features
from iusp.device.conversion import write_onnx
from iusp.device.package import CardFacts, write_package
from iusp.features.log_mel import clip_length, log_mel
from iusp.models.layers import Tagger
from iusp.sources.embedded import scene
from tests.support.project import ROOT, SMALL, merged

PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
DEFAULT = Features(**PARAMS["features"])
CONFIG = Features(**merged(PARAMS, SMALL)["features"] | {"clip_seconds": 2})
TAGS = ["1_engine", "6_music", "8_dog"]


def noise(config: Features, clips: int) -> torch.Tensor:
    """Return clips with a quiet and a silent part."""
    samples = torch.randn(clips, clip_length(config), generator=torch.Generator().manual_seed(0)) / 10
    samples[:, : clip_length(config) // 3] *= 0.01
    samples[-1, -clip_length(config) // 3 :] = 0
    return samples


def network(architecture: str) -> Tagger:
    torch.manual_seed(0)
    tagger = models.build(architecture, models.ARCHITECTURES[architecture].WIDTHS[0], len(TAGS), CONFIG.mel_bands)
    with torch.no_grad():
        for name, buffer in tagger.named_buffers():
            # Values as after training: the test then sees a mistake in folding them into other layers.
            if name.endswith(("running_mean", "mean")):
                buffer.normal_(0, 0.1)
            elif name.endswith(("running_var", "std")):
                buffer.uniform_(0.5, 2)
    return tagger.eval()


def recordings(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return short clips of the embedded data set and their log-mel spectrograms."""
    samples = [scene(0, "test", number).samples[: clip_length(CONFIG)] for number in range(count)]
    clips = torch.from_numpy(np.stack(samples).astype(np.float32))
    return clips, torch.stack([log_mel(one, CONFIG) for one in clips])


def normalised(architecture: str, spectrograms: torch.Tensor) -> Tagger:
    tagger = network(architecture)
    normalise(tagger, spectrograms)
    return tagger


NAMES = [f"{kind}{end}" for kind in ("micro_auprc", "macro_auprc") for end in ("", "_low", "_high")]
NETWORK: dict[str, Any] = {
    "architecture": "plain",
    "parameters": 1000,
    "macs": 10000,
    "bytes": 4000,
    "coarse": Auprc(**dict.fromkeys(NAMES, 0.5), micro_f1=0.5, classwise=dict.fromkeys(("1", "6", "8"), 0.5)),
}
STUDENT = StudentResult(
    **NETWORK,
    best_seed=0,
    method="iusp",
    weights={"iusp": 100.0},
    validate_micro_auprc={"0": 0.7, "1": 0.6},
    seeds={"0": 0.5, "1": 0.6},
    seeds_mean=0.55,
    seeds_std=0.07,
)
GENERATED = Data(
    name="embedded",
    generated=True,
    license="Apache-2.0",
    digest="0123456789abcdef",
    clips={"train": 40, "validate": 20, "test": 20},
)


def packaged(folder: Path, data: Data) -> None:
    """Write what lies beside the ONNX files in `folder`."""
    metrics = Metrics(
        data=data,
        split="test",
        clips=20,
        absent_tags=["6_music"],
        teacher=TeacherResult(**NETWORK, sha256="0123"),
        students={"small": STUDENT},
    )
    files = (*NETS, *WHOLE)
    loss = {name: 0.01 if "int8" in name else None for name in files}
    facts = CardFacts(
        name="small",
        metrics=metrics,
        categories=dict(zip(("1", "6", "8"), TAGS, strict=True)),
        features_digest="fedcba9876543210",
        bytes={name: (folder / name).stat().st_size for name in files},
        parity={name: Parity(max_difference=1e-7, auprc_loss=loss[name]) for name in files},
    )
    write_package(folder, dict(zip(TAGS, [0.25, 0.5, 0.75], strict=True)), CONFIG, facts)


def calibrating() -> NDArray[np.float16]:
    """Return log-mel spectrograms to calibrate int8 with."""
    return np.stack([log_mel(one, CONFIG).numpy() for one in noise(CONFIG, 4)]).astype(np.float16)


def write_exported(folder: Path, calibration: NDArray[np.float16]) -> None:
    """Write the package of a student."""
    write_onnx(network("plain"), CONFIG, calibration, folder)
    packaged(folder, GENERATED)


def replaced(exported: Path, folder: Path, content: bytes) -> Path:
    """Return the path of a model that was put into a copy of the package together with its checksum."""
    shutil.copytree(exported, folder)
    (folder / "float32.onnx").write_bytes(content)
    description = json.loads((folder / "device.json").read_text())
    description["files"]["float32.onnx"]["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "device.json").write_text(json.dumps(description))
    return folder / "float32.onnx"


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("pwned"),)
