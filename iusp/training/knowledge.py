"""A teacher's knowledge of augmented training clips, computed once, so that students need not run the teacher.

A view is a clip after one random augmentation. Each view number stands for one view of every training clip. The
knowledge is a folder with `knowledge.json` and, for each view number, a folder of packed float16 arrays (`view-000/`).
Row n of an array belongs to training clip n. The setting `teacher.knowledge` lists the arrays to store. These arrays
describe the whole network:

- `logits.npy` (N, K);
- `pooled.npy` (N, C), the input of the tagging head.

There is one of each of the following arrays for each layer in `teacher.layers`. The number in the name is the number of
the layer; 1 is the last layer. In all of them except the embeddings, a layer with more frames than the last layer is
averaged to the number of frames T' of the last layer:

- `similarity-1.npy` (N, T', T'), the Gram matrix of each clip's frames. Each matrix is divided by its largest entry;
  when a loss normalises the rows later, this factor has no effect;
- `embedding-1.npy` (N, E), the hashed frames of each clip, for similarities between clips;
- `attention-1.npy` (N, T', F'), the sum of squares over the channels;
- `hints-1.npy` (N, T', C), the means over the bands.

If the knowledge belongs to other clips, to other features or to another teacher, reading it raises an error. Otherwise,
a student would be trained on targets of other clips, and it would be useless without any warning.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from iusp.artifacts.base import Artifact
from iusp.config.augmentation import Augmentation
from iusp.errors import InputError
from iusp.features.augmentation import View, augment, draw_view
from iusp.features.packed import open_packed, write_header
from iusp.io.files import Hashed, digest, sha256
from iusp.models.layers import Tagger
from iusp.models.maps import (
    attention_map,
    band_means,
    clip_embedding,
    frames,
    gram,
    pooled,
    pooled_frames,
    pooled_gram,
)
from iusp.reporter import Reporter
from iusp.training.data import TrainingData

# The error of an inner product of embeddings is about 1/√2048 = 2 % of the norms.
EMBEDDING_DIMENSIONS = 2048
BATCH = 64


def _view_digest(view: View) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in vars(view).values())).hexdigest()


@dataclass(frozen=True)
class KnowledgeRequest:
    """The knowledge of a teacher to store.

    Attributes:
        augmentation: settings of the augmentation that makes the views.
        seed: seed of the augmentation.
        views: number of views of each clip.
        names: names of the arrays to store for each view number.
    """

    augmentation: Augmentation
    seed: int
    views: int
    names: Sequence[str]


def write_knowledge(
    folder: Path, teacher: Tagger, data: TrainingData, request: KnowledgeRequest, reporter: Reporter
) -> None:
    """Run a teacher on views of the training clips and store its knowledge. View folders that exist already are kept.

    Args:
        folder: folder of the teacher, in which `knowledge/` is written beside the weights.
        teacher: the teacher in evaluation mode, on its device.
        data: the training clips.
        request: the knowledge to store.
        reporter: receives the progress after each batch.
    """
    batches = -(-len(data.clips) // BATCH)
    digests = []
    checksums: dict[str, str] = {}
    for number in range(request.views):

        def on_batch(done: int, before: int = number * batches) -> None:
            reporter.progress("teacher's knowledge", before + done, request.views * batches)

        view = draw_view(request.augmentation, request.seed, "knowledge", number, data.shape)
        digests.append(_view_digest(view))
        finished = folder / "knowledge" / f"view-{number:03d}"
        if finished.exists():
            checksums |= {f"{finished.name}/{path.stem}": sha256(path) for path in finished.iterdir()}
            continue
        partial = folder / "part"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        written = _write_view(partial, teacher, data, view, request.names, on_batch)
        checksums |= {f"{finished.name}/{name}": checksum for name, checksum in written.items()}
        finished.parent.mkdir(exist_ok=True)
        partial.rename(finished)
    KnowledgeDescription(
        **_identity(folder, data),
        augmentation=request.augmentation,
        seed=request.seed,
        views=digests,
        sha256=checksums,
    ).write(folder / "knowledge" / "knowledge.json")


def _write_view(
    folder: Path,
    teacher: Tagger,
    data: TrainingData,
    view: View,
    names: Sequence[str],
    on_batch: Callable[[int], None],
) -> dict[str, str]:
    """Write the arrays of one view number, and return the SHA-256 of each array by name."""
    clips = data.clips
    with ExitStack() as stack:
        packed: dict[str, Hashed] = {}
        for start in range(0, len(clips), BATCH):
            rows = np.arange(start, min(start + BATCH, len(clips)))
            log_mel, _, _ = augment(view, clips, rows, data.features.mean)
            for name, tensor in ask(teacher, log_mel.to(teacher.device), names).items():
                if name not in packed:
                    packed[name] = stack.enter_context(Hashed(folder / f"{name}.npy"))
                    write_header(packed[name], (len(clips), *tensor.shape[1:]))
                packed[name].write(tensor.cpu().numpy().astype(np.float16).tobytes())
            on_batch(start // BATCH + 1)
    return {name: stream.sha256.hexdigest() for name, stream in packed.items()}


class KnowledgeDescription(Artifact):
    """`knowledge.json`: the clips, features and teacher that the knowledge belongs to, and digests of its arrays."""

    clips: str
    """Digest of the names of the training clips."""
    features: str
    """Digest of the features."""
    tags: list[str]
    """Names of the tags of the logits, in order."""
    teacher: str
    """SHA-256 of the teacher's weights."""
    augmentation: Augmentation
    """Settings of the augmentation that makes the views."""
    seed: int
    """Seed of the augmentation."""
    views: Annotated[list[str], Field(min_length=1)]
    """Digest of the random numbers of each view number."""
    sha256: dict[str, str]
    """SHA-256 of each array, by view and name, such as `view-000/logits`."""


def _identity(teacher: Path, data: TrainingData) -> dict[str, Any]:
    """Return the fields of `KnowledgeDescription` that must match before the knowledge can be used."""
    return {
        "clips": digest(data.clips.filenames),
        "features": data.features.digest,
        "tags": data.clips.tags,
        "teacher": sha256(teacher / "weights.safetensors"),
    }


@torch.no_grad()
def ask(teacher: Tagger, log_mel: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Return a teacher's knowledge of a batch.

    Args:
        teacher: the teacher in evaluation mode.
        log_mel: log-mel features (B, T, M).
        names: names of the arrays, such as `logits` or `similarity-1`.

    Returns:
        A tensor (B, …) for each name.
    """
    logits, maps = teacher(log_mel)
    return {name: _summary(name, logits, maps) for name in names}


def _summary(name: str, logits: Tensor, maps: Sequence[Tensor]) -> Tensor:
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
    return pooled_frames(band_means(layer), time)


@dataclass(frozen=True)
class Knowledge:
    """Stored knowledge of the training clips, whose clips, features and teacher have been verified.

    Attributes:
        folder: folder of the knowledge.
        description: content of `knowledge.json`.
        data: the training clips that the knowledge describes.
    """

    folder: Path
    description: KnowledgeDescription
    data: TrainingData

    @property
    def views(self) -> int:
        """Number of views of each clip."""
        return len(self.description.views)

    @property
    def augmentation(self) -> Augmentation:
        """Augmentation of the views."""
        return self.description.augmentation

    def view(self, number: int) -> View:
        """Draw the random numbers of a stored view again.

        Args:
            number: number of the view, from 0.

        Raises:
            InputError: the random numbers differ from those that were used when the knowledge was stored.
        """
        view = draw_view(self.augmentation, self.description.seed, "knowledge", number, self.data.shape)
        if _view_digest(view) != self.description.views[number]:
            raise InputError(
                f"{self.folder}: view {number} differs from the view that the teacher saw (perhaps because of "
                "another version of NumPy); run the teacher step again"
            )
        return view

    def new_view(self, seed: int, number: int) -> View:
        """Draw a new view with the same augmentation, for which no knowledge is stored."""
        return draw_view(self.augmentation, seed, "training", number, self.data.shape)

    def read(self, name: str, number: int) -> NDArray[np.float16]:
        """Map a stored array into memory, (N, …) with one row per clip.

        Args:
            name: name of the array, such as `logits` or `similarity-1`.
            number: number of the view, from 0.

        Raises:
            InputError: the file is missing or damaged, or belongs to other clips.
        """
        file = f"view-{number:03d}/{name}"
        checksum = self.description.sha256.get(file, "none")
        return open_packed(self.folder / f"{file}.npy", len(self.data.clips), checksum=checksum)


def read_knowledge(teacher: Path, data: TrainingData) -> Knowledge:
    """Open the knowledge in a teacher's folder.

    Args:
        teacher: folder that the teacher step wrote.
        data: the clips that a student will be trained on.

    Raises:
        InputError: the knowledge belongs to other clips, features or tags, or to another teacher.
    """
    folder = teacher / "knowledge"
    description = KnowledgeDescription.read(folder / "knowledge.json")
    for name, value in _identity(teacher, data).items():
        if getattr(description, name) != value:
            raise InputError(
                f"{folder}: '{name}' in knowledge.json does not match the current {name}; run the teacher step again"
            )
    return Knowledge(folder, description, data)
