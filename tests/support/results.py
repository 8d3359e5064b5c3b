"""Results of networks, as the evaluation step writes them."""

from typing import Any

from iusp.artifacts.metrics import Auprc, NetworkResult, StudentResult
from iusp.data.taxonomy import Taxonomy


def network_result(taxonomy: Taxonomy, auprc: float) -> NetworkResult:
    """Return a result in which every AUPRC is the same."""
    names = [f"{kind}_auprc{end}" for kind in ("micro", "macro") for end in ("", "_low", "_high")]
    coarse = Auprc(**dict.fromkeys(names, auprc), micro_f1=0.7, classwise=dict.fromkeys(taxonomy.coarse, auprc))
    return NetworkResult(architecture="plain", parameters=1, macs=1, bytes=1, coarse=coarse)


def student_result(network: NetworkResult, **changes: Any) -> StudentResult:
    """Return the result of a student with one seed, 0."""
    auprc = network.coarse.micro_auprc
    fields = {"method": "iusp", "weights": {"iusp": 100.0}, "validate_micro_auprc": {"0": auprc}, "best_seed": 0}
    fields |= {"seeds": {"0": auprc}, "seeds_mean": auprc, "seeds_std": 0.0}
    return StudentResult(**dict(network) | fields | changes)
