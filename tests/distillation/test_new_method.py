"""A new method is one module and one row: params.yaml takes it, and a student is trained with it."""

import sys
from types import MappingProxyType, ModuleType

import pytest
import torch
from torch import Tensor

from iusp.config import methods, students
from iusp.config.methods import METHODS, Method
from iusp.distillation.losses import DistillationLosses
from iusp.distillation.method import MethodLoss, Outputs, Subject

ROW = Method("the signs of the teacher's logits", knowledge="logits", weight=5.0)


class Loss(MethodLoss):
    def forward(self, outputs: Outputs) -> Tensor:
        return (outputs.logits.tanh() - outputs.knowledge["logits"].sign()).square().mean()


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of methods with one more row, and the module that belongs to it."""
    module = ModuleType("iusp.distillation.signs")
    module.Loss = Loss  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "iusp.distillation.signs", module)
    more = MappingProxyType(dict(METHODS) | {"signs": ROW})
    monkeypatch.setattr(methods, "METHODS", more)
    monkeypatch.setattr(students, "METHODS", more)


@pytest.mark.usefixtures("table")
def test_one_module_and_one_row_make_a_method(shared: students.Distillation) -> None:
    weights = students.weights_model()()
    assert weights.model_dump()["signs"] == 5.0
    student = students.Student(architecture="plain", parameters=7000, method="signs+kd", seeds=[0])
    recipe = students.recipe("small", student, shared.model_copy(update={"weights": weights}))
    assert recipe.weights == {"kd": 10.0, "signs": 5.0}
    assert recipe.knowledge_names == ["logits"]

    teacher = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    logits = torch.zeros(16, 3, requires_grad=True)
    losses = DistillationLosses(recipe, Subject([4], ["a", "b", "c"], None, {}.get))  # type: ignore[arg-type]
    optimiser = torch.optim.SGD([logits], lr=0.1)
    record = []
    for _ in range(50):
        outputs = Outputs(logits, [], torch.zeros(16, 3), torch.ones(16, 3, dtype=torch.bool), {"logits": teacher})
        terms = losses(outputs)
        optimiser.zero_grad()
        sum(terms.values()).backward()  # type: ignore[union-attr]
        optimiser.step()
        record.append(terms["signs"].item())
    assert record[-1] < record[0] / 2
