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

    from iusp.cli.console import readable_failures
    from iusp.config.params import Settings
    from iusp.registry.tracking import Tracker
    from iusp.steps.registration import run

    folders = Path(dataset.path), Path(evaluation.path), Path(registration.path)
    with readable_failures():
        result = run(Settings.model_validate_json(config), Tracker.joined(), *folders)
    registration.metadata |= {"display_name": "registered versions"} | result.model_dump(mode="json", exclude_none=True)
