"""Predictions of a network."""

import numpy as np
import torch
from numpy.typing import NDArray

from iusp.models.layers import Tagger


@torch.inference_mode()
def predict(network: Tagger, log_mel: NDArray[np.float16], batch_size: int = 64) -> NDArray[np.float64]:
    """Return the probabilities (N, K) for clips (N, T, M). They are computed in float32, batch by batch."""
    network.eval()
    scores = [
        network(torch.from_numpy(log_mel[start : start + batch_size].astype(np.float32)).to(network.device))[0]
        .sigmoid()
        .cpu()
        for start in range(0, len(log_mel), batch_size)
    ]
    return torch.cat(scores).numpy().astype(np.float64)
