"""Tiles that go through a chain side by side and agree, at each link, on what the whole picture sums to.

So a picture is computed in tiles with the group norms of the whole: one tile at a time needs working memory, and of the others
there is only what they hold between two links.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srcli.protocol.restoring import Chain, Margins, State


@dataclass
class Agreed:
    """Tiles at the end of their chain.

    Attributes:
        sums: of the picture at each link.
    """

    sums: list[Tensor]
    _chain: Chain
    _states: list[State]
    _exact: bool

    def results(self) -> Iterator[Tensor]:
        """Each tile's result, (channels, h * cell_out, w * cell_out), in the order of the crops; can be asked for once."""
        with self._chain.precision(exact=self._exact):
            while self._states:
                yield self._chain.end(self._states.pop(0))[0]


def side_by_side(
    chain: Chain, crops: Sequence[Callable[[], Tensor]], rows: int, margins: Sequence[Margins], device: torch.device
) -> Agreed:
    """Lead tiles through a chain together; in float32 if half precision spoils what they agree on.

    Args:
        chain: the way.
        crops: give the tiles, (C, h * cell_in, w * cell_in), all of one size.
        rows: of a tile, in latent cells.
        margins: what of each tile is counted by its neighbours, in latent cells.
        device: of the network; the tiles wait there too.
    """
    for exact in (False, True):
        agreed = _walk(chain, crops, rows, margins, device, exact)
        if all(bool(torch.isfinite(sums).all()) for sums in agreed.sums):
            break
    return agreed


def _walk(
    chain: Chain, crops: Sequence[Callable[[], Tensor]], rows: int, margins: Sequence[Margins], device: torch.device, exact: bool
) -> Agreed:
    sums: list[Tensor] = []
    with chain.precision(exact=exact):
        states = [chain.begin(crop()[None].to(device)) for crop in crops]
        for index in range(chain.length):
            own = [chain.moments(index, state, rows, margin) for state, margin in zip(states, margins, strict=True)]
            sums.append(torch.stack(own).sum(0))
            for place in range(len(states)):
                state, states[place] = states[place], ()  # so that it is gone when its successor is complete
                states[place] = chain.advance(index, state, sums[index])
    return Agreed(sums, chain, states, exact)
