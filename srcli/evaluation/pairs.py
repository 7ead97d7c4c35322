"""Which pictures are compared with each other: those of equal relative stem, never of equal position.

Nothing here looks into a file; the standard library is enough.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
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
_NOT_LISTED = "give yourself the right to read it, or leave it out of the folder"


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
class Failure:
    """A file, or one metric of it, that could not be measured; or a folder that could not be listed."""

    path: Path
    reason: str
    hint: str = ""


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
    failures: tuple[Failure, ...] = ()
    """Folders below the given ones that cannot be listed, and files of one stem."""


def match(methods: Mapping[str, Path], hq: Path | None = None, lq: Path | None = None) -> Plan:
    """Pair folders, with everything below them, by relative stem; suffixes do not count: `a.jpg` goes with `a.png`.

    Hidden files and folders, and links to folders, are left out. What concerns some files concerns only those: a folder below
    the given ones that cannot be listed, and files of one stem, are left out and named. Single files are paired with each other
    whatever their names are.

    Args:
        methods: name -> folder of results, or one file.
        hq: folder of references, or one file, or None.
        lq: folder of inputs, or one file, or None; it tells which results are missing.

    Raises:
        UsageError: a path is missing or cannot be looked at, a folder has no images, or nothing has its counterparts. One error
            names all such faults.
    """
    places = {**methods, **{name: path for name, path in ((REFERENCE, hq), (INPUT, lq)) if path is not None}}
    found, failures = _found(places)
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
        lines = [*_outline(places, found), *(failure.reason for failure in failures)]
        raise UsageError(joined_faults("no image has all its counterparts:", lines), hint)
    return Plan(tuple(methods), tuple(images), tuple(unmatched), tuple(failures))


def refuse_swapped(lq: Path, hq: Path) -> None:
    """Look at the first input that has a reference.

    Raises:
        UsageError: it is larger than its reference; or a path is missing, as for `match`.
    """
    found, _ = _found({INPUT: lq, REFERENCE: hq})
    common = sorted(found[INPUT].keys() & found[REFERENCE].keys())
    if common:
        try:
            small, large = (probe(found[name][common[0]]) for name in (INPUT, REFERENCE))
        except ImageError:  # told where it is measured
            return
        if small.width > large.width and small.height > large.height:
            sizes = f"{small.width}x{small.height} there and {large.width}x{large.height} as a reference"
            raise UsageError(f"`--lq` and `--hq` look swapped: `{common[0]}` has {sizes}", f"`--lq {hq} --hq {lq}`")


def _found(places: Mapping[str, Path]) -> tuple[dict[str, dict[str, Path]], list[Failure]]:
    """Name -> stem -> file, of each place; and what is left out of them."""
    faults = [fault for fault in map(_unusable, places.values()) if fault]
    files = [path for path in places.values() if os.path.isfile(path)]  # noqa: PTH113 (Path's own raises for what it may not see)
    failures: list[Failure] = []
    if not faults and files:
        if len(files) < len(places):
            faults.append(f"`{files[0]}` is a file, but others are folders")
        else:
            stem = _normal(files[0].stem)
            return {name: {stem: path} for name, path in places.items()}, failures
    folders = {name: path for name, path in places.items() if os.path.isdir(path)}  # noqa: PTH112
    found = {name: _stems(path, failures) for name, path in folders.items()}
    faults += [f"`{folders[name]}` is a folder without images that can be paired" for name in found if not found[name]]
    if faults:
        lines = [*faults, *(failure.reason for failure in failures)]
        raise UsageError(joined_faults("these images cannot be paired:", lines), "check the paths and what is there")
    return found, failures


def _unusable(path: Path) -> str:
    """Why there is nothing to find at `path`; empty if there may be."""
    try:
        path.stat()
    except FileNotFoundError:
        return f"`{path}` does not exist"
    except OSError as error:
        return f"`{path}` cannot be used: {error.strerror}"
    return ""


def _stems(folder: Path, failures: list[Failure]) -> dict[str, Path]:
    found: dict[str, list[Path]] = defaultdict(list)

    def not_listed(error: OSError) -> None:
        failures.append(Failure(Path(error.filename), f"`{error.filename}` cannot be listed: {error.strerror}", _NOT_LISTED))

    for where, folders, names in os.walk(folder, onerror=not_listed):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(where) / name for name in sorted(names) if not name.startswith(".")):
            if path.suffix.lower() in INPUT_SUFFIXES:
                found[_normal(path.relative_to(folder).with_suffix(""))].append(path)
    for same in (paths for paths in found.values() if len(paths) > 1):
        reason = f"{' and '.join(f'`{path}`' for path in same)} have one stem, and nothing tells which of them is meant"
        failures.append(Failure(same[0], reason, "leave one of them in the folder"))
    return {stem: paths[0] for stem, paths in found.items() if len(paths) == 1}


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
