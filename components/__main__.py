"""Write components/README.md from the signatures and docstrings of the components: `python -m components`."""

from pathlib import Path

from docstring_parser import parse
from kfp.dsl.python_component import PythonComponent

from components.begin import begin
from components.dataset import dataset
from components.evaluation import evaluation_of
from components.features import features
from components.features_part import features_part
from components.finish import finish
from components.registration import registration
from components.student import student
from components.teacher import teacher

README = Path(__file__).with_name("README.md")


def readme() -> str:
    """Return the page, with one section per component in the order of the graph."""
    evaluation = evaluation_of({"name": [0]})
    components = (begin, dataset, features_part, features, teacher, student, evaluation, registration, finish)
    head = (
        "# Components\n\n"
        "`python -m components` writes this page from the signatures and docstrings. Do not edit it.\n\n"
        "Each component runs one step of `iusp.steps` in an image of [docker/](../docker). [pipelines/](../pipelines) "
        "connects them.\n\n"
        "The component `evaluation` has one input for each seed of each student. On this page, the input `name_seed_0` "
        "stands for these inputs. In a compiled pipeline, their names are, for example, `small_seed_0` and "
        "`small_seed_1`.\n"
    )
    return head + "".join(map(_section, components))


def _section(component: PythonComponent) -> str:
    spec = component.component_spec
    documented = parse(component.python_func.__doc__ or "")
    described = {param.arg_name: param.description for param in documented.params}
    # Kubeflow gives this name to the returned value.
    described["Output"] = documented.returns.description if documented.returns else None
    rows = [
        f"| `{name}` | {direction} | {part.type.removeprefix('system.').split('@')[0]} | {described[name]} |\n"
        for direction, parts in (("in", spec.inputs), ("out", spec.outputs))
        for name, part in (parts or {}).items()
    ]
    table = "\n| name | | type | what |\n|---|---|---|---|\n" + "".join(rows)
    return f"\n## {component.name}\n\n{documented.short_description}\n{table}"


if __name__ == "__main__":
    README.write_text(readme(), encoding="utf-8")
