"""Step 5 on a cluster: a component with one input for each seed of each student.

Kubeflow can collect outputs into a list only from a loop, and the tasks of a loop have no names of their own. In this
graph, every seed of every student is a named task, so the component needs one input for each of them. Its source is the
template `evaluation.py.jinja`.
"""

import runpy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from kfp.dsl.python_component import PythonComponent


def input_name(student: str, seed: int) -> str:
    """Return the name of the input that takes the model of one seed of a student."""
    return f"{student}_seed_{seed}"


def source_of(students: Mapping[str, Sequence[int]]) -> str:
    """Return the source of the component's module.

    Args:
        students: seeds of each student, by name.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("evaluation.py.jinja").render(students=students, input_name=input_name) + "\n"


def evaluation_of(students: Mapping[str, Sequence[int]]) -> PythonComponent:
    """Return the component that evaluates some students.

    Args:
        students: seeds of each student, by name.
    """
    # Kubeflow copies a component's source from the file of its module.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "evaluation.py"
        path.write_text(source_of(students), encoding="utf-8")
        component: PythonComponent = runpy.run_path(str(path))["evaluation"]
    return component
