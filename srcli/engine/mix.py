"""One picture at many settings of a model's dials, for little more than one: encode, run each pass once, combine, decode.

Knows the `Restorer` protocol and nothing of any method.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from srcli.engine.by_rows import RowEngine
from srcli.engine.parts import Plane
from srcli.engine.restore import Sum
from srcli.protocol.restoring import Mixture, Settings

Step = tuple[Hashable, ...]
"""What is computed once: `(encoding,)` is a latent, `(encoding, pass)` the pass's answer to it."""


class MixingEngine(RowEngine):
    """Restores one picture at many settings."""

    @torch.inference_mode()
    def found(self, picture: Plane, settings: Settings) -> Mapping[str, float]:
        """What is found for a picture, by the names of the dials that `settings` lack."""
        return self._with_less_memory(lambda: self._mixture(picture, settings), [picture]).facts

    def restore_all(self, picture: Plane, settings: Sequence[Settings]) -> Iterator[tuple[int, Tensor]]:
        """Restore one picture at each of `settings`: each encoding and each pass is computed once, each setting decoded.

        A latent or an answer is dropped after the last setting that needs it, and settings that share passes are done one
        after the other, so that memory does not grow with their number. In float32 and one tile the results are those of
        `restore` bit for bit; tiles are blended before they are summed instead of after, which is the same but for rounding.

        Args:
            picture: a `Canvas`, or (3, H, W), RGB, float32 in [-1, 1], at output size.
            settings: of the dials, laid over the engine's own.

        Yields:
            index in `settings`, and the result: (3, H, W), RGB, float32, clamped to [-1, 1].

        Raises:
            OutOfMemoryError: not even the smallest tile fits.
            ImageError: the network gives NaN in float32 too.
        """
        with torch.inference_mode():
            mixtures = [self._mixture(picture, {**self.settings, **each}) for each in settings]
        left = Counter(step for mixture in mixtures for step in _steps(mixture))
        known: dict[Step, Tensor] = {}
        for index in _order(mixtures):
            yield index, self._restore_one(picture, mixtures[index], known)
            for step in _steps(mixtures[index]):
                left[step] -= 1
                if not left[step]:
                    known.pop(step, None)

    @torch.inference_mode()
    def _restore_one(self, picture: Plane, mixture: Mixture, known: dict[Step, Tensor]) -> Tensor:
        for step in _steps(mixture):
            if step not in known:
                known[step] = self._with_less_memory(partial(self._compute, step, picture, known), [picture])
        latent = known[(mixture.encoding,)]
        total = Sum(mixture, self._painted(picture))
        for key in mixture.passes:
            total.add(key, known[(mixture.encoding, key)], keep=True)
        restored = self.restorer.apply(latent, total.of(self._nothing, latent))
        return self._with_less_memory(lambda: self._decode([restored], [picture])[0], [picture])

    def _compute(self, step: Step, picture: Plane, known: dict[Step, Tensor]) -> Tensor:
        net = self.restorer
        if len(step) == 1:
            return self._encode([picture], net.encoder(step[0]))[0]
        return self._answers(step[1], [picture], [known[step[:1]]])[0]


def _steps(mixture: Mixture) -> list[Step]:
    """Latent first, since the answers come from it."""
    return [(mixture.encoding,), *((mixture.encoding, key) for key in mixture.passes)]


def _order(mixtures: Sequence[Mixture]) -> list[int]:
    """Indices, with those that share answers, directly or through others, side by side; else as given."""
    group: dict[Step, int] = {}
    for index, mixture in enumerate(mixtures):
        answers = _answers(mixture)
        joined = {group[step] for step in answers if step in group}
        for step, number in group.items():
            group[step] = min(joined) if number in joined else number
        group.update(dict.fromkeys(answers, min(joined, default=index)))
    return sorted(range(len(mixtures)), key=lambda index: min((group[step] for step in _answers(mixtures[index])), default=-1))


def _answers(mixture: Mixture) -> list[Step]:
    return _steps(mixture)[1:]
