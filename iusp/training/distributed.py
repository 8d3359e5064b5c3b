"""Training in several processes (ranks) that `torchrun` starts. All ranks compute; only the first one writes files.

Each rank gets a part of every batch. The sums over a batch that affect the result are computed over all ranks: the
loss, the denominator of the loss, and the statistics of batch normalisation. Therefore, several ranks give the same
result as one process, up to rounding. Without torchrun, there is one rank, and the functions of this module change
nothing.
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

# If one rank hangs, the other ranks fail after this time. It must be longer than validation and saving a checkpoint,
# which the first rank does alone.
TIMEOUT = timedelta(minutes=30)
# The other ranks wait this long for the first rank, which writes the teacher's knowledge. If the first rank dies, they
# fail at once.
PATIENCE = timedelta(days=7)


@contextmanager
def group() -> Iterator[None]:
    """Connect the ranks that torchrun started, and disconnect them together; do nothing without torchrun.

    CPU tensors are exchanged by gloo, GPU tensors by NCCL.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    dist.init_process_group(timeout=TIMEOUT)
    patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    yield
    # Skipped after an exception, because the other ranks then cannot reach the barrier.
    dist.barrier(patient)
    dist.destroy_process_group()


def rank() -> int:
    """Return the rank of this process; the first is 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return summed(gradient)  # the sum of each rank depends on the tensors of all ranks


def summed(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over the ranks. The sum has a gradient.

    A loss that is computed from such sums is the same on all ranks. Backpropagation adds the gradients of the losses of
    all ranks, so the gradient of a rank's tensors is `ranks()` times the gradient of the loss. `wrap_ddp` averages the
    gradients over the ranks, which removes this factor.
    """
    if ranks() == 1:
        return tensor
    total: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return total


def from_first(content: bytes | None) -> bytes | None:
    """Send the content that the first rank has to all ranks, and return it."""
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
    """Batch normalisation with statistics over the clips of all ranks.

    `torch.nn.SyncBatchNorm` does the same, but only on GPUs.
    """

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> "_BatchNorm":
        """Create an instance that shares the parameters and buffers of a `BatchNorm2d`."""
        assert norm.momentum is not None
        synced = cls(norm.num_features, norm.eps, norm.momentum)
        for name, parameter in norm.named_parameters(recurse=False):
            synced.register_parameter(name, parameter)
        for name, buffer in norm.named_buffers(recurse=False):
            synced.register_buffer(name, buffer)
        return synced.train(norm.training)

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
        # Two passes, because the difference of large sums of squares would lose digits.
        centred = maps - mean[:, None, None]
        variance = summed(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def wrap_ddp(network: Tagger) -> nn.Module:
    """Return the module that all ranks train in place of `network`.

    All ranks start with the parameters of the first rank, and the gradients are averaged over the ranks. Batch
    normalisation uses the clips of all ranks. The names of the parameters and buffers of `network` do not change, and
    the outputs of `network` in evaluation mode do not change.
    """
    if ranks() == 1:
        return network
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, _BatchNorm.of(child))
    if network.device.type == "cuda":
        torch.cuda.set_device(network.device)
    # The statistics of batch normalisation are the same on all ranks, so they need not be sent at each step.
    return DistributedDataParallel(network, forward_sync_buffers=False)
