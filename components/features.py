"""Step 2 on a cluster."""

from kfp.dsl import Dataset, Input, Output

from components import step


@step
def features(config: str, dataset: Input[Dataset], parts: Input[list[Dataset]], features: Output[Dataset]) -> None:
    """Merge all parts of the log-mel features.

    Args:
        config: section `features` of params.yaml, as JSON.
        dataset: tables of the dataset step.
        parts: shards of every part.
        features: one packed file for each split, with its index and settings.
    """
    from pathlib import Path

    from iusp.cli.console import readable_failures
    from iusp.config.features import Features as Config
    from iusp.steps.features import merge

    folders = [Path(part.path) for part in parts]
    with readable_failures():
        clips = merge(Config.model_validate_json(config), Path(dataset.path), folders, Path(features.path))
    features.metadata |= {"display_name": "log-mel features", "clips": clips}
