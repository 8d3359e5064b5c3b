"""The front-end from waveform to log-mel frames, as an ONNX graph and as a PyTorch module, fast on one CPU thread.

ONNX Runtime's own DFT takes many times as long as the network, and a full DFT as a matrix product needs half a billion
operations per clip. A window of A·B samples is therefore transformed in two stages (Cooley and Tukey 1965). With sample
B·a + b, bin c + A·d and ω = exp(-2πi / (A·B)),

    X[c + A·d] = Σ_b ω^(A·b·d) Σ_a ω^((B·a + b)·c) x[B·a + b].

The inner sum is a strided convolution over the samples b, b + B, b + 2B, …; its kernels contain the window, so it also
cuts the frames. The outer sum is a product with a small matrix. For real samples, c up to A/2 determines all bins.
"""

import math
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from iusp.config.features import Features
from iusp.features.log_mel import clip_length, frame_count, mel_weights

OPSET, IR_VERSION = 20, 9  # supported by ONNX Runtime since 1.17 (2024)


def front_end(config: Features) -> onnx.ModelProto:
    """Return a graph from `waveform` (B, samples) at the front-end's rate to `log_mel` (B, T, M), both float32.

    Its output equals `iusp.features.log_mel.log_mel` up to rounding. It is fast if window and hop length have a large
    common divisor; otherwise it computes a full DFT.
    """
    size, hop, count = config.window_length, config.hop_length, frame_count(config)
    inner = _inner(size, hop)
    outer, half = size // inner, size // inner // 2 + 1
    bands = config.mel_bands
    graph = _Graph()
    edge = graph.integers(0, size // 2, 0, size // 2)
    samples = graph.add("Pad", "waveform", edge, mode="reflect")
    used = (count - 1) * hop + size
    if used < clip_length(config) + size:
        samples = graph.add("Slice", samples, *(graph.integers(number) for number in (0, used, 1)))
    samples = graph.add("Reshape", samples, graph.integers(0, used // inner, inner))
    samples = graph.add("Transpose", samples, perm=[0, 2, 1])
    kernels = graph.constant(_kernels(size, inner))
    sums = graph.add("Conv", samples, kernels, group=inner, strides=[hop // inner])  # (B, inner · half · 2, T)
    # Real and imaginary parts stay adjacent and b moves next to them, so that whole rows are copied.
    sums = graph.add("Reshape", sums, graph.integers(0, inner, half, 2 * count))
    sums = graph.add("Transpose", sums, perm=[0, 2, 1, 3])
    sums = graph.add("Reshape", sums, graph.integers(0, half, 2 * inner, count))
    real, imaginary = (graph.add("MatMul", graph.constant(matrix), sums) for matrix in _matrices(inner))
    power = graph.add("Add", graph.add("Mul", real, real), graph.add("Mul", imaginary, imaginary))
    power = graph.add("Reshape", power, graph.integers(0, half * inner, count))
    mel = graph.add("MatMul", graph.constant(_mel(config, inner, outer)), power)
    mel = graph.add("Transpose", mel, perm=[0, 2, 1])
    graph.add("Log", graph.add("Add", mel, graph.constant(np.array([config.log_offset], np.float32))), to="log_mel")
    return graph.model(("waveform", [clip_length(config)]), ("log_mel", [count, bands]))


class FrontEnd(nn.Module):
    """The same computation as `front_end`, for exporters of PyTorch modules."""

    kernels: Tensor
    real: Tensor
    imaginary: Tensor
    mel: Tensor

    def __init__(self, config: Features) -> None:
        super().__init__()
        self.size, self.hop, self.count = config.window_length, config.hop_length, frame_count(config)
        self.inner = _inner(self.size, self.hop)
        self.coefficients = self.size // self.inner // 2 + 1
        self.log_offset = config.log_offset
        real, imaginary = _matrices(self.inner)
        for name, value in (
            ("kernels", _kernels(self.size, self.inner)),
            ("real", real),
            ("imaginary", imaginary),
            ("mel", _mel(config, self.inner, self.size // self.inner)),
        ):
            self.register_buffer(name, torch.from_numpy(value))

    def forward(self, waveform: Tensor) -> Tensor:
        """Turn a waveform (B, samples) at the front-end's rate into log-mel (B, T, M)."""
        edge, used = self.size // 2, (self.count - 1) * self.hop + self.size
        # nn.functional.pad is avoided because exporters turn it into one index per sample.
        start, end = waveform[:, 1 : edge + 1].flip(1), waveform[:, -edge - 1 : -1].flip(1)
        samples = torch.cat([start, waveform, end], dim=1)[:, :used]
        samples = samples.reshape(-1, used // self.inner, self.inner).transpose(1, 2)
        sums = nn.functional.conv1d(samples, self.kernels, stride=self.hop // self.inner, groups=self.inner)
        sums = sums.reshape(-1, self.inner, self.coefficients, 2 * self.count).transpose(1, 2)
        sums = sums.reshape(-1, self.coefficients, 2 * self.inner, self.count)
        real, imaginary = self.real @ sums, self.imaginary @ sums
        power = (real * real + imaginary * imaginary).reshape(-1, self.coefficients * self.inner, self.count)
        log_mel: Tensor = ((self.mel @ power).transpose(1, 2) + self.log_offset).log()
        return log_mel


def _inner(size: int, hop: int) -> int:
    """Return B, the divisor of window and hop length that costs the fewest operations: A + 2·B, up to a factor."""
    common = math.gcd(size, hop)
    return min((n for n in range(1, common + 1) if common % n == 0), key=lambda n: size / n + 2 * n)


def _kernels(size: int, inner: int) -> NDArray[np.float32]:
    """Return real and imaginary part of the window times ω^((B·a + b)·c), as (B · (A/2 + 1) · 2, 1, A)."""
    outer = size // inner
    sample = inner * np.arange(outer) + np.arange(inner)[:, None]  # (B, A)
    coefficient = np.arange(outer // 2 + 1)[:, None]
    # Computed in integers up to the remainder, so that rounding errors do not grow with the angle.
    angle = 2 * np.pi / size * (sample[:, None, :] * coefficient % size)  # (B, half, A)
    window = torch.hann_window(size, dtype=torch.float64).numpy()[sample][:, None, :]
    kernels = np.stack([window * np.cos(angle), -window * np.sin(angle)], axis=2)
    return kernels.reshape(-1, 1, outer).astype(np.float32)


def _matrices(inner: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return two matrices (B, 2·B) that multiply the inner sums by ω^(A·b·d): for real and for imaginary parts."""
    angle = 2 * np.pi / inner * (np.outer(np.arange(inner), np.arange(inner)) % inner)
    cosine, sine = np.cos(angle), np.sin(angle)
    real, imaginary = np.stack([cosine, sine], axis=2), np.stack([-sine, cosine], axis=2)
    return real.reshape(inner, -1).astype(np.float32), imaginary.reshape(inner, -1).astype(np.float32)


def _mel(config: Features, inner: int, outer: int) -> NDArray[np.float32]:
    """Return the mel weights (M, (A/2 + 1) · B) in the order of the computed bins."""
    size = config.window_length
    weights = mel_weights(config).numpy()
    bins = (np.arange(outer // 2 + 1)[:, None] + outer * np.arange(inner)).ravel()
    # A bin above half the sample rate mirrors a bin below; a bin that occurs twice counts once.
    bins = np.minimum(bins, size - bins)
    arranged = np.zeros((len(bins), config.mel_bands), np.float32)
    found, first = np.unique(bins, return_index=True)
    kept = found < len(weights)
    arranged[first[kept]] = weights[found[kept]]
    return np.ascontiguousarray(arranged.T)


class _Graph:
    """Builds an ONNX graph from nodes and constants."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, value: NDArray[np.float32] | NDArray[np.int64]) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def add(self, operator: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        output = to or f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def model(self, *shapes: tuple[str, list[int]]) -> onnx.ModelProto:
        """Return the model with an input and an output of these names and shapes, behind a batch dimension."""
        tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]) for name, shape in shapes]
        graph = helper.make_graph(self.nodes, "front_end", tensors[:1], tensors[1:], self.constants)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
