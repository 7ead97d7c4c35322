"""How much memory a run will take, told before it starts, and what to do when there is not enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from srcli.config.recipe import FEATURE_SIDE
from srcli.config.training import TrainConfig
from srcli.errors import OutOfMemoryError
from srcli.memory import host_limit_hint
from srcli.protocol.training import Trainee
from srcli.training.checkpoint import checkpoints
from srcli.training.data.crops import Batch, crop_settings

_PROBE_CELLS = 16
"""Side of the latent that is measured, at least; most of what is saved grows with the area (attention keeps no matrix)."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of one process's device, without what the libraries take for themselves."""

    weights: int
    """Frozen networks, adapters and discriminator."""
    optimiser: int
    """Gradients, moments and averages of what is trained."""
    network: int
    """Activations that the trained network keeps for its backward pass, for the whole batch."""
    decoder: int
    """Those of the decoder and the losses behind it, for the pictures decoded at once."""

    @property
    def total(self) -> int:
        return self.weights + self.optimiser + self.network + self.decoder

    def __str__(self) -> str:
        parts = ("weights", self.weights), ("optimiser", self.optimiser), ("activations", self.network), ("decoder", self.decoder)
        words = ", ".join(f"{name} {_gb(size)}" for name, size in parts)
        return f"about {_gb(self.total)} ({words})"


def memory_need(
    config: TrainConfig, trainee: Trainee, others: Sequence[nn.Module], picture_loss: Callable[[Tensor, Tensor], Tensor]
) -> MemoryNeed:
    """Measure the activations of small crops and scale them to the run's crop and batch.

    Args:
        config: of the run.
        trainee: on its device, as it will be trained.
        others: further networks on the device: discriminator, LPIPS.
        picture_loss: (1, 3, H, W) pictures and their references to a scalar.
    """
    recipe = config.recipe
    features = recipe.losses.features or (recipe.losses.gan and recipe.gan.network != "unet")
    least = max(recipe.frequency.patch if recipe.losses.frequency else 0, FEATURE_SIDE if features else 0)
    side = trainee.factor * _probe_cells(least, trainee.factor)
    lq_side = side * crop_settings(config).lq_side // recipe.crop
    growth = (recipe.crop / side) ** 2
    device = next(trainee.network.parameters()).device

    def restore(count: int) -> Tensor:
        lq, hq = (torch.zeros(count, 3, each, each, device=device) for each in (lq_side, side))
        prompts = [str(config.told.get("prompt", ""))] * count
        return trainee.forward(trainee.prepare(Batch(lq, hq, list(range(count)), prompts)))

    z_sr, one = _saved_bytes(lambda: restore(1))
    _, two = _saved_bytes(lambda: restore(2))
    leaf = z_sr.detach().requires_grad_()

    def decode() -> Tensor:
        sr = trainee.decode(leaf)
        return picture_loss(sr, torch.zeros_like(sr))

    _, decoder = _saved_bytes(decode)
    trained = sum(parameter.numel() for parameter in trainee.parameters)
    weights = sum(_bytes_of(module) for module in (trainee.network, *trainee.frozen, *others))
    copies = 4 if recipe.ema else 3  # gradient, two moments, average
    return MemoryNeed(
        weights,
        trained * 4 * copies,
        round(2 * one - two + (two - one) * growth * recipe.batch),  # merged layers keep their weights, whatever the batch
        round(decoder * growth * decode_chunk(config, trainee)),
    )


def _probe_cells(least_px: int, factor: int) -> int:
    """Side of the latent to measure, even: a discriminator wants its pictures so. Its picture has `least_px` a side."""
    return max(_PROBE_CELLS, 2 * math.ceil(least_px / (2 * factor)))


def decode_chunk(config: TrainConfig, trainee: Trainee) -> int:
    """Pictures decoded at once: one by one through a decoder with a large graph, else the whole batch."""
    automatic = 1 if trainee.decodes_alone else config.recipe.batch
    return min(config.decode_chunk or automatic, config.recipe.batch)


def out_of_memory(config: TrainConfig, accelerator: Any, when: str, chunk: int) -> OutOfMemoryError:
    """The error of a run that memory cut short, with the options that help, those that cost nothing first.

    Args:
        config: of the run.
        accelerator: its device and precision.
        when: ends "out of memory on `cuda` ".
        chunk: pictures that it decodes at once; 0 where that is not known yet.
    """
    ways = _ways_to_save(config, accelerator, chunk)
    smaller = f"a smaller `--crop` than {config.recipe.crop}"
    saved = checkpoints(config.output)
    if not saved:
        hint = f"repeat the command with {', or '.join([*ways, smaller])}"
    else:  # another crop is another run
        anew = f"another `--output`, `--start-from {saved[-1]}` and {smaller}"
        hint = f"go on with `--resume` and {', or '.join(ways)}; or give {anew}" if ways else f"give {anew}"
    return OutOfMemoryError(f"out of memory on `{accelerator.device}` {when}", host_limit_hint(accelerator.device.type) + hint)


def _ways_to_save(config: TrainConfig, accelerator: Any, chunk: int) -> list[str]:
    """What a run that goes on may change."""
    recipe = config.recipe
    ways = []
    if chunk > 1:
        ways.append("`--decode-chunk 1` (the same result)")
    if recipe.batch > 1:
        part = max(divisor for divisor in range(1, recipe.batch) if recipe.batch % divisor == 0)
        ways.append(f"`--batch {part} --accumulate {recipe.accumulate * recipe.batch // part}` (the same result)")
    if not config.gradient_checkpointing:
        ways.append("`--gradient-checkpointing` (the same result, a third slower)")
    if accelerator.mixed_precision == "no" and accelerator.device.type != "cpu":
        ways.append("`--dtype bf16`")
    return ways


def _saved_bytes(run: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """What `run` returns, and the bytes of the distinct activations that its graph keeps (no weights)."""
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and not tensor.is_leaf:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    return result, sum(seen.values())


def _bytes_of(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


def _gb(size: int) -> str:
    return f"{size / 1e9:.2g} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
