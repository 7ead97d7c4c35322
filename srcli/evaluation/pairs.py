"""Which pictures are compared with each other: those of equal relative stem, never of equal position.

Nothing here looks into a file; the standard library is enough.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from srcli.errors import ImageError, UsageError, joined_faults
from srcli.images.codec import probe
from srcli.images.suffixes import INPUT_SUFFIXES

REFERENCE = "hq"
"""What the folder of references is called beside the names of methods; `INPUT` is that of the inputs."""
INPUT = "lq"

_SHOWN = 3  # stems of a folder in a message


@dataclass(frozen=True)
class ImageSet:
    """One picture in all its versions."""

    stem: str
    """Path below the folder without its suffix, with `/`: `city/night` of `city/night.png`."""
    sr: Mapping[str, Path]
    """Method -> its version."""
    hq: Path | None
    """The reference; None where there is no folder of them."""


@dataclass(frozen=True)
class Unmatched:
    """A file without its counterparts, which is left out."""

    path: Path
    lacks: tuple[str, ...]
    """Names of the methods that have no such stem, `REFERENCE` or `INPUT`."""


@dataclass(frozen=True)
class Plan:
    """What is compared, and what is left out."""

    methods: tuple[str, ...]
    images: tuple[ImageSet, ...]
    """By stem; each is complete, so that the means of all methods are over the same pictures."""
    unmatched: tuple[Unmatched, ...]


def match(methods: Mapping[str, Path], hq: Path | None = None, lq: Path | None = None) -> Plan:
    """Pair folders, with everything below them, by relative stem; suffixes do not count: `a.jpg` goes with `a.png`.

    Hidden files and folders, and links to folders, are left out. Single files are paired with each other whatever their
    names are.

    Args:
        methods: name -> folder of results, or one file.
        hq: folder of references, or one file, or None.
        lq: folder of inputs, or one file, or None; it tells which results are missing.

    Raises:
        UsageError: a path is missing, a folder has no images or two of one stem, or nothing has its counterparts. One
            error names all such faults.
    """
    places = {**methods, **{name: path for name, path in ((REFERENCE, hq), (INPUT, lq)) if path is not None}}
    found = _found(places)
    stems = sorted(set[str]().union(*found.values()))
    images, unmatched = [], []
    for stem in stems:
        lacks = tuple(name for name in places if stem not in found[name])
        if lacks:
            unmatched += [Unmatched(found[name][stem], lacks) for name in places if name not in lacks]
        else:
            sr = {name: found[name][stem] for name in methods}
            images.append(ImageSet(stem, sr, None if hq is None else found[REFERENCE][stem]))
    if not images:
        hint = "counterparts have the same path below their folders, apart from the suffix"
        raise UsageError(joined_faults("no image has all its counterparts:", _outline(places, found)), hint)
    return Plan(tuple(methods), tuple(images), tuple(unmatched))


def refuse_swapped(lq: Path, hq: Path) -> None:
    """Look at the first input that has a reference.

    Raises:
        UsageError: it is larger than its reference; or a path is missing, as for `match`.
    """
    found = _found({INPUT: lq, REFERENCE: hq})
    common = sorted(found[INPUT].keys() & found[REFERENCE].keys())
    if common:
        try:
            small, large = (probe(found[name][common[0]]) for name in (INPUT, REFERENCE))
        except ImageError:  # told where it is measured
            return
        if small.width > large.width and small.height > large.height:
            sizes = f"{small.width}x{small.height} there and {large.width}x{large.height} as a reference"
            raise UsageError(f"`--lq` and `--hq` look swapped: `{common[0]}` has {sizes}", f"`--lq {hq} --hq {lq}`")


def _found(places: Mapping[str, Path]) -> dict[str, dict[str, Path]]:
    """Name -> stem -> file, of each place."""
    faults = [f"`{path}` does not exist" for path in places.values() if not path.exists()]
    files = [path for path in places.values() if path.is_file()]
    if not faults and files:
        if len(files) < len(places):
            faults.append(f"`{files[0]}` is a file, but others are folders")
        else:
            stem = _normal(files[0].stem)
            return {name: {stem: path} for name, path in places.items()}
    found = {}
    for name, path in places.items():
        if path.is_dir():
            found[name] = _stems(path, faults)
    if faults:
        raise UsageError(joined_faults("these images cannot be paired:", faults), "check the paths; each stem once in a folder")
    return found


def _stems(folder: Path, faults: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    before = len(faults)
    for where, folders, names in os.walk(folder, onerror=lambda error: faults.append(f"`{folder}` cannot be listed: {error}")):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(where) / name
            if name.startswith(".") or path.suffix.lower() not in INPUT_SUFFIXES:
                continue
            first = found.setdefault(_normal(path.relative_to(folder).with_suffix("")), path)
            if first is not path:
                faults.append(f"`{first}` and `{path}` have one stem")
    if not found and len(faults) == before:
        faults.append(f"`{folder}` is a folder without images")
    return found


def _normal(stem: str | PurePath) -> str:
    """Equal for names that look equal: some systems take letters with marks apart."""
    return unicodedata.normalize("NFC", PurePath(stem).as_posix())


def _outline(places: Mapping[str, Path], found: Mapping[str, Mapping[str, Path]]) -> list[str]:
    lines = []
    for name, path in places.items():
        stems = sorted(found[name])
        more = f" and {len(stems) - _SHOWN} more" if len(stems) > _SHOWN else ""
        lines.append(f"`{path}` ({name}) has {', '.join(f'`{stem}`' for stem in stems[:_SHOWN])}{more}")
    return lines
