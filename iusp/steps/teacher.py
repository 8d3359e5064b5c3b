"""Step 3: train the teacher and store its knowledge of every training clip."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from torch import Tensor, nn

from iusp.artifacts.networks import TeacherConfig
from iusp.artifacts.records import Row
from iusp.config.augmentation import Augmentations
from iusp.config.teacher import Teacher
from iusp.features.augmentation import draw_view
from iusp.io.files import code_digest, digest, sha256, work_folder
from iusp.reporter import Reporter
from iusp.training import distributed
from iusp.training.data import Batch, TrainingData, TrainingFolders, batches, epoch_order, read_training_data
from iusp.training.knowledge import KnowledgeRequest, write_knowledge
from iusp.training.loop import TrainingJob, label_loss, train
from iusp.training.networks import check_layers, layer_channels, new_network


def run(
    config: Teacher, augmentation: Augmentations, inputs: TrainingFolders, output: Path, reporter: Reporter
) -> TeacherConfig:
    """Write `weights.safetensors`, `config.json`, `record.csv` and `knowledge/` into the output folder.

    A killed run resumes from its last epoch, or its last view of knowledge, and ends with the same bytes. The ranks of
    a `distributed.group` train together. Then the first rank alone computes the knowledge. Its files have the same
    bytes as those of a single process with the same weights.

    Args:
        config: settings of the teacher.
        augmentation: augmentation of the teacher's training clips, and of the views for which it stores knowledge.
        inputs: folders that earlier steps wrote.
        output: folder to write.
        reporter: receives each epoch, and the progress of the knowledge.

    Returns:
        The teacher's `config.json`.

    Raises:
        InputError: labels and features do not belong together, the network has fewer layers than `config.layers` names,
            or training diverges.
    """
    data = read_training_data(inputs, config.tags)
    job = _job(config, augmentation, data)
    identity = [config.model_dump(), augmentation.model_dump(), data.features.digest, sha256(inputs.labels)]
    is_first = distributed.rank() == 0
    with work_folder(output, digest([*identity, code_digest()])) if is_first else nullcontext(output) as folder:

        def on_epoch(row: Row) -> None:
            reporter.epoch("teacher", row, config.training.epochs)

        description = train(job, folder, on_epoch)
        if is_first:
            request = KnowledgeRequest(augmentation.views, config.seed, config.views, config.knowledge_names)
            write_knowledge(folder, job.network.eval(), data, request, reporter)
    assert isinstance(description, TeacherConfig)
    return description


def _job(config: Teacher, augmentation: Augmentations, data: TrainingData) -> TrainingJob:
    network, description = new_network(config.architecture, config.parameters, data, config.training, config.seed)
    check_layers(f"teacher.layers of a {config.architecture}", config.layers, len(layer_channels(network, data)))

    def epoch_batches(epoch: int) -> Iterator[Batch]:
        view = draw_view(augmentation.teacher, config.seed, "training", epoch, data.shape)
        order = epoch_order(len(data.clips), config.seed, epoch)
        return batches(data, view, order, config.training.batch_size, network.device)

    def losses(logits: Tensor, maps: tuple[Tensor, ...], batch: Batch) -> dict[str, Tensor]:
        return {"labels": label_loss(logits, batch.targets, batch.mask)}

    teacher = TeacherConfig(**dict(description), predicts=config.tags)
    return TrainingJob(network, teacher, data, epoch_batches, losses, config.training, auxiliary=nn.Module())
