"""Which values of a model's dials are tried for its defaults, and what has become of these."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from srcli.config.rule import PLAIN
from srcli.evaluation.catalogue import METRICS
from srcli.evaluation.measure import value_text
from srcli.opening import complete
from srcli.protocol.declarations import Dial
from srcli.rows.spec import ModelSpec
from srcli.sweep.grid import Cell, value_name
from srcli.sweep.tables import Table

STEPS = 5
"""Evenly spaced values of a dial; its present default comes to them."""


@dataclass(frozen=True)
class Tuned:
    """The settings before and after."""

    before: Cell | None
    """None where a dial was found for each picture."""
    after: Cell
    old_dials: Mapping[str, float | None]
    """The defaults until now of those that were swept; None where they are found for each picture."""
    dials: Mapping[str, float]
    """Their new defaults."""

    @property
    def changed(self) -> bool:
        """Whether any default is another now."""
        return self.before != self.after


def default_lists(dials: Iterable[Dial]) -> dict[str, str]:
    """Values to try, for each dial that has a default and a range: the usual one, or else that of what makes sense."""
    return {dial.name: ",".join(map(value_name, _values(dial))) for dial in dials if _range(dial)}


def with_defaults(spec: ModelSpec, lists: Mapping[str, str]) -> dict[str, str]:
    """The lists with the present defaults among them, which the others are to be compared with."""
    defaults = complete(spec, {})
    return {name: f"{text},{value_name(defaults[name])}" if name in defaults else text for name, text in lists.items()}


def tuned(spec: ModelSpec, table: Table) -> Tuned | None:
    """What the rule of a sweep's table makes of the model's defaults; None where no setting meets its floors."""
    after = table.choice()
    if after is None:
        return None
    defaults, names = complete(spec, {}), [axis.name for axis in table.grid.axes]
    before = next((cell for cell in table.grid.cells if cell.settings == defaults), None)
    return Tuned(before, after, {name: defaults.get(name) for name in names}, {name: after.settings[name] for name in names})


def reached(table: Table) -> list[str]:
    """How far the settings come to each floor of the rule: `the best PSNR is 27.41, and bicubic has 27.77`."""
    means, told = table.means(), []
    for floor in table.pick.floors if table.pick is not None else ():
        values = [means[floor.metric][cell.key] for cell in table.grid.cells]
        best = value_text(floor.metric, (max if floor.sign == ">=" else min)(values))
        plain = f", and {PLAIN} has {value_text(floor.metric, means[floor.metric][PLAIN])}" if floor.value is None else ""
        told.append(f"the {'highest' if floor.sign == '>=' else 'lowest'} {METRICS[floor.metric].label} is {best}{plain}")
    return told


def _range(dial: Dial) -> tuple[float, float] | None:
    if dial.default is None:
        return None
    low, high = dial.usual or (dial.low, dial.high)
    return (low, high) if math.isfinite(low) and math.isfinite(high) and low < high else None


def _values(dial: Dial) -> list[float]:
    low, high = _range(dial) or (0, 0)
    values = [round(low + (high - low) * step / (STEPS - 1), 9) for step in range(STEPS)]
    return sorted({float(round(value)) for value in values} if dial.whole else values)
