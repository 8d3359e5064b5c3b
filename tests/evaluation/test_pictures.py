"""The numbers that the pictures show."""

import numpy as np

from iusp.evaluation.pictures import _correlations


def test_the_agreement_leaves_out_the_diagonal_and_is_zero_without_variation() -> None:
    matrices = np.random.default_rng(0).random((3, 5, 5)).astype(np.float32)
    others = matrices * 2 + 1
    others[:, np.arange(5), np.arange(5)] = 9
    others[2] = 1
    off = ~np.eye(5, dtype=bool)
    expected = [np.corrcoef(matrices[clip][off], -others[clip][off])[0, 1] for clip in (0, 1)]
    np.testing.assert_allclose(_correlations(matrices, -others), [*expected, 0], atol=1e-6)
    np.testing.assert_allclose(expected, -1, atol=1e-6)
