"""The judge, which compares the probabilities that networks predict for one split with the ground truth."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iusp.artifacts.metrics import Auprc
from iusp.artifacts.networks import NetworkFolder
from iusp.config.evaluation import Evaluation
from iusp.data.taxonomy import Taxonomy
from iusp.evaluation.metrics import Bools, Curve, Floats, Level, bootstrap, curves, interval, score, score_table
from iusp.evaluation.scoring import truth_table
from iusp.features.packed import FeatureSet
from iusp.models.layers import Tagger


@dataclass(frozen=True)
class EvaluatedNetwork:
    """A trained network and the probabilities that it predicts for the evaluated clips.

    Attributes:
        folder: folder of the network.
        tagger: the network, in evaluation mode on the CPU.
        scores: probabilities (N, K) for the evaluated clips.
    """

    folder: NetworkFolder
    tagger: Tagger
    scores: Floats


@dataclass(frozen=True)
class Judge:
    """The ground truth of the evaluated split, and the settings of the comparison with it.

    Attributes:
        config: settings of the intervals.
        taxonomy: categories and tags.
        features: features of all clips.
        split: name of the evaluated split: `test`, or `validate` if there are no test clips.
        tags: tags of the K outputs of the networks, in order.
        truth: for each level, the ground truth (N, tags of the level). The fine level exists only if the networks
            predict every fine tag.
    """

    config: Evaluation
    taxonomy: Taxonomy
    features: FeatureSet
    split: str
    tags: list[str]
    truth: Mapping[Level, Bools]

    @classmethod
    def open(
        cls, config: Evaluation, taxonomy: Taxonomy, dataset: Path, features: FeatureSet, tags: list[str]
    ) -> "Judge":
        """Read the ground truth of the split that is evaluated.

        Args:
            config: settings of the intervals.
            taxonomy: categories and tags.
            dataset: folder that the dataset step wrote.
            features: features of all clips.
            tags: tags of the K outputs of the networks, in order.

        Raises:
            InputError: labels and features belong to different clips.
        """
        split = "test" if features.clips["test"] else "validate"
        levels: list[Level] = ["coarse", "fine"] if set() < set(taxonomy.fine_tags) <= set(tags) else ["coarse"]
        truth = {level: truth_table(dataset, features, split, taxonomy, level) for level in levels}
        return cls(config, taxonomy, features, split, tags, truth)

    @property
    def filenames(self) -> list[str]:
        """Names of the evaluated clips."""
        return self.features.filenames(self.split)

    @property
    def log_mel(self) -> NDArray[np.float16]:
        """Log-mel (N, T, M) of the evaluated clips."""
        return self.features.log_mel(self.split)

    def table(self, scores: Floats, level: Level = "coarse") -> Floats:
        """Turn the probabilities (N, K) of a network into scores (N, tags of the level); see `score_table`."""
        return score_table(scores, self.tags, self.taxonomy, level)

    def quality(self, scores: Floats) -> dict[Level, Auprc]:
        """Return the AUPRCs of the probabilities (N, K) for each level, with 95 % bootstrap intervals over clips."""
        return {level: self._auprc(scores, level) for level in self.truth}

    def _auprc(self, scores: Floats, level: Level) -> Auprc:
        arguments = self.truth[level], self.table(scores, level), self.taxonomy, level
        point = score(*arguments)
        samples = bootstrap(*arguments, self.config.resamples, self.config.seed)
        micro_low, micro_high = interval(samples.micro_auprc)
        macro_low, macro_high = interval(samples.macro_auprc)
        return Auprc(
            micro_auprc=point.micro_auprc,
            micro_auprc_low=micro_low,
            micro_auprc_high=micro_high,
            macro_auprc=point.macro_auprc,
            macro_auprc_low=macro_low,
            macro_auprc_high=macro_high,
            micro_f1=point.micro_f1,
            classwise=point.classwise,
        )

    @property
    def absent_tags(self) -> list[str]:
        """The coarse tags that no evaluated clip has."""
        truth = self.truth["coarse"]
        return [tag for column, tag in enumerate(self.taxonomy.coarse_tags) if not truth[:, column].any()]

    def micro_auprc(self, scores: Floats) -> float:
        """Return the micro-averaged AUPRC of the coarse tags for the probabilities (N, K)."""
        return score(self.truth["coarse"], self.table(scores), self.taxonomy, "coarse").micro_auprc

    def curves(self, scores: Floats) -> dict[str, Curve]:
        """Return the precision-recall curve of each coarse category by its id, and of the micro average as `micro`."""
        return curves(self.truth["coarse"], self.table(scores), self.taxonomy, "coarse")
