"""The composition behind `srcli sweep`: photos and settings in; views, images and records out, cell by cell."""

from __future__ import annotations

import gc
import itertools
import logging
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from srcli.config.sweep import SweepConfig
from srcli.engine.framing import enlarge_plainly, finish, prepare_canvas
from srcli.engine.mix import MixingEngine
from srcli.engine.stream import failure
from srcli.errors import ImageError, ModelError
from srcli.evaluation.measure import Failure
from srcli.evaluation.metrics import Opened, open_metrics
from srcli.evaluation.reading import Reader
from srcli.images.canvas import Canvas
from srcli.images.codec import Picture, decode, encode
from srcli.images.files import Job, is_done
from srcli.opening import choose_model, complete, open_engine, ready_device, scale_of
from srcli.protocol import Settings
from srcli.rows.spec import ModelSpec
from srcli.sweep.grid import Axis, Cell, Grid, adapter_axis, dial_axes, model_axis
from srcli.sweep.inputs import Photo, digest, find_photos
from srcli.sweep.made_with import made_with
from srcli.sweep.records import Record, Records
from srcli.sweep.sheets import write_sheets
from srcli.sweep.views import HQ, LQ, Views

log = logging.getLogger("srcli")


@dataclass(frozen=True)
class Done:
    """One cell of one photo is finished, now or by an earlier run."""

    photo: Photo
    cell: Cell
    record: Record
    skipped: bool


@dataclass(frozen=True)
class _Loaded:
    """A photo in memory."""

    photo: Photo
    digests: tuple[str, str]
    """Of the files of input and reference."""
    picture: Picture
    canvas: Canvas
    hq_u8: npt.NDArray[np.uint8] | None


class Sweep:
    """A sweep that is ready to run; memory does not grow with cells, nor with photos but for their records.

    Args:
        config: the settings.
        photos: to sweep.
        failures: of inputs that cannot be swept; those of the run are added.
        opened: the metrics.
        dtype: of the networks.
        variants: of `find_variants`.

    Raises:
        UsageError: the output folder cannot be written, or is of another sweep.
        ModelError: a base is not there.
    """

    def __init__(
        self,
        config: SweepConfig,
        photos: Sequence[Photo],
        failures: list[Failure],
        opened: Opened,
        dtype: torch.dtype,
        variants: Sequence[ModelSpec],
    ) -> None:
        self.config, self.photos, self.failures, self.opened = config, photos, failures, opened
        self._dtype = dtype
        self._variants = variants
        self._engine: tuple[int, MixingEngine] | None = None
        self.grid = Grid(_axes(config, variants))
        self.views = Views(config.output, config.crops)
        self.records = Records(config.output, anew=config.overwrite)
        self._made_with = [self._use(number) for number in range(len(self._variants))]

    @property
    def complete(self) -> list[Photo]:
        """The photos without a fault: after `run`, all their cells are done."""
        failed = {each.path for each in self.failures}
        return [photo for photo in self.photos if photo.source not in failed]

    def image_path(self, photo: Photo, cell: Cell) -> Path:
        """Where the full image of a cell goes: a folder for each cell, as `srcli eval` takes them."""
        return self.config.output / "images" / cell.key / photo.relative

    def record(self, photo: Photo, cell: Cell) -> Record:
        """Of a finished cell."""
        record = self.records.get(photo.name, cell.key)
        assert record is not None
        return record

    def run(self) -> Generator[Done, None, None]:
        """Yield each cell of each photo as soon as its files are written; a photo's fault is added to `failures`.

        Models and adapters come one after the other, photos inside them, so that each is loaded once.
        """
        for variant in range(len(self._variants)):
            for photo in self.complete:
                try:
                    yield from self._photo(photo, variant)
                    if variant == len(self._variants) - 1:
                        self._write_sheets(photo)
                except ModelError:
                    raise  # of what is loaded only now: not this photo's fault
                except Exception as error:
                    told = failure(Job(photo.source, self.config.output), error)
                    self.failures.append(Failure(photo.source, told.reason, told.hint))

    # --- one photo ---

    def _photo(self, photo: Photo, variant: int) -> Iterator[Done]:
        digests = digest(photo.source), digest(photo.hq) if photo.hq else ""
        todo, changed = [], False
        for cell in self.grid.cells:
            if cell.variant != variant:
                continue
            record = self.records.get(photo.name, cell.key)
            fresh = record is not None and (record.made_with, record.input, record.hq) == (self._made_with[variant], *digests)
            if record is not None and fresh and self._is_there(photo, cell, record):
                yield Done(photo, cell, record, skipped=True)
            else:
                todo.append(cell)
                changed = changed or (record is not None and record.other_files(*digests))
        if changed:
            log.info("`%s` or its reference has changed since: its cells are made again", photo.source)
        if todo:
            yield from self._restore(self._read(photo, digests, variant), variant, todo)

    def _is_there(self, photo: Photo, cell: Cell, record: Record) -> bool:
        """Whether the record has all metrics and the files of the cell exist."""
        keys = [cell.key, LQ, HQ] if photo.hq is not None else [cell.key, LQ]
        measured = all(metric.info.name in record.metrics for metric in self.opened.metrics)
        cut = {crop.text for crop in self.config.crops} <= set(record.crops)
        shown = cut and all(self.views.are_there(photo.name, key) for key in keys)
        return measured and shown and (not self.config.save_images or self._is_kept(photo, cell, record))

    def _is_kept(self, photo: Photo, cell: Cell, record: Record) -> bool:
        """Whether the full image is this result's, in this format and quality."""
        path = self.image_path(photo, cell)
        same = (record.image, record.quality) == (self._recorded(path), self.config.quality)
        return same and is_done(path)

    def _recorded(self, image: Path) -> str:
        return image.relative_to(self.config.output).as_posix()

    def _read(self, photo: Photo, digests: tuple[str, str], variant: int) -> _Loaded:
        """Decode a photo and its reference, and write their views."""
        picture = decode(photo.source)
        if self.opened.metrics and not picture.opaque:
            message = f"`{photo.source}` is transparent in places, and no metric says what is behind it"
            raise ImageError(message, "sweep it without `--hq` and `--metrics`, or lay it on one colour first")
        net = self._engine_of(variant).restorer
        canvas = prepare_canvas(picture, net.native_scale, net.min_side, net.enlargement)
        self.views.write(enlarge_plainly(picture, canvas, photo.output_size), photo.name, LQ)
        hq_u8 = None
        if photo.hq is not None:
            self.views.write(decode(photo.hq), photo.name, HQ)
            hq_u8 = Reader().read(photo.hq) if self.opened.metrics else None
        return _Loaded(photo, digests, picture, canvas, hq_u8)

    def _restore(self, loaded: _Loaded, variant: int, cells: Sequence[Cell]) -> Iterator[Done]:
        """One encoding and each pass once, then a decoding for each cell; nothing of a cell stays in memory."""
        start = time.perf_counter()
        settings = [cell.settings for cell in cells]
        color_fix = self.config.color_fix or self._variants[variant].color_fix
        for index, sr in self._engine_of(variant).restore_all(loaded.canvas, settings):
            picture = finish(loaded.picture, sr, loaded.canvas, loaded.photo.output_size, color_fix)
            record = self._keep(loaded, cells[index], picture, start)
            del sr, picture
            yield Done(loaded.photo, cells[index], record, skipped=False)
            start = time.perf_counter()

    def _keep(self, loaded: _Loaded, cell: Cell, picture: Picture, start: float) -> Record:
        """Measure and write one result; its record comes last, when all files are there."""
        photo, config = loaded.photo, self.config
        metrics = {}
        if self.opened.metrics:
            sr_u8 = picture.rgb_u8
            metrics = {metric.info.name: metric(sr_u8, loaded.hq_u8) for metric in self.opened.metrics}
        image = ""
        if config.save_images:
            path = self.image_path(photo, cell)
            image = self._recorded(path)
            encode(picture, path, config.format, config.quality)
        self.views.write(picture, photo.name, cell.key)
        crops = tuple(crop.text for crop in config.crops)
        seconds = round(time.perf_counter() - start, 4)
        record = Record(
            photo.name,
            cell.key,
            self._made_with[cell.variant],
            *loaded.digests,
            metrics,
            seconds,
            crops,
            image,
            config.quality if image else 0,
        )
        return self._note(record)

    def _note(self, record: Record) -> Record:
        """Add a record; what an earlier one of the same picture has kept still counts, and any other full image goes."""
        before = self.records.get(record.photo, record.cell)
        if before is not None and before.of_same(record):
            crops = tuple(dict.fromkeys((*before.crops, *record.crops)))
            record = replace(record, crops=crops, metrics={**before.metrics, **record.metrics})
        if before is not None and before.of_same_picture(record) and not record.image:
            record = replace(record, image=before.image, quality=before.quality)
        if before is not None and before.image != record.image:
            self.records.delete_image(before)
        self.records.add(record)
        return record

    def _write_sheets(self, photo: Photo) -> None:
        metrics = {cell.key: self.record(photo, cell).metrics for cell in self.grid.cells}
        write_sheets(self.grid, self.views, photo, metrics, self.opened.infos, self.config.pick, self.config.cell_px)

    # --- models ---

    def _engine_of(self, variant: int) -> MixingEngine:
        """The engine of one variant; only one is in memory at a time."""
        if self._engine is None or self._engine[0] != variant:
            self._engine = None
            gc.collect()
            spec = self._variants[variant]
            settings = [complete(spec, each) for each in _settings(self.config)]
            self._engine = (variant, open_engine(spec, self.config, settings))
        return self._engine[1]

    def _use(self, variant: int) -> str:
        """Tell the records what the cells of a variant are made with."""
        told = made_with(self._variants[variant], self.config, self._dtype)
        cells = [cell.key for cell in self.grid.cells if cell.variant == variant]
        return self.records.use(told, itertools.product((photo.name for photo in self.photos), cells))


def open_sweep(config: SweepConfig) -> Sweep:
    """Find the photos, open the metrics, load the model.

    Raises:
        UsageError: inputs, device, dials or output folder cannot be used.
        ModelError: the model is unknown, its files are missing or damaged, or the metric to pick by cannot be computed.
    """
    variants = find_variants(config)
    config = replace(config, scale=scale_of(variants[0], config.scale))
    photos, failures = find_photos(config)
    device, dtype = ready_device(config)
    opened = open_metrics(config.all_metrics, device, crop_border=config.crop_border)
    if config.pick is not None and config.pick in opened.missing:
        fault = opened.missing[config.pick]
        raise ModelError(f"`--pick {config.pick}`: {fault.message}", fault.hint)
    return Sweep(config, photos, failures, opened, dtype, variants)


def find_variants(config: SweepConfig) -> list[ModelSpec]:
    """Each model's row with each combination of adapters; raises as `choose_model`."""
    combinations = itertools.product(*config.adapters.values())
    given = [dict(zip(config.adapters, paths, strict=True)) for paths in combinations]
    return [choose_model(model, config.models_file, adapters, config.dials) for model in config.model for adapters in given]


def _axes(config: SweepConfig, variants: Sequence[ModelSpec]) -> tuple[Axis, ...]:
    models = variants[:: len(variants) // len(config.model)]
    axes = [*dial_axes([spec.dials for spec in models], config.dials)]
    if len(models) > 1:
        axes.append(model_axis(config.model, [spec.name for spec in models]))
    return (*axes, *(adapter_axis(name, paths) for name, paths in config.adapters.items() if len(paths) > 1))


def _settings(config: SweepConfig) -> tuple[Settings, ...]:
    """All that a model will be asked for."""
    dials = config.dials
    return tuple(dict(zip(dials, values, strict=True)) for values in itertools.product(*dials.values()))
