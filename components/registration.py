"""Step 6 on a cluster."""

from kfp.dsl import Artifact, Dataset, Input, Output

from components import step


@step
def registration(
    config: str, dataset: Input[Dataset], evaluation: Input[Artifact], registration: Output[Artifact]
) -> None:
    """Register every student in MLflow, and give the alias `challenger` to the best student on the validation clips.

    Args:
        config: all settings of params.yaml that change a result, as JSON.
        dataset: tables of the dataset step.
        evaluation: output of the evaluation step.
        registration: JSON file with the registered version of each student.
    """
    from pathlib import Path

    from iusp.cli.console import readable_failures, shown_progress
    from iusp.config.params import Settings
    from iusp.registry.tracking import Tracker
    from iusp.steps.registration import run

    folders = Path(dataset.path), Path(evaluation.path), Path(registration.path)
    with readable_failures(), shown_progress() as reporter:
        result = run(Settings.model_validate_json(config), Tracker.joined(), *folders, reporter)
    registration.metadata |= {"display_name": "registered versions"} | result.model_dump(mode="json", exclude_none=True)
