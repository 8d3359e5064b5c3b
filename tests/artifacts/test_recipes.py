"""A change of params.yaml or of a method changes the recipes of the students that it concerns, and no others."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from iusp.artifacts import recipes
from iusp.artifacts.recipes import code_digests, write_recipes
from iusp.config.methods import METHODS
from iusp.config.params import Config
from tests.support.project import ROOT

STUDENT = {"architecture": "plain", "parameters": 7000, "seeds": [0]}
STUDENTS = {
    "labels": STUDENT | {"method": "labels"},
    "kd": STUDENT | {"method": "kd"},
    "iusp": STUDENT | {"method": "iusp"},
    "both": STUDENT | {"method": "iusp+kd"},
    "inter": STUDENT | {"method": "inter"},
}


@pytest.fixture
def params() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "params.yaml").read_text()) | {"students": STUDENTS}


@pytest.fixture
def methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the methods' modules that a test may edit."""
    copy = tmp_path / "distillation"
    shutil.copytree(recipes.METHODS_FOLDER, copy)
    monkeypatch.setattr(recipes, "METHODS_FOLDER", copy)
    return copy


def written(params: dict[str, Any], folder: Path) -> dict[str, bytes]:
    config = Config.model_validate(params)
    write_recipes([config.recipe(name) for name in config.students], folder)
    return {path.stem: path.read_bytes() for path in folder.iterdir()}


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("section", "key", "value", "concerned"),
    [
        ("weights", "kd", 3.0, {"kd", "both"}),
        ("weights", "iusp", 3.0, {"iusp", "both"}),
        ("weights", "vic", 3.0, set()),
        ("layers", "iusp", [1, 1], {"iusp", "both"}),
        ("layers", "inter", [1], {"inter"}),
        (None, "temperature", 2.0, {"kd", "both", "inter"}),
    ],
)
def test_a_setting_concerns_the_students_that_use_it(
    params: dict[str, Any], tmp_path: Path, section: str | None, key: str, value: object, concerned: set[str]
) -> None:
    before = written(params, tmp_path / "recipes")
    shared = params["distillation"]
    (shared[section] if section else shared)[key] = value
    assert changed(before, written(params, tmp_path / "recipes")) == concerned


@pytest.mark.parametrize(
    ("module", "concerned"),
    [
        ("kd", {"kd", "both", "inter"}),  # inter uses KD's loss
        ("iusp", {"iusp", "both"}),
        ("similarity", {"iusp", "both"}),
        ("vic", set()),
    ],
)
def test_a_module_concerns_the_students_whose_methods_import_it(
    params: dict[str, Any], methods: Path, tmp_path: Path, module: str, concerned: set[str]
) -> None:
    before = written(params, tmp_path / "recipes")
    (methods / f"{module}.py").write_text((methods / f"{module}.py").read_text() + "# edited\n")
    (methods / "new.py").write_text('"""A method that no student uses."""\n')
    assert changed(before, written(params, tmp_path / "recipes")) == concerned


def test_the_recipe_of_a_student_that_is_gone_is_deleted(params: dict[str, Any], tmp_path: Path) -> None:
    written(params, tmp_path / "recipes")
    del params["students"]["kd"]
    assert written(params, tmp_path / "recipes").keys() == STUDENTS.keys() - {"kd"}


def test_every_method_has_a_module() -> None:
    assert {method: method in code_digests([method]) for method in METHODS} == dict.fromkeys(METHODS, True)
