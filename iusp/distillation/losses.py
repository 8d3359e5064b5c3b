"""The weighted sum of the distillation losses of a student, each defined in the module of its method."""

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
    """The weighted distillation losses of a student, and the auxiliary layers that are trained with it.

    Args:
        recipe: methods of the student, their weights and their layers; the student must have those layers.
        subject: student and teacher.
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
            outputs: outputs of student and teacher for a batch; the knowledge may be in half precision.
        """
        knowledge = {name: tensor.float() for name, tensor in outputs.knowledge.items()}
        outputs = replace(outputs, knowledge=knowledge)
        return {name: weight * self.methods[name](outputs) for name, weight in self.weights.items()}
