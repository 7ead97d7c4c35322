"""Metrics over a plan of pictures, one picture at a time: memory holds three pictures, and a number per value."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from srcli.errors import ImageError
from srcli.evaluation.catalogue import METRICS, MetricInfo
from srcli.evaluation.metrics import Opened, check_sizes
from srcli.evaluation.pairs import Failure, ImageSet, Plan
from srcli.evaluation.reading import Reader

if TYPE_CHECKING:
    from torch import Tensor

    from srcli.evaluation.metric_networks import FidSum

U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Identical:
    """A picture that is its reference, pixel for pixel."""

    path: Path
    reference: Path


@dataclass(frozen=True)
class Measurement:
    """One picture of one method."""

    stem: str
    method: str
    values: Mapping[str, float]
    """Metric -> value; without those that failed."""
    failures: tuple[Failure, ...] = ()
    identical: Identical | None = None
    """Where it is; PSNR is infinite then."""


@dataclass
class Results:
    """What is known so far; complete when `Evaluation.run` has ended."""

    methods: tuple[str, ...]
    infos: tuple[MetricInfo, ...]
    images: int = 0
    """Pictures that every method has, readable and of the right size."""
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Metric -> method -> a value per picture that counts, NaN where it failed; the order is the same for all."""
    failures: list[Failure] = field(default_factory=list)
    identical: list[Identical] = field(default_factory=list)
    fid: dict[str, float] = field(default_factory=dict)
    """Method -> FID."""

    def table(self, metric: str) -> npt.NDArray[np.float64]:
        """(methods, pictures) of a per-image metric: the pictures for which every method has a value."""
        rows = np.array([self.values[metric][method] for method in self.methods], dtype=np.float64)
        complete: npt.NDArray[np.float64] = rows[:, ~np.isnan(rows).any(axis=0)]
        return complete

    def means(self, metric: str) -> dict[str, float]:
        """Method -> mean over the pictures for which every method has a value; empty where there is none."""
        if metric == "fid":
            return {method: value for method, value in self.fid.items() if not np.isnan(value)}
        table = self.table(metric)
        if not table.shape[1]:
            return {}
        return dict(zip(self.methods, map(float, table.mean(axis=1)), strict=True))


class Evaluation:
    """Measures the pictures of a plan.

    A mean counts only pictures that succeed for every method, so that the rows of a table compare; a value that is not
    counted is still in its `Measurement`.

    Args:
        plan: what is compared.
        opened: by which metrics.
    """

    def __init__(self, plan: Plan, opened: Opened) -> None:
        self._plan = plan
        self._opened = opened
        self._reader = Reader()
        self._sums: dict[str, FidSum] = {}
        self.results = Results(plan.methods, opened.infos)
        for metric in opened.metrics:
            self.results.values[metric.info.name] = {method: [] for method in plan.methods}
        if opened.fid is not None:
            from srcli.evaluation.metric_networks import FidSum

            self._sums = {method: FidSum(opened.fid.width) for method in plan.methods}

    def run(self) -> Generator[Measurement, None, None]:
        """Yield a measurement per picture and method as soon as it is known, by picture."""
        pictures = self._reader.read_ahead(path for image in self._plan.images for path in _paths(image))
        try:
            for image in self._plan.images:
                yield from self._measure(image, pictures)
        finally:
            pictures.close()

    def finish(self) -> Results:
        """The results with what is only known of the whole: FID. Costs seconds per method."""
        for method, total in self._sums.items():
            self.results.fid[method] = total.value()
        return self.results

    def _measure(self, image: ImageSet, pictures: Iterator[U8 | ImageError]) -> Iterator[Measurement]:
        hq = next(pictures) if image.hq is not None else None
        complete = True
        measured: list[Measurement] = []
        failures: list[Failure] = []
        features: dict[str, Tensor] = {}
        for method, path in image.sr.items():
            sr = next(pictures)
            measurement, failed = self._one(image, method, path, sr, hq)
            complete = complete and not failed
            if self._opened.fid is not None and not failed and not isinstance(sr, ImageError):
                features[method] = self._opened.fid.features(sr)
            del sr
            new = [failure for failure in measurement.failures if failure not in failures]  # a reference fails once
            failures += new
            self.results.failures += new
            self.results.identical += filter(None, [measurement.identical])
            measured.append(measurement)
            yield measurement
        if complete:
            self._count(measured, features, hq)

    def _one(
        self, image: ImageSet, method: str, path: Path, sr: U8 | ImageError, hq: U8 | ImageError | None
    ) -> tuple[Measurement, bool]:
        """The measurement, and whether the picture failed as a whole."""
        try:
            if isinstance(hq, ImageError):
                path = image.hq or path
                raise hq
            if isinstance(sr, ImageError):
                raise sr
            if hq is not None:
                check_sizes(sr, hq)
        except ImageError as fault:
            return Measurement(image.stem, method, {}, (Failure(path, fault.message, fault.hint),)), True
        values: dict[str, float] = {}
        failures = []
        for metric in self._opened.metrics:
            try:
                values[metric.info.name] = metric(sr, hq)
            except ImageError as fault:
                failures.append(Failure(path, fault.message, fault.hint))
        same = hq is not None and np.array_equal(sr, hq)
        identical = Identical(path, image.hq) if same and image.hq is not None else None
        return Measurement(image.stem, method, values, tuple(failures), identical), False

    def _count(self, measured: list[Measurement], features: Mapping[str, Tensor], hq: U8 | ImageError | None) -> None:
        self.results.images += 1
        for measurement in measured:
            for name, values in self.results.values.items():
                values[measurement.method].append(measurement.values.get(name, float("nan")))
        if self._opened.fid is not None and not isinstance(hq, ImageError) and hq is not None:
            reference = self._opened.fid.features(hq)
            for method, total in self._sums.items():
                total.add(features[method], reference)


def _paths(image: ImageSet) -> Iterator[Path]:
    if image.hq is not None:
        yield image.hq
    yield from image.sr.values()


def value_text(metric: str, value: float) -> str:
    """As the papers print it."""
    decimals = METRICS[metric].decimals
    return f"{round(value, decimals) + 0.0:.{decimals}f}"  # + 0.0: no "-0.0000"
