"""A teacher's knowledge of augmented training clips, computed once, so that no student ever runs the teacher.

A folder with `knowledge.json` and, for each view, `view-000/` with packed float16 files, row by row the training clips,
of the kinds that `teacher.knowledge` lists:

- `logits.npy` (N, K);
- `pooled.npy` (N, C), what the head sees of a clip;

and of each of `teacher.layers`, such as 1 for the last layer, at most at the last layer's frame rate:

- `similarity-1.npy` (N, T', T'), each clip's Gram matrix of frames divided by its largest entry (rows are normalised
  later, which cancels the factor);
- `embedding-1.npy` (N, E), hashed frames for similarities between clips;
- `attention-1.npy` (N, T', F'), the energy over channels;
- `hints-1.npy` (N, T', C), the bands' means.

Knowledge that does not belong to the clips, features or teacher at hand is refused: misaligned targets train garbage
without any sign of it.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from iusp.config.augmentation import Augmentation
from iusp.distillation.attention import attention_map
from iusp.distillation.fitnet import hints
from iusp.distillation.similarity import gram, pooled_frames, pooled_gram
from iusp.distillation.sp import clip_embedding
from iusp.errors import InputError
from iusp.features.augmentation import View, augment, draw_view
from iusp.features.packed import open_packed, write_header
from iusp.io.files import Hashed, digest, read_json, sha256, write_json
from iusp.models.layers import Tagger
from iusp.models.maps import frames, pooled
from iusp.reporter import Reporter
from iusp.training.loop import TrainingData

# Inner products of embeddings are off by about 1/√2048 = 2 % of the norms.
EMBEDDING_DIMENSIONS = 2048
BATCH = 64


def _view_digest(view: View) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in vars(view).values())).hexdigest()


def write_knowledge(
    folder: Path,
    teacher: Tagger,
    data: TrainingData,
    augmentation: Augmentation,
    seed: int,
    views: int,
    names: Sequence[str],
    reporter: Reporter,
) -> None:
    """Run a teacher over `views` views of the training clips; views that are there already are kept.

    Args:
        folder: the teacher's; `knowledge/` appears beside its weights.
        teacher: in evaluation mode, on its device.
        data: the training clips.
        augmentation: of the views.
        seed: of the views.
        views: how many.
        names: of what is kept of each.
        reporter: told of every batch.
    """
    clips, fill, device = data.clips, data.features.mean, teacher.device
    batches = -(-len(clips) // BATCH)
    digests = []
    checksums: dict[str, str] = {}
    for number in range(views):
        view = draw_view(augmentation, seed, "knowledge", number, data.shape)
        digests.append(_view_digest(view))
        finished = folder / "knowledge" / f"view-{number:03d}"
        if finished.exists():
            checksums |= {f"{finished.name}/{path.stem}": sha256(path) for path in finished.iterdir()}
            continue
        partial = folder / "part"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        with ExitStack() as stack:
            packed: dict[str, Hashed] = {}
            for start in range(0, len(clips), BATCH):
                rows = np.arange(start, min(start + BATCH, len(clips)))
                log_mel, _, _ = augment(view, clips, rows, fill)
                for name, tensor in ask(teacher, log_mel.to(device), names).items():
                    if name not in packed:
                        packed[name] = stack.enter_context(Hashed(partial / f"{name}.npy"))
                        write_header(packed[name], (len(clips), *tensor.shape[1:]))
                    packed[name].write(tensor.cpu().numpy().astype(np.float16).tobytes())
                reporter.progress("teacher's knowledge", number * batches + start // BATCH + 1, views * batches)
        checksums |= {f"{finished.name}/{name}": stream.sha256.hexdigest() for name, stream in packed.items()}
        finished.parent.mkdir(exist_ok=True)
        partial.rename(finished)
    write_json(
        folder / "knowledge" / "knowledge.json",
        _belonging(folder, data)
        | {"augmentation": augmentation.model_dump(mode="json"), "seed": seed, "views": digests, "sha256": checksums},
    )


class _Description(BaseModel):
    augmentation: Augmentation
    seed: int
    views: Annotated[list[str], Field(min_length=1)]
    sha256: dict[str, str]


def _belonging(teacher: Path, data: TrainingData) -> dict[str, Any]:
    """Name what knowledge is about; it is of no use for anything else."""
    return {
        "clips": digest(data.clips.filenames),
        "features": data.features.digest,
        "tags": data.clips.tags,
        "teacher": sha256(teacher / "weights.safetensors"),
    }


@torch.no_grad()
def ask(teacher: Tagger, log_mel: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Return what a teacher, in evaluation mode, knows of log-mel (B, T, M), by the names of the packed files."""
    logits, maps = teacher(log_mel)
    return {name: _known(name, logits, maps) for name in names}


def _known(name: str, logits: Tensor, maps: Sequence[Tensor]) -> Tensor:
    kind, _, number = name.partition("-")
    if kind == "logits":
        return logits
    if kind == "pooled":
        return pooled(maps[-1])
    layer = maps[-int(number)]
    time, bands = (min(sizes) for sizes in zip(layer.shape[2:], maps[-1].shape[2:], strict=True))
    if kind == "similarity":
        similarity = pooled_gram(gram(frames(layer)), time)
        return similarity / similarity.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    if kind == "embedding":
        return clip_embedding(frames(layer), EMBEDDING_DIMENSIONS)
    if kind == "attention":
        return adaptive_avg_pool2d(attention_map(layer), (time, bands))
    return pooled_frames(hints(layer), time)


@dataclass(frozen=True)
class Knowledge:
    """Stored knowledge that has been checked against the clips, features and teacher at hand.

    Attributes:
        folder: where it lies.
        description: `knowledge.json`.
        data: the training clips it is about.
    """

    folder: Path
    description: Mapping[str, Any]
    data: TrainingData

    @property
    def views(self) -> int:
        """How many views there are."""
        return len(self.description["views"])

    @property
    def augmentation(self) -> Augmentation:
        """Of the views."""
        return Augmentation.model_validate(self.description["augmentation"])

    def view(self, number: int) -> View:
        """Draw view `number` again.

        Raises:
            InputError: it is not the view that the teacher saw.
        """
        view = draw_view(self.augmentation, self.description["seed"], "knowledge", number, self.data.shape)
        if _view_digest(view) != self.description["views"][number]:
            raise InputError(
                f"{self.folder}: view {number} cannot be drawn again as the teacher saw it (another NumPy?); "
                "run the teacher step again"
            )
        return view

    def new_view(self, seed: int, number: int) -> View:
        """Draw a view of the same augmentation that the teacher has not been asked about."""
        return draw_view(self.augmentation, seed, "training", number, self.data.shape)

    def read(self, name: str, number: int) -> NDArray[np.float16]:
        """Map what is called `name` of view `number` into memory, one row per clip.

        Raises:
            InputError: the file is missing, damaged or not of these clips.
        """
        file = f"view-{number:03d}/{name}"
        checksum = self.description["sha256"].get(file, "none")
        return open_packed(self.folder / f"{file}.npy", len(self.data.clips), checksum=checksum)


def read_knowledge(teacher: Path, data: TrainingData) -> Knowledge:
    """Open the knowledge in a teacher's folder.

    Args:
        teacher: folder that the teacher step wrote.
        data: what a student will be trained on.

    Raises:
        InputError: the knowledge is of other clips, features, tags or another teacher.
    """
    folder = teacher / "knowledge"
    description = read_json(folder / "knowledge.json", form=_Description)
    for name, value in _belonging(teacher, data).items():
        if description.get(name) != value:
            raise InputError(f"{folder}: is about other {name} than those at hand; run the teacher step again")
    return Knowledge(folder, description, data)
