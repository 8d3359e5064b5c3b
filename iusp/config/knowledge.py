"""The kinds of knowledge that a teacher stores for its students, and the names of the stored arrays."""

from collections.abc import Sequence
from typing import Literal

KnowledgeKind = Literal["logits", "pooled", "similarity", "embedding", "attention", "hints"]
PER_LAYER = ("similarity", "embedding", "attention", "hints")


def knowledge_names(kinds: Sequence[KnowledgeKind], layers: Sequence[int]) -> list[str]:
    """Return the names of the stored arrays.

    Args:
        kinds: kinds of knowledge that the teacher stores.
        layers: layers of the teacher, counted from the last, which is 1.

    Returns:
        The kind itself where it concerns the whole network (`logits`), or the kind and a layer (`similarity-1`).
    """
    return [
        name for kind in kinds for name in ([f"{kind}-{layer}" for layer in layers] if kind in PER_LAYER else [kind])
    ]
