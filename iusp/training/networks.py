"""Create networks for training, and choose the devices that they run on."""

from collections.abc import Iterable

import torch

from iusp import models
from iusp.artifacts.networks import NetworkConfig
from iusp.config.base import Architecture
from iusp.config.training import Training
from iusp.errors import InputError
from iusp.models.layers import Tagger
from iusp.training import distributed
from iusp.training.data import TrainingData


def choose_device(name: str) -> torch.device:
    """Return the device with a name.

    The name `auto` means the first accelerator of the machine, or the CPU if there is no accelerator. If several
    processes run on a machine with GPUs, each process uses its own GPU.

    Raises:
        InputError: the machine has no such device.
    """
    if name == "auto":
        # Processes cannot exchange tensors on mps.
        mps = torch.backends.mps.is_available() and distributed.ranks() == 1
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if name == "cuda" and distributed.ranks() > 1:
        name = f"cuda:{torch.distributed.get_node_local_rank()}"
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError):
        raise InputError(f"training.device: there is no {name} on this machine; set auto or cpu") from None


def new_network(
    architecture: Architecture, parameters: int, data: TrainingData, config: Training, seed: int
) -> tuple[Tagger, NetworkConfig]:
    """Build a network with random initial weights on the device that trains it.

    Args:
        architecture: family of the network.
        parameters: largest number of parameters.
        data: training clips; the mean and the standard deviation of their features standardise the input of the
            network.
        config: training settings, which name the device.
        seed: seed of the initial weights.

    Returns:
        The network and its description, which `train` completes.
    """
    tags, bands = data.clips.tags, data.features.config.mel_bands
    width = models.width_for(architecture, parameters, len(tags), bands)
    torch.manual_seed(seed)
    network = models.build(architecture, width, len(tags), bands)
    network.mean.copy_(data.features.mean)
    network.std.copy_(data.features.std)
    description = NetworkConfig(
        architecture=architecture,
        width=width,
        parameters=models.parameter_count(network),
        tags=tags,
        features=data.features.config,
        features_digest=data.features.digest,
        seed=seed,
    )
    return network.to(choose_device(config.device)), description


def layer_channels(network: Tagger, data: TrainingData) -> list[int]:
    """Return the number of channels of each layer of a network, first to last."""
    with torch.inference_mode():
        training = network.training
        _, maps = network.eval()(torch.zeros(1, *data.shape[1:], device=network.device))
        network.train(training)
    return [layer.shape[1] for layer in maps]


def check_layers(what: str, layers: Iterable[int], count: int) -> None:
    """Check that a network has all the layers that a setting names.

    Args:
        what: name of the setting, for the error message.
        layers: layers that the setting names, counted from the last, which is 1.
        count: number of layers of the network.

    Raises:
        InputError: the network has fewer layers.
    """
    if too_many := [layer for layer in layers if layer > count]:
        raise InputError(f"{what}: layer {too_many[0]} does not exist; the network has {count} layers (1 is the last)")
