"""What comes before the steps."""

from components import step


@step
def begin(config: str, run_name: str) -> None:
    """Open the MLflow run under which those of all steps will hang, and name the Kubeflow run in it.

    Args:
        config: all of params.yaml that shapes a result, as JSON.
        run_name: of the Kubeflow run.
    """
    from iusp.config import Settings
    from iusp.console import readable_failures
    from iusp.tracking import Tracker, readable_errors

    with readable_failures(), readable_errors():
        tracker = Tracker.joined()
        tracker.describe(Settings.model_validate_json(config))
        tracker.parent.tags({"kfp.pipeline_run_id": tracker.execution, "kfp.pipeline_run_name": run_name})
