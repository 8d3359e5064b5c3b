"""The task before the steps on a cluster."""

from components import step


@step
def begin(config: str, run_name: str) -> str:
    """Open the MLflow run that is the parent of the runs of all steps, and compute the digest of the source data.

    Args:
        config: all settings of params.yaml that change a result, as JSON.
        run_name: name of the Kubeflow run, which the MLflow run gets as a tag.

    Returns:
        Digest of the current content of the source of the recordings.
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
