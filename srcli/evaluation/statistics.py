"""How sure a mean is: bootstrap intervals over pictures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 2000


def bootstrap_means(values: F64, resamples: int = RESAMPLES, seed: int = 0) -> F64:
    """Means over pictures drawn with replacement (Efron, "Bootstrap methods: another look at the jackknife", 1979).

    Each draw takes the same pictures for all methods, so that differences between rows are paired.

    Args:
        values: (methods, pictures).
        resamples: number of draws.
        seed: of the draws; the same seed gives the same draws.

    Returns:
        (methods, resamples).
    """
    methods, pictures = values.shape
    generator = np.random.default_rng(seed)
    means = np.empty((methods, resamples))
    for draw in range(resamples):
        means[:, draw] = values[:, generator.integers(pictures, size=pictures)].mean(axis=1)
    return means


def interval(means: F64, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The percentile interval of draws, (resamples,) as of `bootstrap_means`."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def differ(one: F64, other: F64, confidence: float = CONFIDENCE) -> bool:
    """Whether two rows of `bootstrap_means` differ: the interval of their paired difference is without 0."""
    low, high = interval(one - other, confidence)
    return low > 0 or high < 0
