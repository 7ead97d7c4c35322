"""Reference values computed another way than the code under test."""

from __future__ import annotations

import math


def j1_series(x: float) -> float:
    """Bessel's J1 by its power series."""
    terms = ((-1) ** m / (math.factorial(m) * math.factorial(m + 1)) * (x / 2) ** (2 * m + 1) for m in range(40))
    return sum(terms)
