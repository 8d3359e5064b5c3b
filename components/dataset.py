"""Step 1 on a cluster."""

from kfp.dsl import Dataset, Output

from components import step


@step
def dataset(config: str, source: str, dataset: Output[Dataset], recordings: Output[Dataset]) -> None:
    """Collect, check, index and label the recordings.

    Args:
        config: section `dataset` of params.yaml, as JSON.
        source: digest of the content of the source; if it changes, Kubeflow does not use its cache.
        dataset: index, labels, annotations, taxonomy, and lists of the clips that were left out.
        recordings: audio files of all clips that passed the checks.
    """
    from pathlib import Path

    from iusp.cli.console import readable_failures, shown_progress
    from iusp.config.dataset import Dataset as Config
    from iusp.steps.dataset import run

    with readable_failures(), shown_progress() as reporter:
        summary = run(Config.model_validate_json(config), Path(dataset.path), Path(recordings.path), reporter)
    dataset.metadata |= {
        "display_name": "tables",
        "clips": summary.clips,
        "digest": summary.digest,
        "source": source,
    }
    recordings.metadata |= {"display_name": "recordings", "digest": summary.digest}
