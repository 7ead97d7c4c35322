"""By what rule settings are picked: `METRIC`, or with floors `METRIC, METRIC >= VALUE, METRIC <= VALUE`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from srcli.evaluation.catalogue import METRICS

PLAIN = "bicubic"
"""As a floor's value: what the plainly enlarged input has."""
_FLOOR = re.compile(r"([^<>=\s]*)\s*(<=|>=|=+|<|>)\s*(.*)")


@dataclass(frozen=True)
class Floor:
    """What a setting must reach to be picked."""

    metric: str
    sign: str
    """`>=` or `<=`."""
    value: float | None
    """None for that of the plainly enlarged input."""

    @property
    def text(self) -> str:
        """As on the command line."""
        return f"{self.metric} {self.sign} {PLAIN if self.value is None else f'{self.value:.10g}'}"

    def holds(self, value: float, plain: float | None) -> bool:
        """Whether a value reaches it; `plain` is that of the plainly enlarged input, which not every floor needs."""
        least = plain if self.value is None else self.value
        assert least is not None
        return value >= least if self.sign == ">=" else value <= least


@dataclass(frozen=True)
class Rule:
    """The best by `metric` of those that meet all floors."""

    metric: str
    floors: tuple[Floor, ...] = ()

    @property
    def text(self) -> str:
        """As on the command line."""
        return ", ".join((self.metric, *(floor.text for floor in self.floors)))

    @property
    def floors_text(self) -> str:
        """`psnr >= bicubic and ssim >= 0.8`."""
        return " and ".join(floor.text for floor in self.floors)

    @property
    def metrics(self) -> tuple[str, ...]:
        """All that it names."""
        return tuple(dict.fromkeys((self.metric, *(floor.metric for floor in self.floors))))

    @property
    def plain(self) -> bool:
        """Whether it compares with the plainly enlarged input."""
        return any(floor.value is None for floor in self.floors)


def parse_rule(text: str) -> Rule:
    """A rule as it is typed.

    Raises:
        ValueError: what cannot be read; all faults, joined by `; `.

    >>> parse_rule("lpips, psnr >= bicubic, ssim >= 0.8").floors_text
    'psnr >= bicubic and ssim >= 0.8'
    """
    best: list[str] = []
    floors: list[Floor] = []
    faults: list[str] = []
    for part in (part.strip() for part in text.lower().split(",")):
        floor = _FLOOR.fullmatch(part)
        if not part:
            faults.append("a part is missing between commas")
        elif floor is None:
            best.append(part)
            faults += _metric_faults(part)
        else:
            floors += _floor(floor, faults)
    if len(best) != 1 and "" not in best:
        named = f"names {' and '.join(f'`{name}`' for name in best)}" if best else "names none"
        faults.append(f"settings are picked by one metric, and it {named}; others need a floor as `psnr >= {PLAIN}`")
    faults += _contradictions(floors)
    if faults:
        raise ValueError("; ".join(dict.fromkeys(faults)))
    return Rule(best[0], tuple(dict.fromkeys(floors)))


def _floor(found: re.Match[str], faults: list[str]) -> list[Floor]:
    """The floor, or none where `faults` tells why."""
    (metric, sign, value), part, known = found.groups(), found[0], len(faults)
    if sign not in (">=", "<="):
        faults.append(f"`{part}` needs `>=` or `<=`")
    faults += _metric_faults(metric) if metric else [f"`{part}` names no metric"]
    number = None
    if value != PLAIN:
        try:
            number = float(value)
        except ValueError:
            faults.append(f"`{value}` in `{part}` is neither a number nor `{PLAIN}`")
        else:
            faults += [] if math.isfinite(number) else [f"`{value}` in `{part}` is not finite"]
    return [Floor(metric, sign, number)] if len(faults) == known else []


def _metric_faults(name: str) -> list[str]:
    known = [known for known, info in METRICS.items() if info.per_image]
    if name in known:
        return []
    if name in METRICS:
        return [f"`{name}` is one value for a set of pictures, and picks no setting"]
    return [f"`{name}` is none of {', '.join(known)}"]


def _contradictions(floors: list[Floor]) -> list[str]:
    """Pairs of floors that no value meets, as far as numbers tell."""
    lows = [floor for floor in floors if floor.sign == ">=" and floor.value is not None]
    highs = [floor for floor in floors if floor.sign == "<=" and floor.value is not None]
    return [
        f"no value has `{low.text}` and `{high.text}`"
        for low in lows
        for high in highs
        if low.metric == high.metric and (low.value or 0) > (high.value or 0)
    ]
