"""The task after the steps on a cluster, which runs even if a step failed."""

from kfp.dsl import PipelineTaskFinalStatus

from components import step


@step
def finish(status: PipelineTaskFinalStatus) -> None:
    """Record the pipeline's final status in MLflow.

    Args:
        status: final status of the pipeline, which Kubeflow passes in.
    """
    from iusp.cli.console import readable_failures
    from iusp.registry.tracking import Tracker, readable_errors

    with readable_failures(), readable_errors():
        tracker = Tracker.joined()
        tracker.parent.tags({"kfp.status": status.state, "kfp.error": status.error_message or ""})
        tracker.finish(status.state)
