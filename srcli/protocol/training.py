"""What the training loop may know of a method: what trains it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn


class Batch(Protocol):
    """Samples on the device."""

    lq: Tensor
    """(N, 3, crop, crop), RGB, float32 in [-1, 1], enlarged to the size of `hq`; of a family with `raw_input` as it is."""
    hq: Tensor
    """(N, 3, crop, crop), RGB, float32 in [-1, 1]."""
    indices: list[int]
    """Of the samples: the seeds of what is drawn for each."""
    prompts: list[str]
    """Positive prompts; empty where the stage has no use for them."""
    judged: Sequence[bool] | None
    """The samples whose results the discriminator sees; None for all."""


@dataclass(frozen=True)
class LayerRank:
    """What a layer of an adapted network got."""

    name: str
    kind: str
    """`conv`, `attention` or `mlp`."""
    importance: float
    """Its share in that of all layers."""
    rank: int
    parameters: int
    """That are trained for it."""


class Trainee(Protocol):
    """What one stage trains, and all that the loop has to know of it.

    First comes settle(). A step is batch = aimed(batch); prepared = prepare(batch); z = forward(prepared); the losses of
    decode(z) and losses(z, batch) go back to z and on through `network`; before_step(), the optimiser's step, after_step().
    Methods derive from it and leave out what they do not need: what has a body here does nothing.
    """

    network: nn.Module
    """With its adapters."""
    trained: nn.Module
    """The same, or what wraps it for several processes; `forward` calls it."""
    parameters: Sequence[nn.Parameter]
    """What the optimiser gets, float32."""
    frozen: Sequence[nn.Module]
    """Other networks on the device, for the memory that they take."""
    factor: int
    """Pixels a latent cell: crops are multiples of it."""
    decodes_alone: bool
    """Whether pictures are best decoded one by one, since the decoder's graph is large."""

    def settle(
        self, known: Mapping[str, int], sample: Callable[[int], Batch], gradient: Callable[[Tensor, Batch], Tensor]
    ) -> Sequence[LayerRank]:
        """Decide on what data alone can decide: which layers get how much of what may be trained.

        Args:
            known: layers' ranks that an earlier part of the run has decided on.
            sample: index -> that sample of the run, alone in its batch: so it is the same however steps are split into batches.
            gradient: the gradient of the recipe's losses at the z_sr of a batch.

        Returns:
            what was measured and decided; empty where there was nothing to decide.

        Raises:
            UsageError: the recipe allows no decision.
        """
        return ()

    def know(self, prompts: Sequence[str]) -> None:
        """All prompts that will be asked for, where they are few: what embeds them may be let go then.

        Raises:
            ModelError: a prompt cannot be embedded.
        """
        return

    def aimed(self, batch: Batch) -> Batch:
        """The batch with what the losses of training are to compare with, where that is not each sample's own original."""
        return batch

    def prepare(self, batch: Batch) -> Any:
        """What `forward` needs, without gradients."""
        ...

    def forward(self, prepared: Any) -> Tensor:
        """z_sr, (N, C, h, w), float32, with a graph to the parameters."""
        ...

    def decode(self, z_sr: Tensor) -> Tensor:
        """(N, 3, H, W), RGB, float32, about [-1, 1], with a graph to `z_sr`."""
        ...

    def losses(self, z_sr: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The stage's own losses on latents, by their names in the recipe; those of weight 0 are left out."""
        return {}

    def before_step(self) -> None:
        """Gradients are complete (summed over processes, not yet clipped)."""
        return

    def after_step(self) -> None:
        """The optimiser has stepped."""
        return

    def views(self, batch: Batch) -> Mapping[str, Tensor]:
        """For validation, z_sr by what it shows, without gradients; the whole result comes last. Empty where it is no picture."""
        ...

    def save(self, step: int, folder: Path, *, half: bool = False) -> None:
        """Write what is learnt after `step` steps into a folder, as `srcli upscale` takes it; in half precision where `half`.

        Raises:
            OSError: it cannot be written.
        """
        ...
