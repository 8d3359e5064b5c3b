"""Step 3 on a cluster."""

from kfp.dsl import Dataset, Input, Model, Output

from components import step


@step
def teacher(
    config: str, augmentation: str, dataset: Input[Dataset], features: Input[Dataset], teacher: Output[Model]
) -> None:
    """Train the teacher and store its knowledge of every training clip.

    Args:
        config: section `teacher` of params.yaml, as JSON.
        augmentation: section `augmentation` of params.yaml, as JSON.
        dataset: tables of the dataset step.
        features: output of the features step.
        teacher: weights, training record and knowledge of the teacher.
    """
    import os
    from pathlib import Path

    from iusp.cli.console import readable_failures, shown_progress
    from iusp.config.augmentation import Augmentations
    from iusp.config.teacher import Teacher as Config
    from iusp.registry.tracking import Tracker, tracked
    from iusp.steps.teacher import run
    from iusp.training.data import TrainingFolders

    settings = Config.model_validate_json(config), Augmentations.model_validate_json(augmentation)
    inputs = TrainingFolders(Path(dataset.path), Path(features.path))
    outage = os.environ["IUSP_OUTAGE"]
    with (
        readable_failures(),
        shown_progress() as shown,
        tracked(shown, Tracker.joined, ["teacher"], outage) as reporter,
    ):
        trained = run(*settings, inputs, Path(teacher.path), reporter)
    kept = ("architecture", "parameters", "epoch", "validate_micro_auprc")
    teacher.metadata |= {"display_name": "teacher"} | {key: getattr(trained, key) for key in kept}
