"""Where training photos come from: folder trees, list files and LQ-HQ pairs, looked over before the first step."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from srcli.console import counted
from srcli.errors import ImageError, UsageError, joined_faults
from srcli.images.codec import probe
from srcli.images.suffixes import INPUT_SUFFIXES
from srcli.remote.mirror import mirrored
from srcli.remote.urls import is_url, local
from srcli.rows.base import expanded, is_folder

log = logging.getLogger("srcli")

SOURCE_HINT = (
    "a source is a folder (also of a store, as `s3://bucket/folder`), a list file (a path a line, for pairs HQ<tab>LQ) or a "
    "photo, and may end in `,lq=DIR` for the folder of its LQ partners and `,weight=W`"
)
NAMED = 10
"""So many skipped files are named one by one; the rest is counted, and named with `--debug`."""


@dataclass(frozen=True)
class Photo:
    """A sharp photo, and its real LQ partner if it has one."""

    hq: Path
    lq: Path | None = None


@dataclass(frozen=True)
class Source:
    """Photos that are drawn with a common weight."""

    photos: tuple[Photo, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Skipped:
    """A file that cannot be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class _Asked:
    """A source as it was written."""

    path: Path
    lq: Path | None = None
    weight: float = 1.0


def find_sources(texts: Sequence[str], crop: int, scale: int, *, raw: bool = False) -> tuple[list[Source], list[Skipped]]:
    """All usable photos of the sources, from the headers of their files.

    Args:
        texts: as given to `--data`.
        crop: side of the crops in output pixels; photos with a shorter side are skipped.
        scale: output sides over input sides, for LQ partners that are not as large as their photo.
        raw: all LQ partners have to be that much smaller.

    Returns:
        The sources in the order given, and what was skipped.

    Raises:
        UsageError: a source that does not exist, or that holds nothing usable; all such sources.
        StoreError: a store that cannot be used.
    """
    sources, skipped, faults = [], [], []
    for text in texts:
        path, uncopied = _copied(text)
        skipped += uncopied
        try:
            asked = _parse(path)
            photos, unusable = _usable(_photos(asked), crop, scale, raw)
        except UsageError as error:
            faults.append(error.message)
            continue
        skipped += unusable
        if photos:
            sources.append(Source(tuple(photos), asked.weight))
        else:
            first = f"; the first: `{unusable[0].path}` {unusable[0].reason}" if unusable else ""
            faults.append(f"no usable photos in `{asked.path}`{first}")
    if faults:
        raise UsageError(faults[0] if len(faults) == 1 else joined_faults("these sources cannot be used", faults), SOURCE_HINT)
    return sources, skipped


def _copied(text: str) -> tuple[str, list[Skipped]]:
    """A source's text with copies in the place of folders of stores, and what could not be copied."""
    parts, skipped = re.split(r",(?=(?:lq|weight)=)", text), list[Skipped]()
    for index, part in enumerate(parts):
        option, url = ("lq=", part.removeprefix("lq=")) if part.startswith("lq=") else ("", part)
        if is_url(url) and local(url) == url:
            folder, faults = mirrored(url)
            parts[index] = f"{option}{folder}"
            skipped += [Skipped(path, reason) for path, reason in faults]
    return ",".join(parts), skipped


def unreadable(path: Path, error: ImageError) -> Skipped:
    """A file that could not be read; the reason does not repeat its path."""
    return Skipped(path, error.message.removeprefix(f"`{path}` "))


def tell_skipped(skipped: Sequence[Skipped]) -> None:
    """Name what was skipped, in the log."""
    for each in skipped[:NAMED]:
        log.warning("skipped `%s`: %s", each.path, each.reason)
    if len(skipped) > NAMED:
        log.warning("skipped %s; `--debug` names all", counted(len(skipped) - NAMED, "more file"))
        for each in skipped[NAMED:]:
            log.debug("skipped `%s`: %s", each.path, each.reason)


def _parse(text: str) -> _Asked:
    """Options are what follows the longest path that exists: it may hold commas itself.

    Raises:
        UsageError: no path, or an unknown or faulty option behind a comma.
    """
    path, options = text, list[str]()
    while "," in path and not _is_there(expanded(path)):
        path, _, option = path.rpartition(",")
        options.insert(0, option)
    if not path:
        raise UsageError(f"the source `{text}` names no path", SOURCE_HINT)
    asked = _Asked(expanded(path))
    for option in options:
        key, _, value = option.partition("=")
        if key == "lq" and value:
            asked = replace(asked, lq=expanded(value))
        elif key == "weight":
            asked = replace(asked, weight=_weight(value, text))
        else:
            raise UsageError(f"`{option}` of `{text}` is neither `lq=DIR` nor `weight=W`", SOURCE_HINT)
    return asked


def _weight(value: str, text: str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = float("nan")
    if not 0 < weight < float("inf"):
        raise UsageError(f"the weight `{value}` of `{text}` is not a positive number", SOURCE_HINT)
    return weight


def _photos(asked: _Asked) -> list[Photo | Skipped]:
    path = asked.path
    if is_folder(path):
        found, unlisted = _walked(path)
        photos = _paired(found, path, asked.lq) if asked.lq else [Photo(file) for file in found]
        return [*unlisted, *photos]
    if not _is_file(path):
        raise UsageError(f"`{path}` {'is neither a folder nor a file' if _is_there(path) else 'does not exist'}", SOURCE_HINT)
    if asked.lq is not None:
        raise UsageError(f"`{path}` has `lq=`, which only a folder can have; a list file holds pairs as HQ<tab>LQ", SOURCE_HINT)
    if path.suffix.lower() in INPUT_SUFFIXES:
        return [Photo(path)]
    return list(_listed(path))


def _walked(folder: Path) -> tuple[list[Path], list[Skipped]]:
    """The photos below a folder, in order, and what of it could not be listed; nothing hidden, no links to folders."""
    files: list[Path] = []
    unlisted: list[Skipped] = []

    def note(error: OSError) -> None:
        unlisted.append(Skipped(Path(error.filename), f"cannot be listed: {error.strerror}"))

    for where, folders, names in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(where) / name for name in names if not name.startswith("."))
        files += [path for path in paths if path.suffix.lower() in INPUT_SUFFIXES and _is_file(path)]
    return sorted(files), unlisted


def _is_there(path: Path) -> bool:
    """As `Path.exists`, and False also for what is too long for a path or may not be looked at."""
    return os.path.exists(path)  # noqa: PTH110


def _is_file(path: Path) -> bool:
    """As `Path.is_file`, and False where `_is_there` is."""
    return os.path.isfile(path)  # noqa: PTH113


def _paired(photos: Sequence[Path], folder: Path, lq_folder: Path) -> list[Photo | Skipped]:
    """Partners by their path below the folders, whatever the suffix."""
    if not is_folder(lq_folder):
        raise UsageError(f"`{lq_folder}` is not a folder", SOURCE_HINT)
    files, unlisted = _walked(lq_folder)
    partners: dict[str, list[Path]] = {}
    for file in files:
        partners.setdefault(_stem(file, lq_folder), []).append(file)
    pairs: list[Photo | Skipped] = list(unlisted)
    for photo in photos:
        found = partners.get(_stem(photo, folder), [])
        if len(found) == 1:
            pairs.append(Photo(photo, found[0]))
        else:
            pairs.append(Skipped(photo, f"has {len(found)} partners in `{lq_folder}`" if found else "has no LQ partner"))
    return pairs


def _stem(photo: Path, folder: Path) -> str:
    """What partners share: equal for names that look equal, since some systems take letters with marks apart."""
    return unicodedata.normalize("NFC", photo.relative_to(folder).with_suffix("").as_posix())


def _listed(file: Path) -> Iterator[Photo | Skipped]:
    """The lines of a list file; relative paths start from its folder."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read `{file}` as a list of photos: {error}", SOURCE_HINT) from error
    for line in lines:
        paths = [_as_on_disk(file.parent, part.strip()) for part in line.split("\t") if part.strip()]
        if not paths or (line.startswith("#") and not _is_file(paths[0])):  # a file may be called `#1.png`
            continue
        missing = next((path for path in paths if not _is_file(path)), None)
        why = "no such file; of stores, `--data` takes folders" if is_url(line) else "no such file"
        yield Skipped(missing, why) if missing else Photo(*paths[:2])


def _as_on_disk(folder: Path, text: str) -> Path:
    """The file that a list means: letters with marks may be spelt otherwise than on the disk."""
    spellings = (text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text))
    paths = [folder / expanded(spelling) for spelling in spellings]
    return next((path for path in paths if _is_file(path)), paths[0])


def _usable(found: Sequence[Photo | Skipped], crop: int, scale: int, raw: bool) -> tuple[list[Photo], list[Skipped]]:
    photos, skipped = [], []
    for each in found:
        fault = each if isinstance(each, Skipped) else _fault(each, crop, scale, raw)
        if fault is None and isinstance(each, Photo):
            photos.append(each)
        elif fault is not None:
            skipped.append(fault)
    return photos, skipped


def _fault(photo: Photo, crop: int, scale: int, raw: bool) -> Skipped | None:
    sizes = []
    for path in (photo.hq, photo.lq):
        if path is None:
            continue
        try:
            header = probe(path)
        except ImageError as error:
            return unreadable(path, error)
        sizes.append((header.width, header.height))
    width, height = sizes[0]
    if photo.lq and sizes[1][0] > width and sizes[1][1] > height:
        partner = f"its LQ partner has {sizes[1][0]}x{sizes[1][1]}"
        return Skipped(photo.hq, f"{width}x{height} is smaller than {partner}: are HQ and LQ swapped?")
    if min(width, height) < crop:
        return Skipped(photo.hq, f"{width}x{height} is smaller than the crop of {crop}")
    smaller = (width // scale, height // scale)
    if photo.lq and raw and sizes[1] != smaller:
        wanted = f"which the model, enlarging {scale} times, needs as {smaller[0]}x{smaller[1]}"
        return Skipped(photo.lq, f"{sizes[1][0]}x{sizes[1][1]} is the LQ partner of a photo of {width}x{height}, {wanted}")
    if photo.lq and sizes[1] not in (smaller, (width, height)):
        return Skipped(photo.lq, f"{sizes[1][0]}x{sizes[1][1]} is neither the size of its photo nor a {scale}th of it")
    return None
