"""One training in several processes, its ranks, which `torchrun` starts: all compute, the first alone writes.

Each rank takes its share of every batch. Sums over a batch that the result depends on (the loss and its denominator,
the statistics of batch normalisation) are taken over all ranks, so that the result is one process's up to rounding.
Without torchrun there is one rank, and every value is left as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from iusp.models.layers import Tagger

# A rank that neither answers nor ends fails the others after this. What the first does alone meanwhile, validation and
# checkpoint, takes less.
TIMEOUT = timedelta(minutes=30)
# The others wait so long for the end of the first, which writes the teacher's knowledge; if it dies they fail at once.
PATIENCE = timedelta(days=7)


@contextmanager
def group() -> Iterator[None]:
    """Join the ranks that torchrun started, and leave together; without torchrun do nothing.

    CPU tensors travel by gloo, a GPU's by NCCL.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    dist.init_process_group(timeout=TIMEOUT)
    patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    yield
    # Not after an exception: the others could not come.
    dist.barrier(patient)
    dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process among the ranks; the first is 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """Return how many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return summed(gradient)  # each rank's sum depends on each rank's tensor


def summed(tensor: Tensor) -> Tensor:
    """Return the sum over the ranks, which autograd sees through.

    A loss made of such sums is the same on all ranks, and the gradient that reaches a rank's tensors is of the sum of
    all ranks' losses: `ranks()` times the loss's own. `shared` takes the factor out.
    """
    if ranks() == 1:
        return tensor
    total: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return total


def from_first(content: bytes | None) -> bytes | None:
    """Return on every rank what the first was given."""
    if ranks() == 1:
        return content
    size = torch.tensor(-1 if content is None else len(content))
    dist.broadcast(size, 0)
    if size < 0:
        return None
    sent = torch.zeros(int(size), dtype=torch.uint8)
    if rank() == 0 and content:
        sent = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    dist.broadcast(sent, 0)
    return sent.numpy().tobytes()


class _BatchNorm(nn.BatchNorm2d):
    """Batch normalisation by the statistics of all ranks' clips, on any device; torch's own refuses the CPU."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        maps = input.float()
        count = maps.new_tensor([maps.numel() / maps.shape[1]])
        sums = summed(torch.cat([maps.sum(dim=(0, 2, 3)), count]))
        mean, count = sums[:-1] / sums[-1], sums[-1]
        # In two passes: the difference of large sums of squares would lose digits.
        centred = maps - mean[:, None, None]
        variance = summed(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def shared(network: Tagger) -> nn.Module:
    """Return what all ranks train in place of `network`: parameters are the first's, gradients are averaged.

    Names of parameters and buffers of `network`, and what it does in evaluation mode, stay.
    """
    if ranks() == 1:
        return network
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = _BatchNorm
    if network.device.type == "cuda":
        torch.cuda.set_device(network.device)
    # The statistics are the same everywhere: nothing is gained by sending them at each step.
    return DistributedDataParallel(network, forward_sync_buffers=False)
