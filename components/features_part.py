"""One part of step 2 on a cluster."""

from kfp.dsl import Dataset, Input, Output

from components import step


@step
def features_part(
    config: str, part: int, parts: int, dataset: Input[Dataset], recordings: Input[Dataset], shards: Output[Dataset]
) -> None:
    """Compute the log-mel features of one part of the shards: the shards `part`, `part + parts`, `part + 2 parts`, ….

    Args:
        config: section `features` of params.yaml, as JSON.
        part: index of this part, from 0.
        parts: number of parts that the work is divided into.
        dataset: tables of the dataset step.
        recordings: audio files of the dataset step.
        shards: packed features, one file for each shard.
    """
    from pathlib import Path

    from iusp.cli.console import readable_failures, shown_progress
    from iusp.config.features import Features as Config
    from iusp.steps.features import Inputs, Part, extract

    inputs = Inputs(Path(dataset.path), Path(recordings.path))
    with readable_failures(), shown_progress() as reporter:
        extract(Config.model_validate_json(config), inputs, Part(part, parts), Path(shards.path), reporter)
    shards.metadata |= {"display_name": f"shards of part {part}"}
