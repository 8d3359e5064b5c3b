"""Step 5 on a cluster.

Kubeflow gathers the outputs of a loop into one list, but a loop's tasks have no names of their own. So that every
student is a task with its name, and its model an arrow in the graph, this component has one input for each of them.
"""

import inspect
import linecache
from collections.abc import Mapping, Sequence

from kfp.dsl import HTML, Artifact, Dataset, Input, Markdown, Metrics, Model, Output
from kfp.dsl.python_component import PythonComponent

from components import step


def _evaluation(
    config: str,
    dataset: Input[Dataset],
    recordings: Input[Dataset],
    features: Input[Dataset],
    teacher: Input[Model],
    STUDENTS: Input[Model],
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
    report: Output[HTML],
    comparison: Output[Markdown],
) -> None:
    """Measure how good the teacher and every student are, and what they cost.

    Args:
        config: `evaluation` of params.yaml, as JSON.
        dataset: of the dataset step.
        recordings: of the dataset step.
        features: of the features step.
        teacher: of the teacher step.
        STUDENTS: of the student step, for one seed.
        evaluation: metrics, predictions, pictures, report, and the models as they will be registered.
        metrics: AUPRC and cost of every network.
        report: the report, with its pictures.
        comparison: the networks side by side.
    """
    import shutil
    from pathlib import Path

    from iusp.cli.console import readable_failures, shown_progress
    from iusp.config.evaluation import Evaluation as Config
    from iusp.evaluation.report import headline_numbers
    from iusp.steps.evaluation import Inputs, run

    students = {name: [Path(model.path) for model in models] for name, models in STUDENTS.items()}
    data = Path(dataset.path), Path(recordings.path), Path(features.path)
    inputs = Inputs(*data, Path(teacher.path), students)
    output = Path(evaluation.path)
    with readable_failures(), shown_progress() as reporter:
        run(Config.model_validate_json(config), inputs, output, reporter)
    for name, number in headline_numbers(output).items():
        metrics.log_metric(name, number)
    shutil.copyfile(output / "report.html", report.path)
    shutil.copyfile(output / "comparison.md", comparison.path)
    evaluation.metadata |= {"display_name": "evaluation"}


def input_name(student: str, seed: int) -> str:
    """Return the name of the input that takes a student's model."""
    return f"{student}_seed_{seed}"


def evaluation_of(students: Mapping[str, Sequence[int]]) -> PythonComponent:
    """Return the component that evaluates these students, by name, and their seeds."""
    source = inspect.getsource(_evaluation).replace("def _evaluation(", "def evaluation(")
    names = {student: [input_name(student, seed) for seed in seeds] for student, seeds in students.items()}
    declared = "".join(f"    {name}: Input[Model],\n" for inputs in names.values() for name in inputs)
    documented = "".join(
        f"        {input_name(student, seed)}: of the student step: {student}, seed {seed}.\n"
        for student, seeds in students.items()
        for seed in seeds
    )
    given = ", ".join(f'"{student}": [{", ".join(inputs)}]' for student, inputs in names.items())
    source = source.replace("    STUDENTS: Input[Model],\n", declared)
    source = source.replace("        STUDENTS: of the student step, for one seed.\n", documented)
    source = source.replace("STUDENTS.items()", f"{{{given}}}.items()")
    # Kubeflow takes a component's source from the file it was read from.
    file = f"<evaluation of {', '.join(names)}>"
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file
    namespace = dict(globals())
    exec(compile(source, file, "exec"), namespace)  # noqa: S102 (our own source, with checked names put in)
    return step(namespace["evaluation"])
