"""Which settings are the best: by one metric, by a rule with floors, and those that no other beats in two metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from srcli.config.rule import Rule
from srcli.evaluation.catalogue import METRICS, MetricInfo
from srcli.sweep.grid import Cell

Values = Mapping[str, Mapping[str, float]]
"""Key of a cell -> metric -> value."""

FIDELITY = ("psnr", "ssim")
"""Metrics that reward staying close to the reference, pixel by pixel; the first that is there stands for fidelity."""


def best_cell(cells: Sequence[Cell], values: Values, info: MetricInfo) -> Cell | None:
    """The first cell of the best value; None where no cell has one."""
    best: Cell | None = None
    for cell in cells:
        value = values[cell.key].get(info.name)
        if value is not None and (best is None or info.better(value, values[best.key][info.name])):
            best = cell
    return best


def picked_cell(rule: Rule, cells: Sequence[Cell], values: Values, plain: Mapping[str, float]) -> Cell | None:
    """The best cell by a rule; None where no cell meets its floors.

    Args:
        rule: the metric and the floors.
        cells: to choose from.
        values: of all metrics that the rule names.
        plain: metric -> value of the plainly enlarged input, as far as the rule compares with it.
    """
    met = [
        cell
        for cell in cells
        if all(floor.holds(values[cell.key][floor.metric], plain.get(floor.metric)) for floor in rule.floors)
    ]
    return best_cell(met, values, METRICS[rule.metric])


def pareto(points: Sequence[tuple[float, float]], higher_x: bool, higher_y: bool) -> list[int]:
    """Indices of the points that no other beats, by ascending x; NaN is never among them.

    One point beats another where it is better in one coordinate and at least as good in the other; equal ones stay together.

    >>> pareto([(1, 3), (2, 2), (1, 1), (3, 1)], True, True)
    [0, 1, 3]
    """
    front: list[int] = []
    finite = [index for index, point in enumerate(points) if not any(map(math.isnan, point))]
    signs = (1 if higher_x else -1, 1 if higher_y else -1)
    best = -math.inf
    for index in sorted(finite, key=lambda index: (-signs[0] * points[index][0], -signs[1] * points[index][1])):
        if signs[1] * points[index][1] > best or (front and points[index] == points[front[-1]]):
            best = signs[1] * points[index][1]
            front.append(index)
    return sorted(front, key=lambda index: points[index][0])
