"""What comes after the steps, whether they succeeded or not."""

from kfp.dsl import PipelineTaskFinalStatus

from components import step


@step
def finish(status: PipelineTaskFinalStatus) -> None:
    """Record the pipeline's final status in MLflow.

    Args:
        status: of all steps together; Kubeflow fills it in.
    """
    from iusp.cli.console import readable_failures
    from iusp.registry.tracking import Tracker, readable_errors

    with readable_failures(), readable_errors():
        tracker = Tracker.joined()
        tracker.parent.tags({"kfp.status": status.state, "kfp.error": status.error_message or ""})
        tracker.finish(status.state)
