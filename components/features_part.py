"""A part of step 2 on a cluster."""

from kfp.dsl import Dataset, Input, Output

from components import step


@step
def features_part(
    config: str, part: int, parts: int, dataset: Input[Dataset], recordings: Input[Dataset], shards: Output[Dataset]
) -> None:
    """Compute the log-mel features of every n-th shard of the clips.

    Args:
        config: `features` of params.yaml, as JSON.
        part: number of this part, from 0.
        parts: n, into how many the work is divided.
        dataset: of the dataset step.
        recordings: of the dataset step.
        shards: packed features, one file for each shard.
    """
    from pathlib import Path

    from iusp.cli.console import readable_failures, shown_progress
    from iusp.config.features import Features as Config
    from iusp.steps.features import extract

    folders = Path(dataset.path), Path(recordings.path), Path(shards.path)
    with readable_failures(), shown_progress() as reporter:
        extract(Config.model_validate_json(config), *folders, part, parts, reporter)
    shards.metadata |= {"display_name": f"shards of part {part}"}
