"""The graph of dvc.yaml says of each stage exactly what its step imports and reads."""

import ast
import re
from pathlib import Path

import grimp
import pytest
import yaml

from iusp.config.base import STEPS

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
# They raise, report, and bound settings, and change no output.
WITHOUT_EFFECT = {"iusp/errors.py", "iusp/reporter.py", "iusp/config/base.py"}
# What these say of a student is in its recipe, and DVC compares that.
IN_THE_RECIPE = {f"iusp/config/{name}.py" for name in ("knowledge", "methods", "students", "training")}


@pytest.fixture(scope="module")
def stages() -> dict:
    document = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return {name: stage.get("do", stage) for name, stage in document.items() if name != "recipes"}


@pytest.fixture(scope="module")
def recipes() -> dict:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["recipes"]


def source(module: str) -> str:
    path = Path(*module.split("."))
    return str(path / "__init__.py") if (ROOT / path).is_dir() else f"{path}.py"


def test_stages_are_the_steps(stages: dict) -> None:
    assert tuple(stages) == STEPS
    modules = {path.stem for path in (ROOT / "iusp/steps").glob("*.py")} - {"__init__"}
    assert modules == set(STEPS)
    for name, stage in stages.items():
        assert re.fullmatch(rf"iusp {name}( \$\{{key\}})?", stage["cmd"])


@pytest.mark.parametrize("step", STEPS)
def test_deps_cover_the_true_imports(stages: dict, step: str) -> None:
    graph = grimp.build_graph("iusp", cache_dir=None)
    module = f"iusp.steps.{step}"
    imported = {source(name) for name in graph.find_upstream_modules(module) | {module}} - WITHOUT_EFFECT
    if step == "student":
        imported -= IN_THE_RECIPE
    listed = [dep for dep in stages[step]["deps"] if dep.startswith("iusp/")]
    uncovered = {name for name in imported if not any(Path(name).is_relative_to(dep) for dep in listed)}
    assert {name for name in uncovered if not name.endswith("/__init__.py")} == set()
    unused = [dep for dep in listed if not any(Path(name).is_relative_to(dep) for name in imported)]
    assert unused == []
    assert all((ROOT / dep).exists() for dep in listed)


def test_packages_hold_a_docstring_alone() -> None:
    # Importing iusp.steps.teacher also runs iusp/steps/__init__.py, which the list of imports does not name.
    for package in (ROOT / "iusp").glob("*/__init__.py"):
        if package.parent.name != "models":
            body = ast.parse(package.read_text()).body
            assert [type(node) for node in body] == [ast.Expr], f"{package} must hold a docstring alone"


@pytest.mark.parametrize("step", STEPS)
def test_params_are_the_sections_that_the_command_reads(stages: dict, step: str) -> None:
    tree = ast.parse((ROOT / "iusp/cli/pipeline.py").read_text())
    command = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == step)
    sections = set(yaml.safe_load((ROOT / "params.yaml").read_text()))
    # `registration` is read for what to do while MLflow fails.
    read = {node.attr for node in ast.walk(command) if isinstance(node, ast.Attribute) and node.attr in sections}
    read -= {"registration"} if step in ("teacher", "student") else set()
    whole = any(
        isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Name) and node.args[0].id == "config"
        for node in ast.walk(command)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "run"
    )
    if step == "student":
        # Its recipe holds what params.yaml says of it.
        assert "params" not in stages[step]
        assert "recipe" in {node.attr for node in ast.walk(command) if isinstance(node, ast.Attribute)}
        return
    listed = {param.partition(".")[0] for param in stages[step]["params"]}
    # How it runs on a cluster changes no result.
    assert listed == (sections - {"kubeflow"} if whole else read)


def test_each_stage_depends_on_what_it_reads_and_no_later_stage(stages: dict) -> None:
    outputs: list[str] = ["models/recipes"]
    for name, stage in stages.items():
        data = [dep for dep in stage["deps"] if dep.startswith(("data/", "models/", "reports/"))]
        assert bool(data) == (name != "dataset")
        for dep in data:
            assert any(out.startswith(dep) or dep.startswith(out) for out in outputs), f"{name} reads {dep} too early"
        outputs += [out.removesuffix("/${key}") for out in stage["outs"]]


def test_the_recipes_depend_on_all_settings_of_students_and_all_methods(recipes: dict) -> None:
    assert recipes["cmd"] == "iusp recipes"
    assert recipes["params"] == ["distillation", "students"]
    assert {"iusp/distillation", "iusp/config", "iusp/artifacts/recipes.py"} == set(recipes["deps"])
    assert recipes["outs"] == ["models/recipes"]
