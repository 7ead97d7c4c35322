"""Pairs for training: random crops, what the degradation makes of them, and their order.

Everything of sample i is a function of (sources, recipe, seed, i): which worker, process or run draws it makes no difference.
"""

from __future__ import annotations

import signal
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from srcli.config.degradation import Degradation
from srcli.config.training import TrainConfig
from srcli.console import counted
from srcli.errors import ImageError, UsageError, joined_faults
from srcli.families import families
from srcli.images.codec import decode
from srcli.images.resize import resample_u8
from srcli.images.visible import visible_rgb_u8
from srcli.training.data.sources import Photo, Skipped, Source, unreadable
from srcli.training.degrade import engine
from srcli.training.degrade.draws import RAW, Draws, draw
from srcli.training.signals import ASKING

CACHE_BYTES = 1 << 30
_TRIES = 20
_BLOCK = 4096
"""Samples whose sources are drawn at once."""
_SHOWN_LEAST = 0.5
"""Share of a crop's pixels that are not fully transparent, where the photo allows it."""
Levels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pixels:
    """A photo as `upscale` sees it.

    Attributes:
        levels: (H, W, 3), uint8, RGB, upright; where nothing can be seen, the colour of the nearest pixel that can.
        shown: (H, W), bool: where anything can be seen; None where all can.
    """

    levels: Levels
    shown: npt.NDArray[np.bool_] | None = None

    @property
    def nbytes(self) -> int:
        return self.levels.nbytes + (0 if self.shown is None else self.shown.nbytes)

    def share_shown(self, top: int, left: int, side: int) -> float:
        """Of the pixels of a square window."""
        return 1.0 if self.shown is None else float(self.shown[top : top + side, left : left + side].mean())


@dataclass(frozen=True)
class CropSettings:
    """What a sample is besides its photo.

    Attributes:
        crop: side of the crop in output pixels, a multiple of `scale`.
        scale: output sides over input sides.
        seed: of all chance.
        how: the degradation.
        raw: LQ crops stay `scale` times smaller, instead of being enlarged.
        degrade_later: leave the degradation to `finish`, which does it for a batch on the device.
        prompts: the positive prompt of each photo by its path; "" for others.
        cache_bytes: decoded photos are kept up to this many bytes in each worker.
    """

    crop: int
    scale: int = 4
    seed: int = 0
    how: Degradation = field(default_factory=Degradation)
    raw: bool = False
    degrade_later: bool = False
    prompts: Mapping[Path, str] = field(default_factory=dict)
    cache_bytes: int = CACHE_BYTES

    @property
    def lq_side(self) -> int:
        """Of LQ crops, in pixels."""
        return self.crop // self.scale if self.raw else self.crop


@dataclass
class Sample:
    """One crop: hq (crop, crop, 3), uint8, RGB; lq the same, smaller if raw, or None where `draws` tell how it is to be made."""

    index: int
    hq: Levels
    lq: Levels | None
    draws: Draws | None
    prompt: str
    skipped: list[Skipped]


@dataclass
class Batch:
    """A batch ready for the networks.

    Attributes:
        lq: (N, 3, side, side), RGB, float32 in [-1, 1], on the device; the side is `CropSettings.lq_side`.
        hq: (N, 3, crop, crop), likewise.
        indices: of the samples; the seeds of what is drawn later for each.
        prompts: positive prompts.
        judged: the samples whose results the discriminator sees; None for all.
    """

    lq: Tensor
    hq: Tensor
    indices: list[int]
    prompts: list[str]
    judged: Sequence[bool] | None = None


class TrainingCrops(Dataset[Sample]):
    """Random crops of weighted sources: a source is drawn by its weight, its photos go round in shuffled laps."""

    def __init__(self, sources: Sequence[Source], settings: CropSettings) -> None:
        if settings.crop % settings.scale:
            raise UsageError(f"the crop `{settings.crop}` is not a multiple of the scale `{settings.scale}`")
        self.sources = list(sources)
        self.settings = settings
        weights = np.array([source.weight for source in sources], dtype=np.float64)
        self._turns = _Turns(weights / weights.sum(), settings.seed)
        self._cache: OrderedDict[Path, Pixels] = OrderedDict()
        self._cached_bytes = 0

    def __getitem__(self, index: int) -> Sample:
        settings = self.settings
        rng = np.random.default_rng([settings.seed, 1, index])
        source, turn = self._turns.of(index)
        photo, full, partner, skipped = self._readable(self.sources[source], turn)
        if not full.levels.size:
            return Sample(index, full.levels, None, None, "", skipped)
        hq, lq = random_crop(full, partner, settings.crop, settings.scale, rng)
        draws = None
        if lq is not None:
            lq = enlarged(lq, settings.lq_side)
        elif settings.degrade_later:
            draws = draw_for(settings, rng)
        else:
            lq = degraded(hq, draw_for(settings, rng))
        return Sample(index, hq, lq, draws, settings.prompts.get(photo.hq, ""), skipped)

    def _readable(self, source: Source, turn: int) -> tuple[Photo, Pixels, Pixels | None, list[Skipped]]:
        """The photo of a source at its `turn`, counted from 0, or the next one of its lap that can be read."""
        lap, place = divmod(turn, len(source.photos))
        order = np.random.default_rng([self.settings.seed, 0, lap]).permutation(len(source.photos))
        skipped: list[Skipped] = []
        for attempt in range(min(_TRIES, len(order))):
            photo = source.photos[order[(place + attempt) % len(order)]]
            try:
                return photo, self._pixels(photo.hq), self._pixels(photo.lq) if photo.lq else None, skipped
            except ImageError as error:
                skipped.append(unreadable(photo.hq, error))
        return photo, Pixels(np.zeros((0, 0, 3), np.uint8)), None, skipped

    def _pixels(self, path: Path) -> Pixels:
        if path in self._cache:
            self._cache.move_to_end(path)
            return self._cache[path]
        pixels = read_photo(path)
        self._cache[path] = pixels
        self._cached_bytes += pixels.nbytes
        while self._cached_bytes > self.settings.cache_bytes and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return pixels


class _Turns:
    """Which source each sample comes from, and how many samples before it came from there.

    Args:
        shares: the sources' probabilities.
        seed: of the draws, which are made block by block: a run that goes on late need not repeat all of them one by one.
    """

    def __init__(self, shares: npt.NDArray[np.float64], seed: int) -> None:
        self._shares, self._seed = shares, seed
        self._before = [np.zeros(len(shares), np.int64)]
        """How often each source was drawn before each block."""
        self._last: tuple[int, npt.NDArray[np.int64]] | None = None

    def of(self, index: int) -> tuple[int, int]:
        """The source of sample `index`, and its turn, counted from 0."""
        if len(self._shares) == 1:
            return 0, index
        block, place = divmod(index, _BLOCK)
        while len(self._before) <= block:
            counts = np.bincount(self._drawn(len(self._before) - 1), minlength=len(self._shares))
            self._before.append(self._before[-1] + counts)
        drawn = self._drawn(block)
        source = int(drawn[place])
        return source, int(self._before[block][source]) + int(np.count_nonzero(drawn[:place] == source))

    def _drawn(self, block: int) -> npt.NDArray[np.int64]:
        if self._last is None or self._last[0] != block:
            rng = np.random.default_rng([self._seed, 5, block])
            self._last = block, rng.choice(len(self._shares), _BLOCK, p=self._shares)
        return self._last[1]


class StepOrder(Sampler[list[int]]):
    """Which samples each batch holds: batch m of process p has samples (m·P + p)·N … (m·P + p)·N + N - 1.

    So the samples of a step do not depend on how they are split over processes and accumulated batches.

    Args:
        first, last: the batches to draw, counted for each process.
        batch: samples of a batch, N.
        process, processes: p and P.
    """

    def __init__(self, first: int, last: int, batch: int, process: int = 0, processes: int = 1) -> None:
        self._batches = range(first, last)
        self._batch, self._process, self._processes = batch, process, processes

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        for number in self._batches:
            start = (number * self._processes + self._process) * self._batch
            yield list(range(start, start + self._batch))


class _Loader(DataLoader[Sample]):
    def check_worker_number_rationality(self) -> None:
        """No warning: more workers than cores are the user's choice."""


def make_loader(data: TrainingCrops, order: StepOrder, workers: int, *, pinned: bool) -> DataLoader[Sample]:
    """Batches as lists of samples, prepared by `workers` processes (0: in between)."""
    return _Loader(
        data,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=list,
        pin_memory=pinned and workers > 0,
        worker_init_fn=_ignore_signals,
        prefetch_factor=4 if workers else None,
    )


def finish(samples: Sequence[Sample], device: torch.device) -> Batch:
    """Move samples to the device and degrade there what was left to be degraded.

    Raises:
        UsageError: a sample has no photo because too many in a row could not be read.
    """
    for sample in samples:
        if not sample.hq.size:
            faults = [f"`{each.path}` {each.reason}" for each in sample.skipped]
            title = f"{counted(len(faults), 'photo')} in a row cannot be read:"
            raise UsageError(joined_faults(title, faults), "take them out of `--data`, or put good ones in their place")
    hq = _on_device([sample.hq for sample in samples], device)
    found: dict[int, Tensor] = {}
    ready = [i for i, sample in enumerate(samples) if sample.lq is not None]
    if ready:
        found.update(
            zip(ready, _on_device([level for sample in samples if (level := sample.lq) is not None], device), strict=True)
        )
    rest = {i: sample.draws for i, sample in enumerate(samples) if sample.draws is not None}
    if rest:
        with ThreadPoolExecutor() as pool:  # a photo waits for the device and the codec several times
            found.update(zip(rest, pool.map(_degraded, [hq[i] for i in rest], rest.values()), strict=True))
    lq = torch.stack([found[i] for i in range(len(samples))])
    prompts = [sample.prompt for sample in samples]
    return Batch(lq * 2 - 1, hq * 2 - 1, [sample.index for sample in samples], prompts)


def crop_settings(config: TrainConfig, prompts: Mapping[Path, str] | None = None) -> CropSettings:
    """Those of a run, whose photos have these positive prompts."""
    recipe, raw = config.recipe, families()[config.family].raw_input
    return CropSettings(recipe.crop, config.scale, config.seed, recipe.degradation, raw, prompts=prompts or {})


def random_crop(hq: Pixels, lq: Pixels | None, crop: int, scale: int, rng: np.random.Generator) -> tuple[Levels, Levels | None]:
    """The same random window of a photo and of its LQ partner (of its size, or `scale` times smaller), flipped half the time.

    Half of it at least can be seen, if that is easily found; something always.
    """
    ratio = 1 if lq is None or lq.levels.shape == hq.levels.shape else scale
    top, left = _place(hq, lq, crop, ratio, rng)
    flip = bool(rng.random() < 0.5)
    window = _window(hq.levels, top * ratio, left * ratio, crop, flip)
    return window, None if lq is None else _window(lq.levels, top, left, crop // ratio, flip)


def _place(hq: Pixels, lq: Pixels | None, crop: int, ratio: int, rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of a window in cells of `ratio` pixels: of the places tried, the first that is shown enough, or the best."""
    height, width = hq.levels.shape[:2]
    last = ((height - crop) // ratio, (width - crop) // ratio)
    best, most = (0, 0), 0.0
    for _ in range(_TRIES):
        top, left = int(rng.integers(last[0] + 1)), int(rng.integers(last[1] + 1))
        shown = min(hq.share_shown(top * ratio, left * ratio, crop), lq.share_shown(top, left, crop // ratio) if lq else 1.0)
        if shown >= _SHOWN_LEAST:
            return top, left
        if shown > most:
            best, most = (top, left), shown
    if most or hq.shown is None:
        return best
    y, x = divmod(int(rng.choice(np.flatnonzero(hq.shown))), width)  # around a pixel that can be seen
    half = crop // ratio // 2
    return min(max(y // ratio - half, 0), last[0]), min(max(x // ratio - half, 0), last[1])


def draw_for(settings: CropSettings, rng: np.random.Generator) -> Draws:
    """What happens to one crop."""
    draws = draw(rng, (settings.crop, settings.crop), settings.scale, settings.how)
    return replace(draws, back_mode=RAW) if settings.raw else draws


def degraded(hq: Levels, draws: Draws) -> Levels:
    """(H, W, 3), uint8, RGB, to its LQ picture, enlarged as it was drawn; the same in any process and number of threads."""
    return engine.to_levels(_degraded(engine.from_levels(hq), draws))


def enlarged(lq: Levels, side: int) -> Levels:
    """A crop of (H, W, 3), uint8, RGB, brought to a side as an input at inference; as it is where it has that."""
    return lq if lq.shape[0] == side else resample_u8(lq, (side, side))


def read_photo(path: Path) -> Pixels:
    """A photo as `upscale` sees it, in 8 bits.

    Raises:
        ImageError: it cannot be read, or nothing of it can be seen.
    """
    picture = decode(path)
    alpha = picture.alpha_levels
    shown = None if alpha is None or alpha.all() else alpha[..., 0] > 0
    if shown is not None and not shown.any():
        raise ImageError(f"`{path}` is fully transparent", "leave it out")
    return Pixels(visible_rgb_u8(picture), shown)


def to_levels(picture: Tensor) -> Levels:
    """(3, H, W) float in [-1, 1], clamped and rounded, to (H, W, 3) uint8."""
    levels = ((picture.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    result: Levels = levels.permute(1, 2, 0).cpu().numpy()
    return result


def _window(levels: Levels, top: int, left: int, side: int, flip: bool) -> Levels:
    window = levels[top : top + side, left : left + side]
    return np.ascontiguousarray(window[:, ::-1] if flip else window)


def _degraded(hq: Tensor, draws: Draws) -> Tensor:
    return engine.resize_back(engine.degrade(hq, draws), draws.hq_size, draws.back_mode)


def _on_device(levels: Sequence[Levels], device: torch.device) -> Tensor:
    """(N, 3, H, W), float32 in [0, 1]; goes over as bytes."""
    stacked = torch.from_numpy(np.stack(levels)).to(device, non_blocking=True)
    return stacked.permute(0, 3, 1, 2).float() / 255


def _ignore_signals(_: int) -> None:
    """A scheduler signals all processes of a job; the workers must live until the main process has saved."""
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
