"""Step 6 on a cluster."""

from kfp.dsl import Artifact, Dataset, Input, Output

from components import step


@step
def registration(
    config: str, dataset: Input[Dataset], evaluation: Input[Artifact], registration: Output[Artifact]
) -> None:
    """Register every student in MLflow; the best on validate becomes the challenger.

    Args:
        config: all of params.yaml that shapes a result, as JSON.
        dataset: of the dataset step.
        evaluation: of the evaluation step.
        registration: which version each student became.
    """
    from pathlib import Path

    from iusp.config import Settings
    from iusp.console import readable_failures
    from iusp.steps.registration import run
    from iusp.tracking import Tracker

    folders = Path(dataset.path), Path(evaluation.path), Path(registration.path)
    with readable_failures():
        result = run(Settings.model_validate_json(config), Tracker.joined(), *folders)
    registration.metadata |= {"display_name": "registered versions"} | result
