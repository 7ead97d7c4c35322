"""The composition behind `srcli sweep`: photos and settings in; views, images and records out, cell by cell."""

from __future__ import annotations

import gc
import itertools
import logging
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from srcli.config.rule import PLAIN
from srcli.config.sweep import SweepConfig
from srcli.engine.framing import enlarge_plainly, finish, prepare_canvas
from srcli.engine.mix import MixingEngine
from srcli.engine.stream import failure
from srcli.errors import ImageError, ModelError
from srcli.evaluation.catalogue import METRICS, MetricInfo
from srcli.evaluation.measure import Failure
from srcli.evaluation.metrics import Opened, open_metrics
from srcli.evaluation.reading import Reader
from srcli.images.canvas import Canvas
from srcli.images.codec import Picture, decode, encode
from srcli.images.files import Job, is_done
from srcli.images.resize import resample_u8
from srcli.opening import choose_model, complete, open_engine, ready_device, scale_of
from srcli.rows.spec import ModelSpec
from srcli.sweep.grid import Axis, Cell, Grid, adapter_axis, cell_key, dial_axes, model_axis
from srcli.sweep.inputs import Photo, digest, find_photos
from srcli.sweep.made_with import made_with
from srcli.sweep.merge import Recorded, merged_lists, no_grid, settings_in
from srcli.sweep.picking import Values, picked_cell
from srcli.sweep.records import Record, Records, digest_of, without_dials
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
    found: Mapping[str, float]
    """What the model finds for it, where a dial is swept that it can find."""


class Sweep:
    """A sweep that is ready to run; memory does not grow with cells, nor with photos but for their records.

    Its grid has the settings that are asked for, and those of earlier sweeps of the same models into the same folder.

    Args:
        config: the settings.
        photos: to sweep.
        failures: of inputs that cannot be swept; those of the run are added.
        opened: the metrics.
        dtype: of the networks.
        variants: of `find_variants`.

    Raises:
        UsageError: the output folder cannot be written, is of another sweep, or has settings that make no grid with these.
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
        self.views = Views(config.output, config.crops)
        self.records = Records(config.output, anew=config.overwrite)
        told = [without_dials(made_with(spec, config, dtype)) for spec in variants]
        mine = self.records.of_photos(photo.name for photo in photos)
        self.records.refuse_others(mine, told)
        self._defaults = [complete(spec, {}) for spec in variants]
        asked = self._grid_of(config.dials)
        digests = [digest_of(each) for each in told]
        recorded = [self._recorded_setting(record, digests, asked) for record in mine]
        self.grid = self._merged(asked, recorded)
        self.earlier = len(self.grid.cells) - len(asked.cells)
        self._made_with = [self.records.use(each) for each in told]
        self._plain_made_with = {"baseline": PLAIN, "scale": config.scale, "crop_border": config.crop_border}
        self.records.rename(self._other_keys(mine, recorded))

    # --- the grid ---

    def _grid_of(self, lists: Mapping[str, Sequence[float]]) -> Grid:
        return Grid(_axes(self.config, self._variants, lists), tuple(self._defaults))

    def _recorded_setting(self, record: Record, digests: Sequence[str], asked: Grid) -> Recorded:
        """What a record of one of the variants is of; of equal ones it is the one that its key names."""
        of_digest = [variant for variant, digest in enumerate(digests) if digest == record.made_with]
        named = (variant for variant in of_digest if f",{record.cell}".endswith(f",{asked.variants[variant]}"))
        variant = next(named, of_digest[0])
        dials = [dial.name for dial in self._variants[variant].dials]
        return Recorded(record.photo, variant, settings_in(record.cell, dials))

    def _merged(self, asked: Grid, recorded: Sequence[Recorded]) -> Grid:
        """The settings of this run and of earlier ones; refused where they make no grid that has results of all photos."""
        lists = merged_lists(self.config.dials, self._defaults, recorded)
        if any(name not in {dial.name for dial in spec.dials} for spec in self._variants for name in lists):
            raise no_grid(self.config.output, lists, 0)
        merged = self._grid_of(lists)
        keys = {cell.key for cell in merged.cells}
        there = {(each.photo, cell_key(each.settings, asked.variants[each.variant])) for each in recorded}
        own = {cell.key for cell in asked.cells}
        if not own | {key for _, key in there} <= keys:
            raise no_grid(self.config.output, lists, 0)
        lacking = {key for key in keys - own for photo in self.photos if (photo.name, key) not in there}
        if lacking:
            raise no_grid(self.config.output, lists, len(lacking))
        return merged

    def _other_keys(self, records: Sequence[Record], recorded: Sequence[Recorded]) -> list[tuple[Record, Record]]:
        """The records whose models had other names among those that they were compared with."""
        keys = [cell_key(each.settings, self.grid.variants[each.variant]) for each in recorded]
        return [(record, record.under(key)) for record, key in zip(records, keys, strict=True) if record.cell != key]

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

    @property
    def infos(self) -> tuple[MetricInfo, ...]:
        """The metrics that all complete photos have, of this and of earlier runs: those of the report, once `run` has ended."""
        return self._infos_of(self.complete)

    @property
    def metrics_left_out(self) -> list[str]:
        """Labels of those that only some results have, or whose references are not given now."""
        records = self.records.of_photos(photo.name for photo in self.complete)
        known = {name for record in records for name in record.metrics} - {info.name for info in self.infos}
        return [info.label for info in METRICS.values() if info.name in known]

    @property
    def crops_left_out(self) -> list[str]:
        """Those that earlier runs cut out of these photos, and that are not asked for now."""
        cut = {crop for record in self.records.of_photos(photo.name for photo in self.photos) for crop in record.crops}
        return sorted(cut - {crop.text for crop in self.config.crops})

    @property
    def photos_left_out(self) -> list[str]:
        """Names of those that the folder has results of, and that are no inputs now."""
        named = {photo.name for photo in self.photos}
        return sorted(name for name in self.records.photos if name not in named)

    def values(self, photo: Photo) -> Values:
        """The metrics of a complete photo's cells."""
        return {cell.key: self.record(photo, cell).metrics for cell in self.grid.cells}

    def found(self, photo: Photo) -> Mapping[str, float]:
        """What the models find for a complete photo, by the dials that are swept: of several models the first one's."""
        swept = {axis.name for axis in self.grid.axes if axis.values}
        return {name: value for name, value in self.record(photo, self.grid.cells[0]).found.items() if name in swept}

    def plain(self, photo: Photo) -> Mapping[str, float]:
        """The metrics of the plainly enlarged photo, where it is compared with that; else none."""
        record = self.records.get(photo.name, PLAIN) if self._with_plain else None
        return {} if record is None else record.metrics

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
            fresh = record is not None and record.is_of(self._made_with[variant], *digests)
            if record is not None and fresh and self._is_there(photo, cell, record):
                yield Done(photo, cell, record, skipped=True)
            else:
                todo.append(cell)
                changed = changed or (record is not None and record.other_files(*digests))
        if changed:
            log.info("`%s` or its reference has changed since: its cells are made again", photo.source)
        if todo:
            yield from self._restore(self._read(photo, digests, variant), variant, todo)
        if self._with_plain:
            self._measure_plain(photo, digests)

    @property
    def _with_plain(self) -> bool:
        return self.config.rule is not None and self.config.rule.plain

    def _measure_plain(self, photo: Photo, digests: tuple[str, str]) -> None:
        """The metrics of the photo enlarged by Pillow's bicubic filter on 8-bit RGB, as `srcli eval --baseline` does it."""
        start = time.perf_counter()
        made_with = self.records.use(self._plain_made_with)
        before = self.records.get(photo.name, PLAIN)
        if before is not None and not before.is_of(made_with, *digests):
            before = None
        known = {} if before is None else before.metrics
        todo = [metric for metric in self.opened.metrics if metric.info.name not in known]
        if todo:
            reader, (width, height) = Reader(), photo.output_size
            enlarged_u8 = resample_u8(reader.read(photo.source), (height, width))
            hq_u8 = None if photo.hq is None else reader.read(photo.hq)
            metrics = {**known, **{metric.info.name: metric(enlarged_u8, hq_u8) for metric in todo}}
            seconds = round(time.perf_counter() - start, 4)
            self.records.add(Record(photo.name, PLAIN, made_with, *digests, metrics, seconds))

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
        return _Loaded(photo, digests, picture, canvas, hq_u8, self._found_in(canvas, variant))

    def _found_in(self, canvas: Canvas, variant: int) -> Mapping[str, float]:
        return self._engine_of(variant).found(canvas, self._defaults[variant]) if self._finds(variant) else {}

    def _finds(self, variant: int) -> bool:
        """Whether a dial is swept that the model can find."""
        return any(axis.name in self._variants[variant].found_dials for axis in self.grid.axes if axis.values)

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
            loaded.found,
        )
        return self._note(record)

    def _note(self, record: Record) -> Record:
        """Add a record; what an earlier one of the same picture has kept still counts, and any other full image goes."""
        before = self.records.get(record.photo, record.cell)
        if before is not None and before.of_same(record):
            crops = tuple(dict.fromkeys((*before.crops, *record.crops)))
            hq = record.hq or before.hq
            record = replace(record, hq=hq, crops=crops, metrics={**before.metrics, **record.metrics})
        if before is not None and before.of_same_picture(record) and not record.image:
            record = replace(record, image=before.image, quality=before.quality)
        if before is not None and before.image != record.image:
            self.records.delete_image(before)
        self.records.add(record)
        return record

    def _write_sheets(self, photo: Photo) -> None:
        values, rule = self.values(photo), self.config.rule
        best = None if rule is None else picked_cell(rule, self.grid.cells, values, self.plain(photo))
        infos, found = self._infos_of([photo]), self.found(photo)
        write_sheets(self.grid, self.views, photo, values, infos, best, self.config.cell_px, found)

    def _infos_of(self, photos: Sequence[Photo]) -> tuple[MetricInfo, ...]:
        every = [metrics for photo in photos for metrics in self.values(photo).values()]
        every += [self.plain(photo) for photo in photos if self._with_plain]
        compared = all(photo.hq is not None for photo in photos)
        return tuple(
            info
            for info in METRICS.values()
            if (compared or not info.needs_reference) and every and all(info.name in metrics for metrics in every)
        )

    # --- models ---

    def _engine_of(self, variant: int) -> MixingEngine:
        """The engine of one variant; only one is in memory at a time."""
        if self._engine is None or self._engine[0] != variant:
            if self._engine is not None:
                self._engine = None
                gc.collect()
            spec = self._variants[variant]
            settings = [cell.settings for cell in self.grid.cells if cell.variant == variant]
            settings += [self._defaults[variant]] if self._finds(variant) else []
            self._engine = (variant, open_engine(spec, self.config, settings))
        return self._engine[1]


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
    for name in config.rule.metrics if config.rule is not None else ():
        if name in opened.missing:
            fault = opened.missing[name]
            raise ModelError(
                f"`--pick {config.pick}`: {fault.message}", f"{fault.hint}; or pick by another metric, as `--pick psnr`"
            )
    return Sweep(config, photos, failures, opened, dtype, variants)


def find_variants(config: SweepConfig) -> list[ModelSpec]:
    """Each model's row with each combination of adapters; raises as `choose_model`."""
    combinations = itertools.product(*config.adapters.values())
    given = [dict(zip(config.adapters, paths, strict=True)) for paths in combinations]
    return [choose_model(model, config.models_file, adapters, config.dials) for model in config.model for adapters in given]


def _axes(config: SweepConfig, variants: Sequence[ModelSpec], lists: Mapping[str, Sequence[float]]) -> tuple[Axis, ...]:
    models = variants[:: len(variants) // len(config.model)]
    axes = [*dial_axes([spec.dials for spec in models], lists)]
    if len(models) > 1:
        axes.append(model_axis(config.model, [spec.name for spec in models]))
    return (*axes, *(adapter_axis(name, paths) for name, paths in config.adapters.items() if len(paths) > 1))
