"""The distillation losses of a student, put together, with what is trained beside it and thrown away."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iusp.distillation.attention import attention_loss
from iusp.distillation.consistency import consistency_loss
from iusp.distillation.fitnet import fitnet_loss, hints
from iusp.distillation.inter import inter_loss
from iusp.distillation.iusp import iusp_loss
from iusp.distillation.kd import kd_loss
from iusp.distillation.multilevel import multilevel_loss
from iusp.distillation.non_target import non_target_loss
from iusp.distillation.skill import skill_loss
from iusp.distillation.sp import sp_loss
from iusp.distillation.vic import vic_loss
from iusp.models.maps import frames, pooled


@dataclass(frozen=True)
class Subject:
    """What the losses must know of student and teacher beforehand. Layers are counted from the last, which is 1.

    Attributes:
        channels: of each layer of the student, first to last.
        tags: K.
        teacher: shape of the teacher's knowledge of one clip, by name.
        clusters: the teacher's layers, clustered by what they find similar; for `skill`.
        families: the column of each coarse tag and those of its fine tags; for `consistency`.
    """

    channels: Sequence[int]
    tags: int
    teacher: Mapping[str, tuple[int, ...]]
    clusters: Sequence[Sequence[int]] = ()
    families: Sequence[tuple[int, Sequence[int]]] = ()


class DistillationLosses(nn.Module):
    """The weighted distillation losses of a student.

    Args:
        weights: λ by method.
        layers: that each method taps, counted from the last; the student's must have them.
        temperature: τ of the soft labels.
        subject: student and teacher.
    """

    def __init__(
        self, weights: Mapping[str, float], layers: Mapping[str, Sequence[int]], temperature: float, subject: Subject
    ) -> None:
        super().__init__()
        self.weights, self.layers, self.temperature, self.subject = dict(weights), layers, temperature, subject
        channels = subject.channels
        self.regressors = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        self.projections = nn.ModuleDict()
        if "fitnet" in weights:
            for layer in layers["fitnet"]:
                self.regressors[str(layer)] = nn.Linear(channels[-layer], subject.teacher[f"hints-{layer}"][-1])
        if "inter" in weights:
            for layer in layers["inter"]:
                self.heads[str(layer)] = nn.Linear(channels[-layer], subject.tags)
        if "vic" in weights:
            self.projections["pooled"] = nn.Linear(channels[-1], subject.teacher["pooled"][0])

    def forward(
        self,
        logits: Tensor,
        maps: Sequence[Tensor],
        targets: Tensor,
        mask: Tensor,
        knowledge: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Return the weighted losses by method.

        Args:
            logits: of the student (B, K).
            maps: of the student, (B, C, T', F') of each layer, first to last.
            targets: labels (B, K).
            mask: bool (B, K), False where a label is not known.
            knowledge: of the teacher about the same views of the same clips, by name.
        """
        known = {name: tensor.float() for name, tensor in knowledge.items()}
        return {
            method: weight * self._loss(method, logits, maps, targets, mask, known)
            for method, weight in self.weights.items()
        }

    def _loss(
        self,
        method: str,
        logits: Tensor,
        maps: Sequence[Tensor],
        targets: Tensor,
        mask: Tensor,
        known: Mapping[str, Tensor],
    ) -> Tensor:
        def over_layers(loss: Callable[[int], Tensor]) -> Tensor:
            return torch.stack([loss(layer) for layer in self.layers[method]]).mean()

        match method:
            case "kd":
                return kd_loss(logits, known["logits"], self.temperature)
            case "non_target":
                return non_target_loss(logits, known["logits"], targets, self.temperature)
            case "multilevel":
                return multilevel_loss(logits, known["logits"], self.temperature)
            case "inter":
                heads = [self.heads[str(layer)](pooled(maps[-layer]).float()) for layer in self.layers[method]]
                return inter_loss(heads, targets, mask, known["logits"], self.temperature)
            case "vic":
                return vic_loss(self.projections["pooled"](pooled(maps[-1]).float()), known["pooled"])
            case "sp":
                return over_layers(lambda layer: sp_loss(frames(maps[-layer]), known[f"embedding-{layer}"]))
            case "iusp":
                return over_layers(lambda layer: iusp_loss(frames(maps[-layer]), known[f"similarity-{layer}"]))
            case "attention":
                return over_layers(lambda layer: attention_loss(maps[-layer], known[f"attention-{layer}"]))
            case "fitnet":
                return over_layers(
                    lambda layer: fitnet_loss(
                        self.regressors[str(layer)](hints(maps[-layer]).float()), known[f"hints-{layer}"]
                    )
                )
            case "skill":
                taught = [frames(maps[-min(*cluster, len(maps))]) for cluster in self.subject.clusters]
                targets_of = [[known[f"similarity-{layer}"] for layer in cluster] for cluster in self.subject.clusters]
                return skill_loss(taught, [torch.stack(cluster, dim=1) for cluster in targets_of])
            case "consistency":
                coarse, fine = zip(*self.subject.families, strict=True)
                return consistency_loss(logits, coarse, fine)
            case _:
                raise AssertionError(method)
