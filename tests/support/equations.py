"""Input tensors for losses, and naive versions of the losses' common terms: plain loops in float64."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Rows = Sequence[Sequence[Any]] | Tensor


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wave(*shape: int, phase: float = 0.0) -> Tensor:
    """Return numbers that do not depend on the version of a random generator."""
    return (torch.arange(math.prod(shape), dtype=torch.float64) * 0.7 + phase).sin().reshape(shape)


def similarities(rows: Rows) -> list[list[Any]]:
    """Return G of rows q_1 … q_n: inner products, each row of them divided by its length."""
    products = [[sum(x * y for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]
    return [[p / max(sum(q * q for q in line), 1e-300) ** 0.5 for p in line] for line in products]


def squared_distance(a: Rows, b: Rows) -> Any:
    return sum((x - y) ** 2 for u, v in zip(a, b, strict=True) for x, y in zip(u, v, strict=True))


def averaged(frames: Rows, count: int) -> list[list[Any]]:
    """Average T' frames to `count`: each covers its share of the time and every frame that this share touches."""
    total = len(frames)
    result = []
    for i in range(count):
        covered = frames[math.floor(i * total / count) : math.ceil((i + 1) * total / count)]
        result.append([sum(values) / len(covered) for values in zip(*covered, strict=True)])
    return result


def naive_kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor | float:
    total = 0.0
    for row, soft_row in zip(student, teacher, strict=True):
        for z, z_t in zip(row, soft_row, strict=True):
            p, q = 1 / (1 + (-z / temperature).exp()), 1 / (1 + (-z_t / temperature).exp())
            total = total - q * p.log() - (1 - q) * (1 - p).log()
    return temperature**2 * total / (len(student) * len(student[0]))
