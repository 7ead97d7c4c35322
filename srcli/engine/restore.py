"""From prepared pictures to restored ones: tiles of several pictures in common batches, half precision watched, memory minded.

Knows the `Restorer` protocol and nothing of any method.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional

from srcli.engine.blend import Blend
from srcli.engine.margin import mirrored
from srcli.engine.parents import Parents
from srcli.engine.parts import Plane, Room, cells_of, cut, run_part
from srcli.engine.tiles import Grid, Tile, make_grid
from srcli.errors import ImageError, OutOfMemoryError, UsageError
from srcli.memory import free_bytes, host_limit_hint, is_out_of_memory
from srcli.protocol.restoring import FADE_CELLS, Mixture, Part, Picture, Restorer, Settings

log = logging.getLogger("srcli")

Result = TypeVar("Result")

MAX_BATCH = 16
MIN_TILE_LAT = 16
ENOUGH_SEEN = 0.75
"""Of the overlap that a network asks for: x4plus is 61 dB from the whole with 0.71 of it, 57 dB with 0.62."""
MEMORY_SHARE = 0.5
"""Of the free memory, what a batch of tiles may take."""
PART_PIXELS = 1 << 21
"""Of a picture or tile that an autoencoder computes at once, where memory allows; else half as many, and so on."""
MIN_PART_PIXELS = 1 << 16
HELD_SHARE = 0.25
"""Of the free memory, what tiles of an autoencoder may take that go side by side; rounded down to a power of two."""
HELD_BYTES_CPU = 4 << 30
"""The most of it on a CPU, whose memory is everybody's."""


@dataclass(frozen=True)
class Limits:
    """What a batch may hold; shrinks when memory runs out."""

    tile_lat: int
    overlap_lat: int
    batch: int
    part_bytes: int | None
    """Working memory of an autoencoder's step; None for any."""
    least_part_bytes: int = 0
    """Where `part_bytes` cannot shrink further."""
    held_bytes: int = 0
    """For tiles of the autoencoder that go side by side."""
    tiling: str = "fixed"
    """As of `Restorer`."""

    @property
    def context_lat(self) -> int:
        """Cells at the edges of tiles that these only look at."""
        return max(0, self.overlap_lat - FADE_CELLS) // 2 if self.tiling in ("context", "whole") else 0

    def grid(self, height: int, width: int) -> Grid:
        """The UNet's tiles of a latent of so many cells."""
        return make_grid(height, width, self.tile_lat, self.overlap_lat, even=self.tiling != "fixed")

    def smaller(self) -> Limits | None:
        """Half the batch; at batch 1, half the tile and half the room of the autoencoder; None where nothing can shrink."""
        if self.batch > 1:
            return replace(self, batch=self.batch // 2)
        part_bytes = self.part_bytes and max(self.least_part_bytes, self.part_bytes // 2)
        if self.tile_lat <= MIN_TILE_LAT and part_bytes == self.part_bytes:
            return None
        tile_lat = max(min(MIN_TILE_LAT, self.tile_lat), self.tile_lat // 2)
        overlap_lat = min(self.overlap_lat, tile_lat // 3)
        return replace(
            self, tile_lat=tile_lat, overlap_lat=overlap_lat, batch=1, part_bytes=part_bytes, held_bytes=self.held_bytes // 2
        )


@dataclass
class Repairs:
    """What had to be done again."""

    exact_tiles: int = 0
    """Tiles that half precision spoilt and float32 redid."""
    memory_retries: int = 0
    """Times memory ran out and the pictures were done again with smaller tiles or batches."""


def choose_limits(restorer: Restorer, tile: int | None, overlap: int | None, batch: int | None) -> Limits:
    """Tile, overlap (both in output pixels) and batch; what is None is chosen from the model and the free memory."""
    factor = restorer.factor
    budget = MEMORY_SHARE * free_bytes(restorer.device)
    tile_lat = max(1, (tile or restorer.tile) // factor)
    if tile is None:
        while tile_lat > MIN_TILE_LAT and tile_lat**2 * restorer.cell_bytes > budget:
            tile_lat //= 2
    wanted = restorer.overlap if overlap is None else overlap
    overlap_lat = wanted // factor
    if overlap is None:
        room = min(overlap_lat, tile_lat // 3)
        if room < ENOUGH_SEEN * overlap_lat and restorer.tiling == "context":
            seen = f"tiles of {tile_lat * factor} px are small for `{restorer.name}`, whose tiles should overlap by {wanted} px"
            shrunk = tile is None and tile_lat < restorer.tile // factor
            why = "as memory has no room for larger ones" if shrunk else f"unless `--tile` is {3 * wanted} or more"
            log.warning("%s: seams may show, %s", seen, why)
        overlap_lat = room
    elif overlap_lat >= tile_lat:
        raise UsageError(f"the overlap {overlap} is not below the tile {tile_lat * factor}", "give a smaller `--overlap`")
    if batch is None:
        fits = int(budget // (tile_lat**2 * restorer.cell_bytes))
        # a CPU is busy with one tile; powers of two keep the choice, and so the rounding, the same from run to run
        largest = 1 if restorer.device.type == "cpu" else MAX_BATCH
        batch = 1 << (max(1, min(largest, fits)).bit_length() - 1)
    return Limits(tile_lat, overlap_lat, batch, *_part_bytes(restorer, budget), tiling=restorer.tiling)


def _part_bytes(restorer: Restorer, budget: float) -> tuple[int, int, int]:
    """The room of the autoencoder: for as many pixels as fit in halves of `PART_PIXELS`; the least; and for tiles that wait."""
    per_pixel = max(part.cell_bytes for part in (*restorer.encoder(), *restorer.decoder)) / restorer.factor**2
    pixels = PART_PIXELS
    while pixels > MIN_PART_PIXELS and pixels * per_pixel > budget:
        pixels //= 2
    held = 1 << (max(1, int(budget * HELD_SHARE / MEMORY_SHARE)).bit_length() - 1)
    if restorer.device.type == "cpu":
        held = min(held, HELD_BYTES_CPU)
    return int(pixels * per_pixel), int(MIN_PART_PIXELS * per_pixel), held


@dataclass
class Engine:
    """Restores pictures with one restorer; remembers how far memory went.

    Args:
        restorer: the model.
        limits: where to begin; `self.limits` shrinks when memory runs out and stays so.
        settings: of the model's dials, but for those that are found for each picture.
        repairs: where to count them.
        parents: those of the restorer, if it has any.
        painted: the dials that pictures' maps lead from 0 to their values.
    """

    restorer: Restorer
    limits: Limits
    settings: Settings = field(default_factory=dict)
    repairs: Repairs = field(default_factory=Repairs)
    parents: Parents | None = None
    painted: tuple[str, ...] = ()
    _told_of_tiles: bool = False

    @property
    def takes_turns(self) -> bool:
        """Whether it is best given many pictures at once, since its models are loaded anew for each call."""
        return self.parents is not None and not self.parents.together

    def worked_pixels(self, height: int, width: int) -> int:
        """Pixels of all tiles of a picture of that many output pixels: overlaps count as often as they are computed."""
        grid = self._grid(height, width)
        return len(grid.tiles) * grid.height * grid.width * self.restorer.factor**2

    def tile_count(self, height: int, width: int) -> int:
        """Tiles of a picture of that many output pixels."""
        return len(self._grid(height, width).tiles)

    def _grid(self, height: int, width: int) -> Grid:
        factor = self.restorer.factor
        return self._grid_lat(-(-height // factor), -(-width // factor))

    def _grid_lat(self, height: int, width: int) -> Grid:
        """Tiles of a latent of so many cells, and of what passes see beyond its edges."""
        return self.limits.grid(height + 2 * self._margin_lat, width + 2 * self._margin_lat)

    @property
    def _margin_lat(self) -> int:
        return -(-self.restorer.margin // self.restorer.factor)

    @torch.inference_mode()
    def mix(self, pictures: Sequence[Plane]) -> list[Mixture]:
        """What the settings need for each picture, and what was found for it.

        Args:
            pictures: a `Picture` each; a tensor too where the model looks for nothing in it.

        Raises:
            OutOfMemoryError: not enough memory to look at them.
        """
        return self._with_less_memory(lambda: [self._mixture(each) for each in pictures], pictures)

    def _mixture(self, picture: Plane, settings: Settings | None = None) -> Mixture:
        """At the engine's settings, or at others; with the weights where the picture's map is black."""
        settings = self.settings if settings is None else settings
        mix = partial(self.restorer.mix, picture=cast(Picture, picture))
        if map_of(picture) is None:
            return mix(settings)
        return replace(mix(settings), black=mix({**settings, **dict.fromkeys(self.painted, 0.0)}).weights)

    @torch.inference_mode()
    def restore(self, pictures: Sequence[Plane], mixtures: Sequence[Mixture] | None = None) -> list[Tensor]:
        """Restore pictures.

        Args:
            pictures: each a `Picture` at output size, or (3, H, W), RGB, float32 in [-1, 1], enlarged as the model's encoder
                wants it and then of output size; any sides from 1 pixel, sizes may differ.
            mixtures: of `mix`, if they are known.

        Returns:
            as many tensors (3, H, W), RGB, float32, clamped to [-1, 1], on the CPU.

        Raises:
            OutOfMemoryError: not even the smallest tile fits.
            ImageError: the network gives NaN in float32 too.
        """
        known = self.mix(pictures) if mixtures is None else mixtures
        return self._with_less_memory(lambda: self._restore(pictures, known), pictures)

    def _with_less_memory(self, work: Callable[[], Result], pictures: Sequence[Plane]) -> Result:
        """`work()`, again with smaller limits for as long as memory runs out; `pictures` are named where nothing fits."""
        while True:
            try:
                return work()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                smaller = self._smaller(error, pictures)
            self._shrink(smaller)

    def _smaller(self, error: Exception, pictures: Sequence[Plane]) -> Limits:
        """What to try after memory ran out.

        Raises:
            OutOfMemoryError: nothing.
        """
        smaller = self.limits.smaller()
        if smaller is None:
            sizes = ", ".join(f"{width}x{height}" for height, width in map(size_of, pictures))
            kind = self.restorer.device.type
            elsewhere = "" if kind == "cpu" else "`--device cpu`, "
            ways = f"use {elsewhere}a smaller `--scale`, or close other programs that use this memory"
            hint = host_limit_hint(kind) + ways
            raise OutOfMemoryError(f"not enough memory for an output of {sizes} pixels", hint) from error
        return smaller

    def _shrink(self, smaller: Limits) -> None:
        before, self.limits = self.limits, smaller
        self.repairs.memory_retries += 1
        way = f"tile {smaller.tile_lat * self.restorer.factor} and batch {smaller.batch}"
        same = (before.tile_lat, before.batch) == (smaller.tile_lat, smaller.batch)
        log.warning("out of memory: going on with %s", "smaller parts in the autoencoder" if same else way)
        gc.collect()
        if self.restorer.device.type == "cuda":
            torch.cuda.empty_cache()

    def _restore(self, pictures: Sequence[Plane], mixtures: Sequence[Mixture]) -> list[Tensor]:
        latents = self._latents(pictures, mixtures)  # which nothing else may hold
        predictions = self._predict(pictures, mixtures, latents)
        restored = []
        while latents:  # each is let go of when it is used
            restored.append(self.restorer.apply(latents.pop(0), predictions.pop(0)))
        return self._decode(restored, pictures)

    def _latents(self, pictures: Sequence[Plane], mixtures: Sequence[Mixture]) -> list[Tensor]:
        latents: list[Tensor] = [torch.empty(0)] * len(pictures)
        for encoding in dict.fromkeys(mixture.encoding for mixture in mixtures):
            alike = [index for index, mixture in enumerate(mixtures) if mixture.encoding == encoding]
            encoded = self._encode([pictures[index] for index in alike], self.restorer.encoder(encoding))
            for index, latent in zip(alike, encoded, strict=True):
                latents[index] = latent
        return latents

    def _encode(self, pictures: Sequence[Plane], parts: Sequence[Part]) -> list[Tensor]:
        """Latents, float32; (channels, h, w) each."""
        net = self.restorer
        cell = net.factor * net.input_scale // net.native_scale
        planes = [pad_to_multiple(each, cell) if isinstance(each, Tensor) else each.at(net.input_scale) for each in pictures]
        return self._through(parts, planes, "encode")

    def _decode(self, restored: Sequence[Tensor], pictures: Sequence[Plane]) -> list[Tensor]:
        """Decoded and cut to the sizes of `pictures`."""
        decoded = self._through(self.restorer.decoder, restored, "decode")
        sizes = map(size_of, pictures)
        return [sr[:, :height, :width].cpu().clamp_(-1, 1) for sr, (height, width) in zip(decoded, sizes, strict=True)]

    def _through(self, parts: Sequence[Part], planes: Sequence[Plane], step: str) -> list[Tensor]:
        room = Room(self.restorer.device, self.limits.batch, self.limits.part_bytes, self.limits.held_bytes)
        for part in parts:
            planes = run_part(part, planes, room, lambda run, batch: self._call(run, batch, step))
        return [plane for plane in planes if isinstance(plane, Tensor)]

    def _predict(self, pictures: Sequence[Plane], mixtures: Sequence[Mixture], latents: Sequence[Tensor]) -> list[Tensor]:
        """The weighted sums of the passes' answers, in float32: for each pass all tiles, so that its weights stay at hand."""
        sums = [Sum(mixture, self._painted(picture)) for mixture, picture in zip(mixtures, pictures, strict=True)]
        for key in dict.fromkeys(key for mixture in mixtures for key in mixture.passes):
            users = [index for index, mixture in enumerate(mixtures) if key in mixture.passes]
            answers = self._answers(key, [pictures[index] for index in users], [latents[index] for index in users])
            for index in users:
                sums[index].add(key, answers.pop(0), keep=False)
        return [each.of(self._nothing, latent) for each, latent in zip(sums, latents, strict=True)]

    def _answers(self, key: Hashable, pictures: Sequence[Plane], latents: Sequence[Tensor]) -> list[Tensor]:
        """One pass's answers to whole pictures, or their latents."""
        if self.parents is not None and key in self.parents:
            return self.parents.answers(key, [cast(Picture, picture) for picture in pictures])
        return self._pass(key, latents)

    def _painted(self, picture: Plane) -> Tensor | None:
        """A picture's map, laid as answers are: in [0, 1], (1, h, w) or (answer_channels, h, w)."""
        painted = map_of(picture)
        return None if painted is None else self._painted_tile(painted, Tile(0, 0, *cells_of(picture, self.restorer.factor)))

    def _painted_tile(self, painted: Picture, tile: Tile) -> Tensor:
        """A tile of cells of a map."""
        factor = self.restorer.factor
        top, left, height, width = (factor * side for side in (tile.top, tile.left, tile.height, tile.width))
        plane = torch.from_numpy(painted.crop(top, left, height, width)[..., :1]).permute(2, 0, 1)
        if self.restorer.answers_pixels:
            return functional.pixel_unshuffle(plane, factor).repeat(3, 1, 1)
        return functional.avg_pool2d(plane, factor)

    def _nothing(self, latent: Tensor) -> Tensor:
        """The prediction without any pass."""
        return latent.new_zeros(self.restorer.answer_channels, *latent.shape[1:])

    def _pass(self, key: Hashable, latents: Sequence[Tensor]) -> list[Tensor]:
        """One pass's answers to whole latents, tiles blended; on the device where there is but one tile."""
        grids = [self._grid_lat(*latent.shape[1:]) for latent in latents]
        self._tell_of_tiles(grids)
        channels, context, margin = self.restorer.answer_channels, self.limits.context_lat, self._margin_lat
        sizes = [(latent.shape[1] + 2 * margin, latent.shape[2] + 2 * margin) for latent in latents]
        blends = [Blend(grid, channels, *size, context) for grid, size in zip(grids, sizes, strict=True)]
        jobs = [(index, tile) for index, grid in enumerate(grids) for tile in grid.tiles]
        run = partial(self.restorer.predict_pass, key)
        for batch in _batches(jobs, self.limits.batch):
            cells = [self._seen(partial(cut, latents[i], cell=1), latents[i].shape[1:], tile) for i, tile in batch]
            results = self._call(run, torch.stack(cells).to(self.restorer.device), "predict")
            for (index, tile), result in zip(batch, results, strict=True):
                blends[index].add(tile, result)
        inside = [(slice(margin, height - margin), slice(margin, width - margin)) for height, width in sizes]
        return [blend.plane[:, rows, columns] for blend, (rows, columns) in zip(blends, inside, strict=True)]

    def _seen(self, crop: Callable[[Tile], Tensor], size: Sequence[int], tile: Tile) -> Tensor:
        """What passes are given of a latent of (h, w) cells that `crop` cuts tiles from: a tile of `_grid_lat`."""
        return mirrored(crop, (size[0], size[1]), tile, self._margin_lat, self.restorer.patch)

    def _tell_of_tiles(self, grids: Sequence[Grid]) -> None:
        if self.limits.tiling == "whole" and any(len(grid.tiles) > 1 for grid in grids) and not self._told_of_tiles:
            self._told_of_tiles = True
            log.warning("`%s` should see whole pictures, and goes over some in tiles for want of memory", self.restorer.name)

    def _call(self, call: Callable[..., Tensor], batch: Tensor, step: str) -> Tensor:
        """`call(batch)`, with the tiles that half precision spoilt done again in float32."""
        result = call(batch)
        if self.restorer.dtype != torch.float32:
            result = self._redo_spoilt(call, batch, result, step)
        if not torch.isfinite(result).all():
            hint = "the weights do not fit this model; verify them with `srcli models show`"
            raise ImageError(f"the network's result is not a number (`{step}`)", hint)
        return result

    def _redo_spoilt(self, call: Callable[..., Tensor], batch: Tensor, result: Tensor, step: str) -> Tensor:
        for i in range(len(batch)):
            finite = bool(torch.isfinite(result[i]).all())
            if finite and not (step == "decode" and len(result[i]) == 3 and _is_black(result[i])):
                continue
            exact = call(batch[i : i + 1], exact=True)[0]
            if finite and _is_black(exact):
                continue  # black indeed
            result[i] = exact
            self.repairs.exact_tiles += 1
        return result


class Sum:
    """A picture's prediction while it is summed up.

    Args:
        mixture: its passes and their weights.
        painted: its map, laid as answers are; None where it has none.
        total: of passes that are summed up already, if any; it is written into.
    """

    def __init__(self, mixture: Mixture, painted: Tensor | None, total: Tensor | None = None) -> None:
        self._mixture, self._painted = mixture, painted
        self._total = total

    def add(self, key: Hashable, answer: Tensor, *, keep: bool) -> None:
        """A pass's answer, (answer_channels, h, w), by its weight: where there is a map, by that between its black and white.

        Unless it is to be kept as it is, the first one becomes the sum.
        """
        white, black = self._mixture.weights.get(key, 0.0), (self._mixture.black or {}).get(key, 0.0)
        weight: float | Tensor = white
        if self._painted is not None:
            weight = self._painted.to(answer.device) * (white - black) + black
        if self._total is None:
            shared = 0 in answer.stride()  # an expanded answer has its values once for several places
            self._total = answer * weight if keep or shared else answer.mul_(weight)
        elif isinstance(weight, Tensor):
            self._total.addcmul_(answer.to(self._total.device), weight.to(self._total.device))
        else:
            self._total.add_(answer.to(self._total.device), alpha=weight)

    def of(self, nothing: Callable[[Tensor], Tensor], latent: Tensor) -> Tensor:
        """The prediction for a latent, where its device is: a tensor of its own, which may be written into."""
        return nothing(latent) if self._total is None else self._total.to(latent.device)


def map_of(picture: Plane) -> Picture | None:
    """Its map, if it has one."""
    return None if isinstance(picture, Tensor) else picture.map


def size_of(picture: Plane) -> tuple[int, int]:
    """(height, width)."""
    return cells_of(picture, 1)


def pad_to_multiple(picture: Tensor, multiple: int) -> Tensor:
    """(3, H, W) with the last row and column repeated to multiples of `multiple`."""
    bottom, right = -picture.shape[1] % multiple, -picture.shape[2] % multiple
    if not (bottom or right):
        return picture
    return functional.pad(picture[None], (0, right, 0, bottom), mode="replicate")[0]


def _is_black(picture: Tensor) -> bool:
    return bool((picture <= -1 + 1 / 255).all())


def _batches(jobs: list[tuple[int, Tile]], size: int) -> Iterator[list[tuple[int, Tile]]]:
    """Jobs of equal shape, `size` at a time; the order depends on the jobs alone."""
    ordered = sorted(jobs, key=lambda job: (job[1].height, job[1].width))
    for _, same in groupby(ordered, key=lambda job: (job[1].height, job[1].width)):
        members = list(same)
        for start in range(0, len(members), size):
            yield members[start : start + size]
