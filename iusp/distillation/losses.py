"""The distillation losses of a student, put together."""

from collections.abc import Mapping

from torch import Tensor

from iusp.distillation.iusp import iusp_loss
from iusp.distillation.kd import kd_loss
from iusp.distillation.sp import sp_loss

# What of the teacher's knowledge each method needs.
NEEDS = {"kd": "logits", "sp": "embedding", "iusp": "similarity"}


def distillation_losses(
    logits: Tensor, frames: Tensor, knowledge: Mapping[str, Tensor], weights: Mapping[str, float], temperature: float
) -> dict[str, Tensor]:
    """Return the weighted distillation losses by method.

    Args:
        logits: of the student (B, K).
        frames: of the student (B, T', D).
        knowledge: of the teacher about the same views of the same clips, by name (values of `NEEDS`).
        weights: λ by method; a method without one is not computed.
        temperature: τ of KD.
    """
    losses = {}
    for method, weight in weights.items():
        teacher = knowledge[NEEDS[method]].float()
        if method == "kd":
            loss = kd_loss(logits, teacher, temperature)
        elif method == "sp":
            loss = sp_loss(frames, teacher)
        else:
            loss = iusp_loss(frames, teacher)
        losses[method] = weight * loss
    return losses
