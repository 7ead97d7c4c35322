"""Stable Diffusion's autoencoder in steps that can be computed in tiles, with group norms that do not see the tiles.

The encoder and the decoder are each cut in two at the latent's resolution: a wide step that works on pixels and takes nearly all
memory, and a deep step at the latent's resolution, with the attention, whose memory is small. Two things in them see the whole
picture: attention, which lies in the deep step and is computed whole for pictures of usual size, and the group norms. Each step
is therefore a chain of links, each of which begins with a norm, so that tiles can be led through it side by side and agree on
the statistics of the whole picture at each norm. `docs/performance.md` tells what that costs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from srcli.networks.device import compiled, in_float32, layout_for
from srcli.protocol import Margins, Part, State

HALO_LAT = 4
"""Latent cells around a tile of a wide step that are computed and thrown away."""
DEEP_HALO_LAT = 16
"""The same for a deep step; its tiles fade into each other, because attention differs from tile to tile."""
DEEP_CELLS = 1 << 15
"""Latent cells up to which a deep step stays whole (a picture of 2 megapixels): attention costs the square of them."""


_BAND_VALUES = {True: 1 << 18, False: 1 << 26}
"""Values whose float32 copy stays in a CPU's cache, and what another device may copy at once."""


class Link(NamedTuple):
    """From one norm to the next."""

    norm: nn.GroupNorm
    step: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
    """(the norm's result, what was kept) -> (the next norm's input, what is kept now)."""
    opens: bool
    """Whether the norm's input is kept, for a residual connection."""


class NormChain:
    """A step as links with norms between them; implements `srcli.protocol.Chain`.

    Args:
        network: what holds the weights, on its device and in its dtype.
        begin: from the step's input to the first norm.
        links: in their order.
        end: from the last link's result to the step's.
        cell_in: samples of the input a latent cell.
    """

    def __init__(
        self,
        network: nn.Module,
        begin: Callable[[Tensor], Tensor],
        links: Sequence[Link],
        end: Callable[[Tensor], Tensor],
        cell_in: int,
    ) -> None:
        self._network, self._begin, self._links, self._end, self._cell_in = network, begin, tuple(links), end, cell_in
        self.length = len(self._links)
        self._own_norms: Callable[[Tensor], Tensor] = self._walk

    @contextlib.contextmanager
    def precision(self, *, exact: bool) -> Iterator[None]:
        with in_float32(self._network) if exact else contextlib.nullcontext():
            yield

    def begin(self, x: Tensor) -> State:
        dtype = next(self._network.parameters()).dtype
        return (self._begin(x.to(dtype, memory_format=layout_for(dtype))),)

    def moments(self, index: int, state: State, rows: int, margins: Margins) -> Tensor:
        groups = self._links[index].norm.num_groups
        top, left, bottom, right = (state[0].shape[2] // rows * side for side in margins)
        height, width = state[0].shape[2:]
        own = state[0][:, :, top : height - bottom, left : width - right]
        count = torch.full((1, groups), own.numel() // groups, dtype=torch.float64)
        return torch.cat((count, _sums(own).reshape(2, groups, -1).sum(2)))

    def advance(self, index: int, state: State, moments: Tensor | None) -> State:
        link = self._links[index]
        x, kept = state[0], state[1] if len(state) > 1 else None
        if link.opens:
            kept = x
        normed = _normalise(link.norm, x, moments)
        del x, state
        x, kept = link.step(normed, kept)
        return (x,) if kept is None else (x, kept)

    def end(self, state: State) -> Tensor:
        return self._end(state[0])

    def run(self, x: Tensor, *, measured: Sequence[Tensor] | None = None, exact: bool = False) -> Tensor:
        """The whole step; without `measured` each sample has the statistics of its own."""
        with self.precision(exact=exact):
            return self._walk(x, measured) if measured is not None or exact else self._own_norms(x)

    def compile(self) -> None:
        """Compile `run`, at its first call, for samples with statistics of their own."""
        self._own_norms = compiled(self._walk)

    def _walk(self, x: Tensor, measured: Sequence[Tensor] | None = None) -> Tensor:
        state = self.begin(x)
        for index in range(self.length):
            state = self.advance(index, state, None if measured is None else measured[index])
        return self.end(state)


def _sums(x: Tensor) -> Tensor:
    """Σ x and Σ x² of each channel: (N, C, H, W) -> (2, C), float64, on the CPU.

    Products with ones, band by band in float32: on a CPU this takes a twentieth of what `torch.var_mean` does channels last.
    """
    n, channels, height, width = x.shape
    sums = torch.zeros(2, channels, dtype=torch.float64)
    rows = max(1, _BAND_VALUES[x.device.type == "cpu"] // (n * width * channels))
    ones = torch.ones(1, n * rows * width, device=x.device)
    for top in range(0, height, rows):
        values = x[:, :, top : top + rows].permute(0, 2, 3, 1).reshape(-1, channels).float()
        one = ones[:, : len(values)]
        sums += torch.cat((one @ values, one @ values.square())).cpu().double()
    return sums


def _normalise(norm: nn.GroupNorm, x: Tensor, moments: Tensor | None) -> Tensor:
    """The group norm of x, (N, C, H, W), by the statistics that `moments` hold: (3, groups) sums of 1, x and x²."""
    if moments is None:
        return norm(x)  # type: ignore[no-any-return]
    mean = moments[1] / moments[0]
    variance = (moments[2] / moments[0] - mean.square()).clamp_min(0)
    each = norm.num_channels // norm.num_groups
    mean, variance = (values.float().repeat_interleave(each).to(x.device) for values in (mean, variance))
    return functional.batch_norm(x, mean, variance, norm.weight.float(), norm.bias.float(), training=False, eps=norm.eps)


class VaeSteps:
    """An `AutoencoderKL` as steps for the engine.

    Args:
        vae: diffusers' `AutoencoderKL`, on its device and in its dtype.
        scaling_factor: latents are the posterior's mode times this.
    """

    def __init__(self, vae: Any, scaling_factor: float) -> None:
        self._vae, self._scaling = vae, scaling_factor
        widths, latent = vae.config.block_out_channels, int(vae.config.latent_channels)
        factor = 2 ** (len(widths) - 1)
        near = widths[min(1, len(widths) - 1)]  # the upsampled planes have the second level's channels
        wide, deep = factor**2 * (2 * near + widths[0]), 10 * widths[-1]
        held = factor**2 * (near + widths[0])
        shrunk = widths[-2] if len(widths) > 1 else widths[0]
        self.encoder = (
            self._part(*self._shrink(), shrunk, (factor, 1), (wide, held)),
            self._part(*self._to_latent(), latent, (1, 1), (deep, deep), deep=True),
        )
        self.decoder = (
            self._part(*self._from_latent(), widths[-1], (1, 1), (deep, deep), deep=True),
            self._part(*self._grow(), 3, (1, factor), (wide, held)),
        )

    def _part(
        self,
        begin: Callable[[Tensor], Tensor],
        links: list[Link],
        end: Callable[[Tensor], Tensor],
        channels: int,
        cells: tuple[int, int],
        values: tuple[int, int],
        *,
        deep: bool = False,
    ) -> Part:
        size = self._vae.dtype.itemsize
        chain = NormChain(self._vae, begin, links, end, cells[0])
        halo, fade, most = (DEEP_HALO_LAT, DEEP_HALO_LAT, DEEP_CELLS) if deep else (HALO_LAT, 2, None)
        return Part(chain.run, channels, *cells, halo, fade, most, values[0] * size, chain if links else None, values[1] * size)

    # --- the network's way, cut in four ---

    def _shrink(self) -> tuple[Callable[[Tensor], Tensor], list[Link], Callable[[Tensor], Tensor]]:
        encoder = self._vae.encoder
        links = []
        for block in encoder.down_blocks[:-1]:
            links += _resnets(block.resnets, then=block.downsamplers)
        return encoder.conv_in, links, _same

    def _to_latent(self) -> tuple[Callable[[Tensor], Tensor], list[Link], Callable[[Tensor], Tensor]]:
        encoder = self._vae.encoder
        links = [*_resnets(encoder.down_blocks[-1].resnets), *_middle(encoder.mid_block)]
        links.append(Link(encoder.conv_norm_out, lambda x, _: (encoder.conv_out(_silu(x)), None), opens=False))

        def end(x: Tensor) -> Tensor:
            moments = x if self._vae.quant_conv is None else self._vae.quant_conv(x)
            mode: Tensor = moments.chunk(2, dim=1)[0]
            return mode.float() * self._scaling

        return _same, links, end

    def _from_latent(self) -> tuple[Callable[[Tensor], Tensor], list[Link], Callable[[Tensor], Tensor]]:
        decoder = self._vae.decoder

        def begin(latent: Tensor) -> Tensor:
            x = latent / self._scaling
            x = x if self._vae.post_quant_conv is None else self._vae.post_quant_conv(x)
            return decoder.conv_in(x)  # type: ignore[no-any-return]

        return begin, [*_middle(decoder.mid_block), *_resnets(decoder.up_blocks[0].resnets)], _same

    def _grow(self) -> tuple[Callable[[Tensor], Tensor], list[Link], Callable[[Tensor], Tensor]]:
        decoder = self._vae.decoder
        links = []
        for block in decoder.up_blocks[1:]:
            links += _resnets(block.resnets, then=block.upsamplers)
        links.append(Link(decoder.conv_norm_out, lambda x, _: (decoder.conv_out(_silu(x)), None), opens=False))
        return lambda x: _after(decoder.up_blocks[0].upsamplers, x), links, Tensor.float


def _resnets(resnets: Any, then: Any = None) -> list[Link]:
    """Residual blocks (diffusers' `ResnetBlock2D`) without time, and the layers after the last of them."""
    links: list[Link] = []
    for number, block in enumerate(resnets, 1):
        layers = then if number == len(resnets) else None
        links.append(Link(block.norm1, partial(_open, block), opens=True))
        links.append(Link(block.norm2, partial(_close, block, layers), opens=False))
    return links


def _open(block: Any, x: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The first half of a residual block."""
    return block.conv1(_silu(x)), kept


def _close(block: Any, layers: Any, x: Tensor, kept: Tensor | None) -> tuple[Tensor, None]:
    """The second half of a residual block, its residual connection, and what follows it."""
    h = block.conv2(_silu(x))
    h += kept if block.conv_shortcut is None else block.conv_shortcut(kept)
    if block.output_scale_factor != 1:
        h /= block.output_scale_factor
    return _after(layers, h), None


def _middle(block: Any) -> list[Link]:
    """The middle (diffusers' `UNetMidBlock2D`): a residual block, then attention and a residual block in turn."""
    links = _resnets(block.resnets[:1])
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            links.append(Link(attention.group_norm, partial(_attend, attention), opens=True))
        links += _resnets([resnet])
    return links


def _attend(attention: Any, x: Tensor, kept: Tensor | None) -> tuple[Tensor, None]:
    """Attention (diffusers' `Attention`) of all cells to all cells, with its residual connection."""
    n, channels, height, width = x.shape
    tokens = x.permute(0, 2, 3, 1).reshape(n, height * width, channels)
    q, k, v = (
        linear(tokens).reshape(n, height * width, attention.heads, -1).transpose(1, 2)
        for linear in (attention.to_q, attention.to_k, attention.to_v)
    )
    h = functional.scaled_dot_product_attention(q, k, v, scale=attention.scale)
    h = attention.to_out[0](h.transpose(1, 2).flatten(2))
    h = h.reshape(n, height, width, channels).permute(0, 3, 1, 2) + kept
    return (h if attention.rescale_output_factor == 1 else h / attention.rescale_output_factor), None


def _after(layers: Any, x: Tensor) -> Tensor:
    for layer in layers or ():
        x = layer(x)
    return x


def _silu(x: Tensor) -> Tensor:
    return functional.silu(x, inplace=True)


def _same(x: Tensor) -> Tensor:
    return x
