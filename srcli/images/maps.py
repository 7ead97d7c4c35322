"""Maps that lie beside photos: gray pictures of the same names and sizes, which say what is to be done where."""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePath

import numpy as np

from srcli.console import counted
from srcli.errors import ImageError, UsageError
from srcli.images.codec import Header, decode, probe
from srcli.images.files import Job, Jobs, find_files
from srcli.images.levels import Levels

log = logging.getLogger("srcli")


def with_maps(jobs: Jobs, place: Path, output: Path) -> Jobs:
    """The jobs with their maps; those without one stay as they are, which is said.

    Args:
        jobs: to be done.
        place: a folder of maps, which have the photos' paths in their folder, but for the suffix; or the map of one photo.
        output: what the jobs' targets are below.

    Raises:
        UsageError: there are no maps, or none belongs to a photo.
    """
    if place.is_file() and len(jobs) == 1:
        return replace(jobs, map_of=lambda job: place)
    maps = {_stem(found.relative): found.source for found in find_files([str(place)], output)}
    jobs = replace(jobs, map_of=lambda job: maps.get(_stem_of(job, output)))
    found = Counter(job.map for job in jobs)
    without, used = found.pop(None, 0), set(found)
    if not used:
        hint = "a map has the path of its photo, apart from the suffix: `city/a.png` for `city/a.jpg`"
        raise UsageError(f"no map in `{place}` belongs to a photo", hint)
    if without:
        log.warning("no map for %s: there the dials hold everywhere", counted(without, "photo"))
    if idle := sorted(set(maps.values()) - used):
        log.warning("%s without a photo: `%s`%s", counted(len(idle), "map"), idle[0], " and others" if len(idle) > 1 else "")
    return jobs


def read_map(path: Path, width: int, height: int) -> Levels:
    """A map's values.

    Args:
        path: of the map.
        width: of its photo, upright, in pixels.
        height: likewise.

    Returns:
        (height, width, 1), uint8 or uint16.

    Raises:
        ImageError: it cannot be read, has another size, is not gray, or transparent in places.
    """
    picture = decode(path)
    if fault := size_fault(path, picture.width, picture.height, width, height):
        raise fault
    color = picture.color_levels
    if not picture.opaque or not bool((color == color[..., :1]).all()):
        what = "has colours" if picture.opaque else "is transparent in places"
        raise ImageError(f"the map `{path}` {what}", "save it as a gray picture: white where the dial holds, black where not")
    return np.ascontiguousarray(color[..., :1])


def check_map(job: Job, header: Header) -> None:
    """Raises: ImageError: the job's map cannot be read, or has another size than the photo; nothing is decoded."""
    if job.map is not None:
        own = probe(job.map)
        if fault := size_fault(job.map, own.width, own.height, header.width, header.height):
            raise fault


def size_fault(path: Path, own_width: int, own_height: int, width: int, height: int) -> ImageError | None:
    """What is wrong with a map's size, if anything."""
    if (own_width, own_height) == (width, height):
        return None
    message = f"its map `{path}` has {own_width} x {own_height} px, and the photo {width} x {height}"
    return ImageError(message, "paint the map on the photo itself: it is enlarged with it")


def _stem_of(job: Job, output: Path) -> str:
    folder = job.target.parent
    relative = folder.relative_to(output) if folder.is_relative_to(output) else Path()
    return _stem(relative / job.source.name)


def _stem(path: PurePath) -> str:
    return unicodedata.normalize("NFC", path.with_suffix("").as_posix())
