"""Which photos a run trains on, and which ones it is judged by: no photo is both."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from srcli.config.training import TrainConfig
from srcli.console import counted
from srcli.errors import UsageError
from srcli.families import families
from srcli.training.data.sources import Photo, Source, find_sources, tell_skipped

log = logging.getLogger("srcli")


def find_photos(config: TrainConfig, *, shown: bool = True) -> tuple[list[Source], list[Photo]]:
    """The photos to train on and those to validate on; what is skipped is named.

    Raises:
        UsageError: a source that cannot be used, or of which `--val` takes all photos.
    """
    crop, scale, raw = config.recipe.crop, config.scale, families()[config.family].raw_input
    sources, skipped = find_sources(config.data, crop, scale, raw=raw)
    held_out: list[Photo] = []
    if config.val == "":
        sources, held_out = hold_out(sources, config.val_images, config.seed)
    elif config.val != "none":
        found, more = find_sources([config.val], crop, scale, raw=raw)
        skipped += more
        held_out = [photo for source in found for photo in source.photos][: config.val_images]
        sources = _apart(sources, held_out, config, shown=shown)
    if shown:
        tell_skipped(skipped)
        count = sum(len(source.photos) for source in sources)
        where = "held out of them" if config.val == "" else "apart"
        log.info("%s to train on, %d for validation %s", counted(count, "photo"), len(held_out), where)
        if config.val == "" and not held_out:
            log.info("so few photos leave none for validation: give some with `--val`")
    return sources, held_out


def hold_out(sources: Sequence[Source], count: int, seed: int) -> tuple[list[Source], list[Photo]]:
    """Take photos out of the sources for validation: at most `count`, at most a twentieth of all, and never a source's last one.

    A file that several sources name, in whatever spelling, is one photo. The seed decides which are taken.
    """
    every: dict[Path, Photo] = {}
    for photo in (photo for source in sources for photo in source.photos):
        every.setdefault(photo.hq.resolve(), photo)
    number = min(count, len(every) // 20)
    left = [{photo.hq.resolve() for photo in source.photos} for source in sources]
    files, chosen = list(every), set[Path]()
    for index in np.random.default_rng([seed, 7]).permutation(len(files)):
        file = files[index]
        if len(chosen) == number:
            break
        if {file} not in left:
            chosen.add(file)
            for files_left in left:
                files_left.discard(file)
    return _without(sources, chosen), sorted((every[file] for file in chosen), key=lambda photo: str(photo.hq))


def _apart(sources: Sequence[Source], held_out: Sequence[Photo], config: TrainConfig, *, shown: bool) -> list[Source]:
    """The sources less the photos of `--val`."""
    left = _without(sources, {photo.hq.resolve() for photo in held_out})
    empty = [text for text, source in zip(config.data, left, strict=True) if not source.photos]
    if empty:
        message = f"`--val {config.val}` takes all photos of `--data {empty[0]}`"
        raise UsageError(
            message, "give other photos to validate on, or fewer (`--val-images`); without `--val` a few are held out"
        )
    both = sum(len(source.photos) for source in sources) - sum(len(source.photos) for source in left)
    if both and shown:
        log.info("%s of `--data` not trained on: `--val` holds the same", counted(both, "photo"))
    return left


def _without(sources: Sequence[Source], files: Collection[Path]) -> list[Source]:
    if not files:
        return list(sources)
    return [replace(source, photos=tuple(p for p in source.photos if p.hq.resolve() not in files)) for source in sources]
