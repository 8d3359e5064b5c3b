"""Fixtures of the tests of the distillation methods."""

import pytest

from iusp.config.params import load
from iusp.config.students import Distillation
from tests.support.project import ROOT


@pytest.fixture
def shared() -> Distillation:
    """What params.yaml says of all students."""
    return load(ROOT / "params.yaml").distillation
