"""Step 4 on a cluster."""

from kfp.dsl import Dataset, Input, Model, Output

from components import step


@step
def student(
    recipe: str, dataset: Input[Dataset], features: Input[Dataset], teacher: Input[Model], student: Output[Model]
) -> None:
    """Train one seed of a student from the labels and the teacher's stored knowledge.

    Args:
        recipe: all settings of params.yaml that change the student, with one seed, as JSON.
        dataset: tables of the dataset step.
        features: output of the features step.
        teacher: output of the teacher step.
        student: weights and training record, in a folder named after the seed.
    """
    import os
    from pathlib import Path

    from iusp.artifacts.base import seed_name
    from iusp.artifacts.networks import TeacherFolder
    from iusp.cli.console import readable_failures, shown_progress
    from iusp.config.students import Recipe
    from iusp.registry.tracking import Tracker, tracked
    from iusp.steps.student import StudentInputs, run
    from iusp.training.data import TrainingFolders

    settings = Recipe.model_validate_json(recipe)
    inputs = StudentInputs(TrainingFolders(Path(dataset.path), Path(features.path)), TeacherFolder(Path(teacher.path)))
    networks, outage = [seed_name(settings.name, seed) for seed in settings.student.seeds], os.environ["IUSP_OUTAGE"]
    with readable_failures(), shown_progress() as shown, tracked(shown, Tracker.joined, networks, outage) as reporter:
        trained = run(settings, inputs, Path(student.path), reporter)
    kept = ("method", "architecture", "parameters", "epoch", "validate_micro_auprc")
    for seed, description in trained.items():
        student.metadata |= {"display_name": f"{settings.name}, seed {seed}"}
        student.metadata |= {key: getattr(description, key) for key in kept}
