"""How much memory a run will take, told before it starts, and what to do when there is not enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from srcli.errors import OutOfMemoryError
from srcli.training.networks import StageNetworks

_PROBE_CELLS = 16
"""Side of the latent that is measured; everything saved grows with the area (attention is computed without its matrix)."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of one process's device, without what the libraries take for themselves."""

    weights: int
    """Frozen networks, adapters and discriminator."""
    optimiser: int
    """Gradients, moments and averages of what is trained."""
    unet: int
    """Activations that the UNet keeps for its backward pass, for the whole batch."""
    decoder: int
    """Those of the decoder and the losses behind it, for the pictures decoded at once."""

    @property
    def total(self) -> int:
        return self.weights + self.optimiser + self.unet + self.decoder

    def __str__(self) -> str:
        parts = ("weights", self.weights), ("optimiser", self.optimiser), ("UNet", self.unet), ("decoder", self.decoder)
        words = ", ".join(f"{name} {_gb(size)}" for name, size in parts)
        return f"about {_gb(self.total)} ({words})"


def memory_need(
    networks: StageNetworks, others: Sequence[nn.Module], picture_loss: Callable[[Tensor, Tensor], Tensor]
) -> MemoryNeed:
    """Measure one small crop's activations and scale them to the run's crop and batch.

    Args:
        networks: on their device, as they will be trained.
        others: further networks on the device: discriminator, LPIPS.
        picture_loss: (1, 3, H, W) pictures and their references to a scalar.
    """
    config = networks.config
    autoencoder = networks.autoencoder
    side = _PROBE_CELLS * autoencoder.factor
    growth = (config.recipe.crop / side) ** 2
    z_lq = torch.zeros(1, autoencoder.channels, _PROBE_CELLS, _PROBE_CELLS, device=networks.device)
    embedding = networks.embed([config.prompts.inference])
    z_sr, unet = _saved_bytes(lambda: networks.restore(z_lq, embedding))
    leaf = z_sr.detach().requires_grad_()

    def decode() -> Tensor:
        with networks.autocast():
            sr = autoencoder.decode(leaf).float()
        return picture_loss(sr, torch.zeros_like(sr))

    _, decoder = _saved_bytes(decode)
    trained = sum(parameter.numel() for parameter in networks.parameters)
    weights = sum(_bytes_of(module) for module in (networks.unet, autoencoder.network, *others))
    copies = 4 if config.recipe.ema else 3  # gradient, two moments, average
    return MemoryNeed(
        weights,
        trained * 4 * copies,
        round(unet * growth * config.recipe.batch),
        round(decoder * growth * decode_chunk(networks)),
    )


def decode_chunk(networks: StageNetworks) -> int:
    """Pictures decoded at once: one by one through a learned decoder, the whole batch through one without weights."""
    config = networks.config
    automatic = 1 if networks.autoencoder_learned else config.recipe.batch
    return min(config.decode_chunk or automatic, config.recipe.batch)


def out_of_memory(networks: StageNetworks, step: int) -> OutOfMemoryError:
    """The error of a run that memory cut short, with the options that help, those that cost nothing first."""
    config = networks.config
    recipe = config.recipe
    ways = []
    if decode_chunk(networks) > 1:
        ways.append("`--decode-chunk 1` (the same result)")
    if recipe.batch > 1:
        half = recipe.batch // 2
        ways.append(f"`--batch {half} --accumulate {recipe.accumulate * recipe.batch // half}` (the same result)")
    if not config.gradient_checkpointing:
        ways.append("`--gradient-checkpointing` (the same result, a third slower)")
    if networks.dtype == torch.float32 and networks.device.type != "cpu":
        ways.append("`--dtype bf16`")
    ways.append(f"a smaller `--crop` than {recipe.crop}")
    message = f"out of memory on `{networks.device}` at step {step + 1}"
    return OutOfMemoryError(message, "with `--resume`, " + ", or ".join(ways))


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
