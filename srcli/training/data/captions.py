"""The positive prompts of training with CSD: a caption of each photo, from a list, from files beside them or from a model."""

from __future__ import annotations

import logging
import os
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import torch

from srcli.console import counted
from srcli.disk import NAMES, write_whole
from srcli.errors import ModelError, OutOfMemoryError, UsageError, joined_faults
from srcli.training.data.captioner import CAPTIONERS, captioned, one_line

log = logging.getLogger("srcli")

FIXED = "fixed"
SIDECAR = "sidecar"
MODEL = "model:"
SAVE_EVERY_S = 30.0

_HEADER = "# srcli captions by "
_SOURCES = "`--captions` takes `fixed`, `sidecar`, a list file (photo, tab, caption), or `model:REPO_OR_DIR`"


@dataclass(frozen=True)
class Captions:
    """What was found for some photos.

    Attributes:
        by_path: the captions, each one line and not empty, by the photos' paths as they were given.
        missing: the photos without one, in their order.
    """

    by_path: dict[Path, str]
    missing: list[Path]


def full_prompt(caption: str, suffix: str) -> str:
    """`caption, suffix`, or the one of them that is not empty."""
    return ", ".join(part for part in (caption.strip(), suffix.strip()) if part)


def read_captions(source: str, photos: Sequence[Path], *, cache: Path, device: torch.device) -> Captions:
    """The captions of `photos`.

    In a run of several processes the main one must come first: the others then find everything in `cache`.

    Args:
        source: one of
            "" or `fixed`: no captions, and none missing;
            `sidecar`: `photo.jpg` has its caption in `photo.txt`;
            `model:REPO_OR_DIR`: an image-to-text model of transformers makes them, in batches, before training;
            else a file of lines `photo<TAB>caption` in UTF-8, where blank lines and those with # in front do not count;
            a photo is named relative to the file, in full, or by so much of its path's end as tells it from others.
        photos: the files.
        cache: a list file that keeps what a model made; only other photos are captioned the next time.
        device: where the model runs.

    Raises:
        UsageError: a list or caption that cannot be read, faulty lines (all are named), or no caption for any photo.
        ModelError: the model is not there, or cannot caption.
        ImageError: a photo that the model is to caption cannot be read.
        OutOfMemoryError: the model does not fit.
    """
    if source in ("", FIXED):
        return Captions({}, [])
    if source == SIDECAR:
        found = _from_sidecars(photos)
    elif source.startswith(MODEL):
        found = _from_model(source.removeprefix(MODEL), photos, cache, device)
    else:
        found = _from_list(Path(source), photos)
    by_path = {photo: caption for photo in photos if (caption := found.get(_full(photo)))}
    if photos and not by_path:
        raise UsageError(f"`{source}` has no caption for any of the {len(photos)} photos", _no_caption_hint(source, photos[0]))
    return Captions(by_path, [photo for photo in dict.fromkeys(photos) if photo not in by_path])


# Files beside the photos, and lists ----------------------------------------------------------------------------------


def _from_sidecars(photos: Sequence[Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    faults: list[str] = []
    for photo in photos:
        file = photo.with_suffix(".txt")
        try:
            found[_full(photo)] = one_line(file.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            continue
        except UnicodeDecodeError:
            faults.append(f"`{file}` is not UTF-8")
        except OSError as fault:
            faults.append(f"`{file}`: {fault.strerror or fault}")
    if faults:
        raise UsageError(joined_faults("cannot read all captions", faults), "save them as plain text in UTF-8, or remove them")
    return found


def _from_list(file: Path, photos: Sequence[Path]) -> dict[str, str]:
    """Captions by the photos' full paths."""
    if not file.is_file():
        raise UsageError(f"the list of captions `{file}` is {'a folder' if file.is_dir() else 'missing'}", _SOURCES)
    faults: list[str] = []
    index = _Index(photos)
    entries = _entries(file, faults, named=lambda path: bool(index.find(path, file.parent)))
    lines: dict[str, int] = {}
    found: dict[str, str] = {}
    for line, path, caption in entries:
        hits = index.find(path, file.parent)
        if len(hits) > 1:
            faults.append(f"line {line}: `{path}` may be `{hits[0]}` or `{hits[1]}`: write more of the path")
        elif hits and found.get(hits[0], caption) != caption:
            faults.append(f"line {line}: `{path}` has another caption on line {lines[hits[0]]}")
        elif hits:
            found[hits[0]], lines[hits[0]] = caption, line
    if faults:
        raise UsageError(joined_faults(f"cannot use the list of captions `{file}`", faults), _LINE_HINT)
    return found


_LINE_HINT = "a line is the photo's path, one tab, and the caption, in UTF-8; # begins a comment"


def _entries(
    file: Path, faults: list[str], errors: str = "strict", named: Callable[[str], bool] = lambda path: False
) -> list[tuple[int, str, str]]:
    """Line number, path and caption of each line that counts; the others' faults, in as few words as possible.

    A line that begins with # is a comment, unless a photo is `named` so.
    """
    entries: list[tuple[int, str, str]] = []
    wrong: dict[str, list[int]] = {"not UTF-8": [], "without a tab": [], "with more than one tab": [], "without a path": []}
    try:
        content = file.read_bytes()
    except OSError as fault:
        raise UsageError(f"cannot read `{file}`: {fault.strerror or fault}", "check the rights of the file") from fault
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            line = raw.decode("utf-8", errors).strip("\r")
        except UnicodeDecodeError:
            wrong["not UTF-8"].append(number)
            continue
        path, *captions = line.split("\t")
        if not line.strip() or (line.startswith("#") and not (captions and named(path.strip()))):
            continue
        if not captions:
            wrong["without a tab"].append(number)
        elif len(captions) > 1:
            wrong["with more than one tab"].append(number)
        elif not path.strip():
            wrong["without a path"].append(number)
        else:
            entries.append((number, path.strip(), one_line(captions[0])))
    faults += [f"{fault}: {_ranges(numbers)}" for fault, numbers in wrong.items() if numbers]
    return entries


def _ranges(numbers: list[int]) -> str:
    """`[2, 4, 5, 6]` as `lines 2, 4-6`."""
    known = set(numbers)
    firsts = [number for number in numbers if number - 1 not in known]
    lasts = [number for number in numbers if number + 1 not in known]
    runs = (f"{first}" if first == last else f"{first}-{last}" for first, last in zip(firsts, lasts, strict=True))
    return f"line{'s' * (len(numbers) > 1)} {', '.join(runs)}"


class _Index:
    """The photos by full path and by name."""

    def __init__(self, photos: Sequence[Path]) -> None:
        self.full = {_full(photo) for photo in photos}
        self.by_name: dict[str, list[str]] = {}
        for path in sorted(self.full):
            self.by_name.setdefault(PurePath(path).name, []).append(path)

    def find(self, path: str, folder: Path) -> list[str]:
        """The photo at `path`, seen from `folder`; else all whose paths end so."""
        exact = _full(folder / path)
        if exact in self.full:
            return [exact]
        parts = PurePath(unicodedata.normalize("NFC", path)).parts
        return [full for full in self.by_name.get(parts[-1], []) if PurePath(full).parts[-len(parts) :] == parts]


def _full(path: Path) -> str:
    """Absolute, with one spelling of accents: macOS writes them in another one than people type."""
    return unicodedata.normalize("NFC", os.path.abspath(path))  # noqa: PTH100 - links stay what they are


def _no_caption_hint(source: str, photo: Path) -> str:
    if source == SIDECAR:
        return f"the caption of `{photo}` is looked for in `{photo.with_suffix('.txt')}`"
    if source.startswith(MODEL):
        return f"the model says nothing: {CAPTIONERS}"
    return f"a line for the first photo could begin with `{_full(photo)}`, then a tab and the caption"


# A model -------------------------------------------------------------------------------------------------------------


def _from_model(name: str, photos: Sequence[Path], cache: Path, device: torch.device) -> dict[str, str]:
    origin = _model_origin(name)
    known = _read_cache(cache, origin)
    left = [photo for photo in dict.fromkeys(photos) if _full(photo) not in known]
    if not left:
        return known
    had = counted(len(known), "caption")
    log.info("captioning %s with `%s`; `%s` holds %s", counted(len(left), "photo"), name, cache, had)
    new: dict[str, str] = {}
    with torch.random.fork_rng(devices=[]):  # a resumed run, which finds all captions, sees the same random numbers
        try:
            for batch, texts in captioned(left, origin, device):
                new.update(zip(map(_full, batch), texts, strict=True))
                if _cache_is_due(cache):
                    _write_cache(cache, origin, {**known, **new})
        except torch.OutOfMemoryError as fault:
            raise OutOfMemoryError(f"`{name}` does not fit into the memory of `{device}`", "take a smaller model") from fault
        finally:
            if new:
                _write_cache(cache, origin, {**known, **new})
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return {**known, **new}


def _model_origin(name: str) -> str:
    """The full path of a folder, or a repository's name as it is."""
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return _full(folder)
    if not name or name.startswith((".", "~", os.sep)) or name.count("/") > 1:
        raise ModelError(f"the captioning model `{name}` is no folder", "give a folder, or owner/name on the hub, after `model:`")
    return name


# What a model made ---------------------------------------------------------------------------------------------------


def _read_cache(cache: Path, origin: str) -> dict[str, str]:
    """Captions by full path; none where there is no file, or one by another model."""
    if not cache.exists():
        return {}
    with cache.open(encoding="utf-8", errors="surrogateescape", newline="\n") as stream:
        header = stream.readline().rstrip("\n")
    if not header.startswith(_HEADER):
        raise UsageError(f"`{cache}` is no file of srcli's captions", "it would be written over: move it away")
    if header != _HEADER + origin:
        log.info("the captions in `%s` are by `%s`: they are made anew by `%s`", cache, header.removeprefix(_HEADER), origin)
        return {}
    faults: list[str] = []
    entries = _entries(cache, faults, "surrogateescape")
    if faults:
        raise UsageError(joined_faults(f"`{cache}` is damaged", faults), "correct these lines, or delete the file")
    return {path: caption for _, path, caption in entries}


def _write_cache(cache: Path, origin: str, captions: dict[str, str]) -> None:
    """Whole or not at all. A name that holds a tab or an end of line has no place in it."""
    lines = [f"{path}\t{caption}" for path, caption in captions.items() if not set("\t\r\n").intersection(path)]
    try:
        write_whole(cache, "\n".join([_HEADER + origin, *lines, ""]).encode("utf-8", NAMES))
    except OSError as fault:
        raise UsageError(f"cannot write `{cache}`: {fault.strerror or fault}", "check the space and the rights") from fault


def _cache_is_due(cache: Path) -> bool:
    return not cache.exists() or time.time() - cache.stat().st_mtime > SAVE_EVERY_S
