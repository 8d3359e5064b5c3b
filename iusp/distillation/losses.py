"""The weighted sum of the distillation losses of a student. The loss of each method is in the method's own module."""

from dataclasses import replace
from importlib import import_module

from torch import Tensor, nn

from iusp.config.students import Recipe
from iusp.distillation.method import MethodLoss, Outputs, Subject


def loss_class(method: str) -> type[MethodLoss]:
    """Return the class `Loss` of the method's module."""
    loss: type[MethodLoss] = import_module(f"iusp.distillation.{method}").Loss
    return loss


class DistillationLosses(nn.Module):
    """The weighted distillation losses of a student, and the auxiliary layers that are trained with the student.

    Args:
        recipe: methods of the student, with the loss weight and the layers of each method; the student must have these
            layers.
        subject: what the losses need to know about the student and the teacher before training.
    """

    def __init__(self, recipe: Recipe, subject: Subject) -> None:
        super().__init__()
        self.weights = recipe.weights
        # The temperature is None if no method uses it.
        temperature = recipe.temperature or 1.0
        self.methods = nn.ModuleDict(
            {name: loss_class(name)(subject, recipe.layers.get(name, ()), temperature) for name in recipe.weights}
        )

    def forward(self, outputs: Outputs) -> dict[str, Tensor]:
        """Return the weighted loss of each method.

        Args:
            outputs: outputs of the student and knowledge of the teacher for a batch; the knowledge may be in float16.
        """
        knowledge = {name: tensor.float() for name, tensor in outputs.knowledge.items()}
        outputs = replace(outputs, knowledge=knowledge)
        return {name: weight * self.methods[name](outputs) for name, weight in self.weights.items()}
