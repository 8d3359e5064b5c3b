"""Build networks by name and parameter budget, and save and load them without pickle. Independent of distillation."""

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field
from safetensors import SafetensorError
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise

from iusp.config.base import Architecture, Share, TagSet
from iusp.errors import InputError
from iusp.io.files import atomic, read_json, write_json
from iusp.io.text import one_line
from iusp.models.cnn_lstm import CnnLstm
from iusp.models.layers import Tagger
from iusp.models.mobilenetv2 import MobileNetV2
from iusp.models.plain import Plain
from iusp.models.residual import Residual
from iusp.models.separable import Separable
from iusp.models.vggish import VGGish

ARCHITECTURES: dict[str, type[Tagger]] = {
    "residual": Residual,
    "vggish": VGGish,
    "mobilenetv2": MobileNetV2,
    "plain": Plain,
    "separable": Separable,
    "cnn_lstm": CnnLstm,
}


def parameter_count(network: torch.nn.Module) -> int:
    """Return the number of trained parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def width_for(architecture: str, parameters: int, tags: int, bands: int) -> int:
    """Return the width of the largest network that fits a parameter budget.

    Args:
        architecture: family of the network.
        parameters: largest number of parameters.
        tags: number of logits.
        bands: number of mel bands.

    Raises:
        InputError: even the smallest network of the family has more parameters.
    """
    family = ARCHITECTURES[architecture]
    fitting = 0
    smallest = 0
    with torch.device("meta"):
        for width in family.WIDTHS:
            count = parameter_count(family(width, tags, bands))
            smallest = smallest or count
            if count > parameters:
                break
            fitting = width
    if not fitting:
        raise InputError(
            f"the smallest {architecture} for {tags} tags has {smallest} parameters; `parameters` allows {parameters}"
        )
    return fitting


def build(architecture: str, width: int, tags: int, bands: int) -> Tagger:
    """Build a network and initialise it with torch's random generator.

    Args:
        architecture: family of the network.
        width: width within the family.
        tags: number of logits.
        bands: number of mel bands.
    """
    network = ARCHITECTURES[architecture](width, tags, bands)
    # Convolutions are faster in this memory format, on CPUs and on GPUs.
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def save(folder: Path, network: Tagger, config: dict[str, Any]) -> dict[str, Any]:
    """Write `weights.safetensors` and, beside it, `config.json` (architecture, width, tags, mel_bands and more).

    Args:
        folder: folder to write into.
        network: network to save.
        config: content of `config.json`, except the SHA-256 of the weights.

    Returns:
        The content of `config.json`: `config` and the SHA-256 of the weights.
    """
    content = serialise({name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()})
    with atomic(folder / "weights.safetensors") as temporary:
        temporary.write_bytes(content)
    config = config | {"sha256": hashlib.sha256(content).hexdigest()}
    write_json(folder / "config.json", config)
    return config


class _FrontEnd(BaseModel):
    mel_bands: int


class _Network(BaseModel):
    architecture: Architecture
    width: int
    tags: Annotated[list[str], Field(min_length=1)]
    features: _FrontEnd
    sha256: str


class _Trained(_Network):
    features_digest: str
    parameters: int


class _Teacher(_Trained):
    predicts: TagSet


class _Student(_Trained):
    method: str
    weights: dict[str, float]
    validate_micro_auprc: Share


def read_config(folder: Path, kind: Literal["network", "teacher", "student"] = "network") -> dict[str, Any]:
    """Read the `config.json` that `save` wrote.

    Args:
        folder: folder of the network.
        kind: kind of config to expect: `teacher`, `student`, or `network` for both.

    Raises:
        InputError: the file is missing or damaged.
    """
    form = {"network": _Network, "teacher": _Teacher, "student": _Student}[kind]
    path = folder / "config.json"
    config: dict[str, Any] = read_json(path, form=form)
    if config["width"] not in ARCHITECTURES[config["architecture"]].WIDTHS:
        raise InputError(f"{path}: there is no {config['architecture']} of width {config['width']}; run its step again")
    return config


def load(folder: Path) -> tuple[Tagger, dict[str, Any]]:
    """Read a network that `save` wrote, and its config. The network is in evaluation mode on the CPU.

    Raises:
        InputError: a file is missing or damaged, or the weights do not belong to the network of the config.
    """
    config = read_config(folder)
    weights = folder / "weights.safetensors"
    try:
        network = build(config["architecture"], config["width"], len(config["tags"]), config["features"]["mel_bands"])
        content = weights.read_bytes()
        if hashlib.sha256(content).hexdigest() != config["sha256"]:
            raise ValueError("the SHA-256 differs; run its step again")
        network.load_state_dict(deserialise(content))
    except (SafetensorError, OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = one_line(error, 200)
        raise InputError(f"{weights}: cannot be loaded as {folder / 'config.json'} says ({reason})") from None
    return network.eval(), config
