"""Step 3: train the teacher and store what it knows of every training clip."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from iusp.artifacts.records import Row
from iusp.config.augmentation import Augmentations
from iusp.config.teacher import Teacher
from iusp.features.augmentation import draw_view
from iusp.io.files import code_digest, digest, sha256, work_folder
from iusp.reporter import Reporter
from iusp.training import distributed
from iusp.training.knowledge import write_knowledge
from iusp.training.loop import (
    Batch,
    batches,
    check_layers,
    epoch_order,
    label_loss,
    layer_channels,
    new_network,
    read_training_data,
    train,
)


def run(
    config: Teacher,
    augmentation: Augmentations,
    dataset: Path,
    features: Path,
    output: Path,
    reporter: Reporter,
) -> dict[str, Any]:
    """Write `weights.safetensors`, `config.json`, `record.csv` and `knowledge/` into `output`.

    A killed run goes on from its last epoch, or its last view of knowledge, and ends with the same bytes. The ranks of
    a `distributed.group` train together; the first alone then asks the teacher for its knowledge, whose files are so
    those of one process to the byte, and which one process can take up again.

    Args:
        config: the teacher's settings.
        augmentation: of what the teacher is trained on, and of the views that its knowledge is about.
        dataset: folder that the dataset step wrote.
        features: folder that the features step wrote.
        output: folder to write.
        reporter: receives each epoch, and the progress of the knowledge.

    Returns:
        The teacher's `config.json`.

    Raises:
        InputError: labels and features do not fit, the network has fewer layers than `config.layers` says, or training
            diverges.
    """
    data = read_training_data(dataset, features, config.tags)
    network, description = new_network(config.architecture, config.parameters, data, config.training, config.seed)
    description["predicts"] = config.tags
    check_layers(f"teacher.layers of a {config.architecture}", config.layers, len(layer_channels(network, data)))
    device = network.device

    def epoch_batches(epoch: int) -> Iterator[Batch]:
        view = draw_view(augmentation.teacher, config.seed, "training", epoch, data.shape)
        order = epoch_order(len(data.clips), config.seed, epoch)
        return batches(data, view, order, config.training.batch_size, device, {})

    def losses(logits: Tensor, maps: tuple[Tensor, ...], batch: Batch) -> dict[str, Tensor]:
        return {"labels": label_loss(logits, batch.targets, batch.mask)}

    def on_epoch(row: Row) -> None:
        reporter.epoch("teacher", row, config.training.epochs)

    inputs = [config.model_dump(), augmentation.model_dump(), data.features.digest, sha256(dataset / "labels.parquet")]
    first = distributed.rank() == 0
    with work_folder(output, digest([*inputs, code_digest()])) if first else nullcontext(output) as folder:
        description = train(network, description, data, epoch_batches, losses, config.training, folder, on_epoch)
        if first:
            names = config.knowledge_names
            write_knowledge(
                folder, network.eval(), data, augmentation.views, config.seed, config.views, names, reporter
            )
    return description
