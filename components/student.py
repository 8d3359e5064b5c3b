"""Step 4 on a cluster."""

from kfp.dsl import Dataset, Input, Model, Output

from components import step


@step
def student(
    name: str,
    config: str,
    common: str,
    dataset: Input[Dataset],
    features: Input[Dataset],
    teacher: Input[Model],
    student: Output[Model],
) -> None:
    """Train a student, here for one seed, from labels and the teacher's stored knowledge.

    Args:
        name: the student's.
        config: the student's entry in `students` of params.yaml, with this seed alone, as JSON.
        common: `distillation` of params.yaml, as JSON.
        dataset: of the dataset step.
        features: of the features step.
        teacher: of the teacher step.
        student: weights and training record, in a folder for each seed.
    """
    import os
    from pathlib import Path

    from iusp.cli.console import readable_failures, shown_progress
    from iusp.config.students import Distillation
    from iusp.config.students import Student as Config
    from iusp.registry.tracking import Tracker, tracked
    from iusp.steps.student import run, run_name

    settings = Config.model_validate_json(config), Distillation.model_validate_json(common)
    inputs = Path(dataset.path), Path(features.path), Path(teacher.path)
    networks, outage = [run_name(name, seed) for seed in settings[0].seeds], os.environ["IUSP_OUTAGE"]
    with readable_failures(), shown_progress() as shown, tracked(shown, Tracker.joined, networks, outage) as reporter:
        trained = run(name, *settings, *inputs, Path(student.path), reporter)
    kept = ("method", "architecture", "parameters", "epoch", "validate_micro_auprc")
    for seed, one in trained.items():
        student.metadata |= {"display_name": f"{name}, seed {seed}"} | {key: one[key] for key in kept}
