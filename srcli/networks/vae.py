"""Stable Diffusion's autoencoder in steps that can be computed in tiles, with group norms that do not see the tiles.

The encoder and the decoder are each cut in two at the latent's resolution: a wide step that works on pixels and takes nearly all
memory, and a deep step at the latent's resolution, with the attention, whose memory is small. Two things in them see the whole
picture: attention, which lies in the deep step and is computed whole for pictures of usual size, and the group norms. Each step
is therefore a chain of links, each of which begins with a norm, so that tiles can be led through it side by side and agree on
the statistics of the whole picture at each norm. `docs/performance.md` tells what that costs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from srcli.errors import ModelError
from srcli.networks.blocks import Downsample, Level, Resnet, Upsample
from srcli.networks.device import in_float32, layout_for
from srcli.protocol.restoring import Margins, Part, Parts, State

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
    """A step as links with norms between them; implements `srcli.protocol.restoring.Chain`.

    Args:
        network: what holds the weights, on its device and in its dtype.
        begin: from the step's input to the first norm.
        links: in their order.
        end: from the last link's result to the step's.
    """

    def __init__(
        self, network: nn.Module, begin: Callable[[Tensor], Tensor], links: Sequence[Link], end: Callable[[Tensor], Tensor]
    ) -> None:
        self._network, self._begin, self._links, self._end = network, begin, tuple(links), end
        self.length = len(self._links)

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


# The network ---------------------------------------------------------------------------------------------------------

_EPS = 1e-6
OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Of attention's layers, in files of the first years, and today's."""
_USUAL: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
"""What diffusers takes for a key that an autoencoder's `config.json` lacks."""


class Vae(nn.Module):
    """Stable Diffusion's autoencoder, with the names that layers have in diffusers' `AutoencoderKL`; see `vae_parts`.

    Args:
        config: `config.json` of an `AutoencoderKL`.

    Attributes:
        widths: channels of the levels, from the pixels to the latent's resolution.
        scaling_factor: latents are the posterior's mode times this.

    Raises:
        ModelError: it is of another kind than Stable Diffusion's.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        _check(config)
        config = _USUAL | dict(config)
        self.widths: list[int] = list(config["block_out_channels"])
        self.latent_channels, self.scaling_factor = int(config["latent_channels"]), float(config["scaling_factor"])
        resnet = partial(Resnet, groups=config["norm_num_groups"], eps=_EPS)
        layers, moments = config["layers_per_block"], 2 * self.latent_channels
        down, up = [], []
        for i, (inner, outer) in enumerate(zip([self.widths[0], *self.widths], self.widths, strict=False)):
            resnets = [resnet(outer if j else inner, outer) for j in range(layers)]
            down.append(Level(resnets, (), [Downsample(outer, 0)] if i < len(self.widths) - 1 else ()))
        backwards = self.widths[::-1]
        for i, (inner, outer) in enumerate(zip([backwards[0], *backwards], backwards, strict=False)):
            resnets = [resnet(outer if j else inner, outer) for j in range(layers + 1)]
            up.append(Level(resnets, (), (), [Upsample(outer)] if i < len(self.widths) - 1 else ()))
        self.encoder: Any = _Coder(config, config["in_channels"], self.widths[0], self.widths[-1], moments)
        self.encoder.down_blocks = nn.ModuleList(down)
        self.decoder: Any = _Coder(config, self.latent_channels, self.widths[-1], self.widths[0], config["out_channels"])
        self.decoder.up_blocks = nn.ModuleList(up)
        self.quant_conv = nn.Conv2d(moments, moments, 1) if config["use_quant_conv"] else None
        latent = self.latent_channels
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if config["use_post_quant_conv"] else None

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


class _Coder(nn.Module):
    """What encoder and decoder have in common: first and last layers, and the middle."""

    def __init__(self, config: Mapping[str, Any], inner: int, first: int, last: int, outer: int) -> None:
        super().__init__()
        groups, width = config["norm_num_groups"], config["block_out_channels"][-1]
        self.conv_in = nn.Conv2d(inner, first, 3, padding=1)
        attentions = [_Attention(width, groups)] if config["mid_block_add_attention"] else ()
        self.mid_block = Level((Resnet(width, width, groups, _EPS) for _ in range(2)), attentions)
        self.conv_norm_out = nn.GroupNorm(groups, last, _EPS)
        self.conv_out = nn.Conv2d(last, outer, 3, padding=1)


class _Attention(nn.Module):
    """The layers of attention of all cells to all cells, with one head."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, _EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])


def _check(config: Mapping[str, Any]) -> None:
    """Raises: ModelError."""
    plain = {"act_fn": "silu", "shift_factor": None, "latents_mean": None, "latents_std": None}
    other = [f"`{key}` = `{config[key]}`" for key, value in plain.items() if config.get(key, value) != value]
    for key, known in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        other += [f"`{kind}`" for kind in dict.fromkeys(config.get(key, ())) if kind != known]
    if other:
        message = f"the base's autoencoder is of a kind that srcli cannot run: {', '.join(other)}"
        raise ModelError(message, "take a base such as SD 2.1-base, whose autoencoder is Stable Diffusion's")


# Its steps -----------------------------------------------------------------------------------------------------------


def vae_parts(vae: Vae) -> Parts:
    """An autoencoder, on its device and in its dtype, as steps for the engine."""
    widths, latent = vae.widths, vae.latent_channels
    factor = 2 ** (len(widths) - 1)
    near = widths[min(1, len(widths) - 1)]  # the upsampled planes have the second level's channels
    wide, deep = factor**2 * (2 * near + widths[0]), 10 * widths[-1]
    held = factor**2 * (near + widths[0])
    shrunk = widths[-2] if len(widths) > 1 else widths[0]
    encoder = (
        _part(vae, *_shrink(vae), shrunk, (factor, 1), (wide, held)),
        _part(vae, *_to_latent(vae), latent, (1, 1), (deep, deep), deep=True),
    )
    decoder = (
        _part(vae, *_from_latent(vae), widths[-1], (1, 1), (deep, deep), deep=True),
        _part(vae, *_grow(vae), 3, (1, factor), (wide, held)),
    )
    return Parts(encoder, decoder)


def _part(
    vae: Vae,
    begin: Callable[[Tensor], Tensor],
    links: list[Link],
    end: Callable[[Tensor], Tensor],
    channels: int,
    cells: tuple[int, int],
    values: tuple[int, int],
    *,
    deep: bool = False,
) -> Part:
    size = vae.dtype.itemsize
    chain = NormChain(vae, begin, links, end)
    halo, fade, most = (DEEP_HALO_LAT, DEEP_HALO_LAT, DEEP_CELLS) if deep else (HALO_LAT, 2, None)
    return Part(chain.run, channels, *cells, halo, fade, most, values[0] * size, chain if links else None, values[1] * size)


Way = tuple[Callable[[Tensor], Tensor], list[Link], Callable[[Tensor], Tensor]]
"""From a step's input to its first norm, from norm to norm, and to its result."""


def _shrink(vae: Vae) -> Way:
    links = []
    for level in vae.encoder.down_blocks[:-1]:
        links += _resnets(level.resnets, then=level.downsamplers)
    return vae.encoder.conv_in, links, _same


def _to_latent(vae: Vae) -> Way:
    encoder = vae.encoder
    links = [*_resnets(encoder.down_blocks[-1].resnets), *_middle(encoder.mid_block)]
    links.append(Link(encoder.conv_norm_out, lambda x, _: (encoder.conv_out(_silu(x)), None), opens=False))

    def end(x: Tensor) -> Tensor:
        moments = x if vae.quant_conv is None else vae.quant_conv(x)
        mode: Tensor = moments.chunk(2, dim=1)[0]
        return mode.float() * vae.scaling_factor

    return _same, links, end


def _from_latent(vae: Vae) -> Way:
    decoder = vae.decoder

    def begin(latent: Tensor) -> Tensor:
        x = latent / vae.scaling_factor
        x = x if vae.post_quant_conv is None else vae.post_quant_conv(x)
        return decoder.conv_in(x)  # type: ignore[no-any-return]

    return begin, [*_middle(decoder.mid_block), *_resnets(decoder.up_blocks[0].resnets)], _same


def _grow(vae: Vae) -> Way:
    decoder = vae.decoder
    links = []
    for level in decoder.up_blocks[1:]:
        links += _resnets(level.resnets, then=level.upsamplers)
    links.append(Link(decoder.conv_norm_out, lambda x, _: (decoder.conv_out(_silu(x)), None), opens=False))
    return lambda x: _after(decoder.up_blocks[0].upsamplers, x), links, Tensor.float


def _resnets(resnets: Any, then: Any = None) -> list[Link]:
    """Residual blocks, and the layers after the last of them."""
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
    return _after(layers, h), None


def _middle(block: Any) -> list[Link]:
    """The middle: two residual blocks, with attention between them."""
    links = _resnets(block.resnets[:1])
    for attention in block.attentions:
        links.append(Link(attention.group_norm, partial(_attend, attention), opens=True))
    return links + _resnets(block.resnets[1:])


def _attend(attention: Any, x: Tensor, kept: Tensor | None) -> tuple[Tensor, None]:
    """Attention of all cells to all cells, with its residual connection."""
    n, channels, height, width = x.shape
    tokens = x.permute(0, 2, 3, 1).reshape(n, height * width, channels)
    q, k, v = (linear(tokens)[:, None] for linear in (attention.to_q, attention.to_k, attention.to_v))
    h = attention.to_out[0](functional.scaled_dot_product_attention(q, k, v)[:, 0])
    return h.reshape(n, height, width, channels).permute(0, 3, 1, 2) + kept, None


def _after(layers: Any, x: Tensor) -> Tensor:
    for layer in layers or ():
        x = layer(x)
    return x


def _silu(x: Tensor) -> Tensor:
    return functional.silu(x, inplace=not torch.is_grad_enabled())


def _same(x: Tensor) -> Tensor:
    return x
