"""The table of distillation methods; it needs no torch."""

from collections.abc import Sequence
from typing import Literal

# Distillation losses, and the kind of the teacher's knowledge that each takes.
METHODS = {
    "kd": "logits",
    "sp": "embedding",
    "iusp": "similarity",
    "skill": "similarity",
    "attention": "attention",
    "fitnet": "hints",
    "vic": "pooled",
    "inter": "logits",
    "non_target": "logits",
    "multilevel": "logits",
    "consistency": None,
}


KnowledgeKind = Literal["logits", "pooled", "similarity", "embedding", "attention", "hints"]


PER_LAYER = ("similarity", "embedding", "attention", "hints")


def _names(kinds: Sequence[str], layers: Sequence[int]) -> list[str]:
    return [
        name for kind in kinds for name in ([f"{kind}-{layer}" for layer in layers] if kind in PER_LAYER else [kind])
    ]
