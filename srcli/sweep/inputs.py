"""Which photos are swept, and the reference of each."""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from srcli.config.sweep import SweepConfig
from srcli.errors import ImageError, SrcliError, UsageError, joined_faults
from srcli.evaluation.measure import Failure
from srcli.images.codec import probe
from srcli.images.resize import target_size
from srcli.images.search import Found, LeftOut, find_files
from srcli.images.suffixes import INPUT_SUFFIXES, OUTPUT_FORMATS, counts_by_suffix

log = logging.getLogger("srcli")


@dataclass(frozen=True)
class Photo:
    """One input."""

    name: str
    """Path below its folder without suffix, with `/`."""
    source: Path
    relative: Path
    """Of its results, below whatever folder."""
    output_size: tuple[int, int]
    """(width, height) in pixels."""
    hq: Path | None = None


def find_photos(config: SweepConfig) -> tuple[list[Photo], list[Failure]]:
    """The photos that can be swept, by the headers of their files, and those that cannot.

    References are paired by path without suffix, never by position; single files whatever their names are.

    Raises:
        UsageError: inputs or references do not exist, or have equal names; or no photo can be swept.
    """
    if config.output.suffix.lower() in INPUT_SUFFIXES and not config.output.is_dir():
        raise UsageError(f"the output `{config.output}` is a file name", "give a folder: a sweep writes many files")
    for folder in (*config.inputs, *([str(config.hq)] if config.hq is not None else [])):
        if Path(folder).is_dir() and Path(folder).resolve() == config.output.resolve():
            message = f"`{folder}` is read, and cannot be the output too: the next run would take the sweep's files for photos"
            raise UsageError(message, f"give a folder in it or beside it, as `{Path(folder) / 'sweep'}`")
    photos: list[Photo] = []
    failures: list[Failure] = []
    sources = _by_name(config.inputs, config, failures, recursive=config.recursive)
    references = _references(config, len(sources), failures)
    for name, found in sources.items():
        try:
            hq = None if references is None else references.get(name, references.get(""))
            relative = found.relative.with_suffix(OUTPUT_FORMATS[config.format])
            photos.append(_photo(config, name, found.source, relative, hq, paired=references is not None))
        except SrcliError as fault:
            failures.append(Failure(found.source, fault.message, fault.hint))
    if not photos:
        faults = [each.reason if str(each.path) in each.reason else f"`{each.path}`: {each.reason}" for each in failures]
        raise UsageError(joined_faults("no photo can be swept:", faults), failures[0].hint)
    return photos, failures


def digest(path: Path) -> str:
    """What tells a file's content from another's: the first 16 hexadecimal digits of its SHA-256.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            total = hashlib.sha256()
            while block := file.read(1 << 20):
                total.update(block)
            return total.hexdigest()[:16]
    except OSError as fault:
        raise ImageError(f"`{path}` cannot be read: {fault.strerror or fault}", "check the file and its rights") from fault


def _photo(config: SweepConfig, name: str, source: Path, relative: Path, hq: Path | None, *, paired: bool) -> Photo:
    header = probe(source)
    width, height = target_size(header.width, header.height, scale=config.scale)
    for crop in config.crops:
        if crop.left + crop.width > width or crop.top + crop.height > height:
            message = f"`--crop {crop.text}` reaches out of its output of {width} x {height} px"
            raise ImageError(message, "crops are in output pixels; sweep pictures of other sizes apart")
    if hq is not None:
        reference = probe(hq)
        if (reference.width, reference.height) != (width, height):
            sizes = f"{width} x {height} px and its reference {reference.width} x {reference.height} px"
            swapped = reference.width < header.width and reference.height < header.height
            hint = "are the inputs and `--hq` swapped?" if swapped else "give references of `--scale` times the inputs' size"
            raise ImageError(f"its output has {sizes}", hint)
    elif paired:
        raise ImageError(f"it has no reference in `{config.hq}`", "references have the same path, apart from the suffix")
    return Photo(name, source, relative, (width, height), hq)


def _references(config: SweepConfig, inputs: int, failures: list[Failure]) -> dict[str, Path] | None:
    """Name -> reference; the only one of single files has the empty name."""
    if config.hq is None:
        return None
    if config.hq.is_file():
        if inputs > 1:
            raise UsageError(f"`{config.hq}` is one reference for {inputs} inputs", "give a folder of references")
        return {"": config.hq}
    return {name: found.source for name, found in _by_name((str(config.hq),), config, failures, recursive=True).items()}


def _by_name(inputs: Sequence[str], config: SweepConfig, failures: list[Failure], *, recursive: bool) -> dict[str, Found]:
    """Name -> file; what the sweep has written itself is none of its photos. Folders that cannot be listed are failures."""
    named: dict[str, Found] = {}
    faults = []
    left_out = LeftOut()
    for found in find_files(inputs, config.output, recursive=recursive, left_out=left_out):
        name = _normal(found.relative.with_suffix(""))
        first = named.setdefault(name, found)
        if first is not found:
            faults.append(f"`{first.source}` and `{found.source}` are both called `{name}`")
    failures += [Failure(*fault) for fault in left_out.faults]
    if left_out.pictures:
        log.warning("left out: %s; convert them to PNG, JPEG or TIFF", counts_by_suffix(left_out.pictures))
    if faults:
        raise UsageError(
            joined_faults("photos need names of their own:", faults), "suffixes do not count; sweep such photos apart"
        )
    return named


def _normal(path: PurePath) -> str:
    """Equal for names that look equal: some systems take letters with marks apart."""
    return unicodedata.normalize("NFC", path.as_posix())
