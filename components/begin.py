"""What comes before the steps."""

from components import step


@step
def begin(config: str, run_name: str) -> str:
    """Open the MLflow run under which those of all steps will hang, name the Kubeflow run in it, look at the data.

    Args:
        config: all of params.yaml that shapes a result, as JSON.
        run_name: of the Kubeflow run.

    Returns:
        A digest of what the source of the recordings holds now.
    """
    from iusp.cli.console import readable_failures
    from iusp.config.params import Settings
    from iusp.registry.tracking import Tracker, readable_errors
    from iusp.sources.choice import source_version

    with readable_failures(), readable_errors():
        tracker = Tracker.joined()
        settings = Settings.model_validate_json(config)
        tracker.describe(settings)
        tracker.parent.tags({"kfp.pipeline_run_id": tracker.execution, "kfp.pipeline_run_name": run_name})
        return source_version(settings.dataset)
