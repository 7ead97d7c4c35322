"""What is read and what is written for it, while the listing goes on: a million names are never in memory at once.

The rules are those of `srcli.images.files`, which plans for folders in full. Here a name is decided as soon as no later one
can change it: in a sorted listing, the files that differ by their extension only stand close together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from srcli.errors import UsageError, joined_faults
from srcli.images.files import EXISTS, OTHERWISE, UNKNOWN, is_done, plan_jobs, result_name
from srcli.images.metadata import is_own_result
from srcli.images.search import OWN_FOLDER, LeftOut, counted_kinds
from srcli.images.suffixes import INPUT_SUFFIXES, UNREAD_SUFFIXES, counts_by_suffix, format_of
from srcli.remote.faults import StoreError
from srcli.remote.known import Made, Makers, Results, digest_of
from srcli.remote.ledger import Found, StoreLedger, found_in
from srcli.remote.store import Entry, Stores
from srcli.remote.urls import Place, Url, is_url, parsed, relative_fault, trees
from srcli.shards.ledger import Ledger
from srcli.shards.shard import Shard

_RENAME = "rename one of them, or process one into another output folder"


@dataclass(frozen=True)
class Item:
    """One photo and where its result goes."""

    source: Place
    target: Place
    place: str
    """Of the photo below what was asked for, with `/`."""
    result: str = ""
    """Of the result below the output, with `/`."""
    size: int | None = None
    """Of the photo, in bytes."""
    modified: float | None = None
    """Of the photo, in seconds since 1970."""
    fault: str = ""
    """Why it cannot be done, where its name tells already."""
    hint: str = ""
    kept: str = ""
    """Why there is nothing to do: what is said of its result, which is there."""
    outdated: bool = False
    """Whether the photo is newer than the result that is kept."""


@dataclass(frozen=True)
class _Input:
    """A photo at its place below a folder."""

    entry: Entry
    relative: PurePosixPath
    fault: str = ""


@dataclass(frozen=True)
class Naming:
    """How results are called; see `plan_jobs`."""

    format: str | None = None
    suffix: str = ""

    def of(self, relative: PurePosixPath, *, full: bool = False) -> PurePosixPath:
        """The result's path below the output."""
        return PurePosixPath(result_name(str(relative), self.format, self.suffix, full=full))


@dataclass
class Plan:
    """All that is to be done.

    Args:
        inputs: URLs of objects, folders and globs, and paths.
        output: a folder; or a file, for one input that is named.
        stores: where URLs lead to.
        naming: of the results.
        listed: `inputs` are a list's: files, whatever their names look like.
        recursive: also take what lies in folders below the given ones.
        overwrite: results that are there do not count.
        redo_changed: those do not that are not known to be what would be made.

    Raises:
        UsageError: an input lies where results go, or a package is missing.
        StoreError: the output's store cannot be used.
    """

    inputs: Sequence[str]
    output: Place
    stores: Stores
    naming: Naming = field(default_factory=Naming)
    listed: bool = False
    recursive: bool = True
    overwrite: bool = False
    redo_changed: bool = False
    left_out: LeftOut = field(default_factory=LeftOut)
    """Gets what becomes no photo, while the plan is gone through."""

    def __post_init__(self) -> None:
        urls = [parsed(text) for text in self.inputs if is_url(text)]
        if self.listed and 0 < len(urls) < len(self.inputs):
            raise UsageError("the list holds paths and URLs", "give a list for each")
        for url in urls:
            self.stores.of(url)
        if isinstance(self.output, Url):
            _check_output(self.output, urls)
        self.is_for_a_file = _suffix(self.output) in INPUT_SUFFIXES and not (
            isinstance(self.output, Path) and self.output.is_dir()
        )
        if self.is_for_a_file:
            self._check_file()
        self._there = self._look()
        self._ledger: StoreLedger | Ledger | None = None
        self._makers: Makers | None = None
        self.changed: Counter[str] = Counter()
        """Digest of other settings -> how many results they have made, as far as the plan has been gone through."""

    def items(self) -> Iterator[Item]:
        """One after the other, each as soon as it is decided; no source and no target appears twice.

        Raises:
            UsageError: inputs are missing or stand for no photo; the others were gone through before.
            StoreError: a store cannot be listed (further).
        """
        faults: list[str] = []
        taken: dict[bytes, bytes] | None = {} if len(self.inputs) > 1 and not self.listed else None
        for item in self._all(faults):
            if taken is None or item.fault:
                yield self._looked_up(item)
                continue
            source, target = digest_of(item.source), digest_of(item.target)
            if target not in taken:
                taken[target] = source
                yield self._looked_up(item)
            elif taken[target] != source:
                yield replace(item, fault=f"another input becomes `{item.target}`, too", hint=_RENAME)
        if faults:
            raise UsageError(joined_faults("these inputs cannot be used:", faults), "check the spelling and your rights there")

    def _check_file(self) -> None:
        """What cannot be asked of a result that has a name; see `plan_jobs`."""
        named = format_of(Path(self.output.name))
        if self.listed or len(self.inputs) != 1:
            raise UsageError(f"the output `{self.output}` is a file name, but the input is more than one file", "name a folder")
        if self.naming.format not in (None, named):
            message = f"the output `{self.output}` is not a {self.naming.format} file"
            raise UsageError(message, "change the name or leave out the format")
        if self.naming.suffix:
            message = f"the output `{self.output}` is a file name, which gets no suffix"
            raise UsageError(message, f"put `{self.naming.suffix}` into the name")

    def ledger(self, settings: Mapping[str, Any], shard: Shard | None, folder: Path) -> StoreLedger | Ledger | None:
        """That of the output, which from now on tells what results are; None for one that has a name, beside which none is.

        Args:
            settings: what decides the pixels, for JSON.
            shard: of the run.
            folder: for temporary files.
        """
        if self.is_for_a_file:
            return None
        if isinstance(self.output, Url):
            store = self.stores.of(self.output)
            self._ledger = StoreLedger(store, self.output, settings, shard, self._there, folder)
        else:
            self._ledger = Ledger(self.output, settings, shard)
        self._makers = Makers(self._ledger)
        return self._ledger

    def _look(self) -> Found:
        """What the store holds where results go; it also tells whether the store is there and lets us in."""
        if not isinstance(self.output, Url):
            return Found(Results([]), [])
        store = self.stores.of(self.output)
        if not self.is_for_a_file:
            return found_in(store, self.output, ledgers_only=self.overwrite)
        try:
            entry = store.look(self.output)
        except StoreError as error:
            if not error.missing:
                raise
            entry = None
        return Found(Results([entry] if entry and not self.overwrite else []), [])

    def _all(self, faults: list[str]) -> Iterator[Item]:
        texts = [text for text in self.inputs if not is_url(text)]
        if texts:
            yield from self._of_paths(texts)
        urls = [parsed(text) for text in self.inputs if is_url(text)]
        if self.listed and urls:
            yield from self._named(
                [_input(Entry(url, None, None), str(tree)) for url, tree in zip(urls, trees(urls), strict=True)]
            )
            return
        for url in urls:
            try:
                for group in _groups(self._found(url)):
                    yield from self._named(group)
            except (UsageError, StoreError) as error:
                if isinstance(error, StoreError) and not error.missing:
                    raise
                faults.append(error.message)

    def _of_paths(self, texts: Sequence[str]) -> Iterator[Item]:
        """Paths are few enough to be planned in full."""
        assert isinstance(self.output, Url)
        nowhere = Path("/nowhere") / "results"
        naming, beside = self.naming, self.left_out
        jobs = plan_jobs(
            texts,
            nowhere,
            listed=self.listed,
            recursive=self.recursive,
            format=naming.format,
            suffix=naming.suffix,
            overwrite=self.overwrite,
            is_own=is_own_result,
            left_out=beside,
        )
        for fault in beside.faults:
            yield Item(fault.path, self.output, str(fault.path), fault=fault.reason, hint=fault.hint)
        beside.faults = []
        if self.is_for_a_file and (len(jobs) != 1 or not jobs[0].named):
            raise UsageError(f"the output `{self.output}` is a file name, but the input is or may be more", "name a folder")
        for job in jobs:
            about = job.source.stat() if job.source.is_file() else None
            name = PurePosixPath(job.target.relative_to(nowhere))
            size, modified = (about.st_size, about.st_mtime) if about else (None, None)
            yield Item(job.source, self._target(name), job.place, str(name), size, modified)

    def _found(self, url: Url) -> Iterator[_Input]:
        """The photos that one argument stands for."""
        if url.is_web:
            if not url.key or url.key.endswith("/"):
                raise UsageError(f"`{url}` is a folder of a web server, which cannot be listed")
            yield _input(Entry(url, None, None), url.name)
            return
        store = self.stores.of(url)
        folder, patterns = url, list[str]()
        try:
            entry = store.look(url)
        except StoreError as error:
            if not error.missing or not url.is_pattern:
                raise
            folder, entry = url.fixed, None
            patterns = url.key.removeprefix(folder.below).split("/")
        if entry is not None:
            yield _input(entry, url.name)
            return
        if self.is_for_a_file:
            raise UsageError(f"the output `{self.output}` is a file name, and `{url}` is or may be more than one file")
        yield from self._below(
            folder, patterns, f"`{url}` matches no images" if patterns else f"`{url}` is a folder without images"
        )

    def _below(self, folder: Url, patterns: list[str], none: str) -> Iterator[_Input]:
        """What of a folder is a photo, and matches; the rest is counted."""
        asked = {PurePosixPath(patterns[-1]).suffix.lower()} - {""} if patterns else set()
        met, found = LeftOut(), 0
        for entry in self.stores.of(folder).entries(folder, recursive=self.recursive or bool(patterns)):
            relative = entry.url.key.removeprefix(folder.below)
            if not relative or relative.endswith("/") or (isinstance(self.output, Url) and self.output.holds(entry.url)):
                continue
            parts = relative.split("/")
            if patterns and not _matches(parts, patterns, self.recursive):
                continue
            suffix = _suffix(entry.url)
            if OWN_FOLDER in parts:
                continue
            if any(part.startswith(".") and part not in (".", "..") for part in parts):
                met.others["hidden file"] += 1
            elif suffix in INPUT_SUFFIXES or suffix in asked:
                found += 1
                yield _input(entry, relative)
            elif suffix in UNREAD_SUFFIXES:
                met.pictures.add(Path(relative))
            else:
                met.count(entry.url.name, 0)
        self.left_out.merge(met)
        if not found:
            others = counts_by_suffix(met.pictures) or counted_kinds(met.others)
            raise UsageError(none + (f", only {others}" if others else ""))

    def _named(self, group: Sequence[_Input]) -> Iterator[Item]:
        """Files that would have one result: see `plan_jobs`."""
        sources = {each.entry.url: each for each in group}
        counts = Counter(self.naming.of(each.relative) for each in sources.values() if not each.fault)
        names = {url: self._name(each, counts) for url, each in sources.items() if not each.fault}
        final = Counter(names.values())
        for url, each in sources.items():
            entry = each.entry
            if each.fault:
                yield Item(url, self.output, str(url), fault=f"`{url}` {each.fault}", hint="rename it")
                continue
            name = names[url]
            item = Item(url, self._target(name), each.relative.as_posix(), str(name), entry.size, entry.modified)
            clash = f"`{url}` and another photo would both become `{item.target}`" if final[name] > 1 else ""
            yield replace(item, fault=clash, hint=_RENAME if clash else "")

    def _name(self, each: _Input, counts: Counter[PurePosixPath]) -> PurePosixPath:
        name = self.naming.of(each.relative)
        full = counts[name] > 1 and each.relative.suffix != name.suffix
        return self.naming.of(each.relative, full=True) if full else name

    def _target(self, name: PurePosixPath) -> Place:
        if self.is_for_a_file:
            return self.output
        return self.output.joined(name) if isinstance(self.output, Url) else self.output / name

    def _looked_up(self, item: Item) -> Item:
        """With what is known of its result."""
        if item.fault:
            return item
        made = self._made(item.target)
        if made is None:
            return item
        outdated = bool(made.time and item.modified and item.modified > made.time)
        kept = self._standing(item.result, made, outdated=outdated)
        if self.redo_changed and kept != EXISTS:
            return item
        return replace(item, kept=kept, outdated=outdated)

    def _made(self, target: Place) -> Made | None:
        if isinstance(target, Url):
            return self._there.results.made(target)
        if self.overwrite or not is_done(target):
            return None
        about = target.stat()
        return Made(about.st_size, about.st_mtime)

    def _standing(self, result: str, made: Made, *, outdated: bool) -> str:
        if self._makers is None or self._ledger is None:
            return UNKNOWN
        maker = self._makers.of(result, made.size)
        standing = self._ledger.standing(maker, outdated=outdated)
        if maker is not None and standing == OTHERWISE:
            self.changed[maker] += 1
        return standing


def _check_output(output: Url, urls: Sequence[Url]) -> None:
    """No result may take a photo's place, or be found as a photo by the next run."""
    if output.is_web:
        raise UsageError(f"`{output}` is on a web server, which takes no results", "give a folder, or a prefix of a bucket")
    for url in urls:
        if output.holds(url.fixed if url.is_pattern else url):
            raise UsageError(f"`{url}` lies in the output `{output}`", "give the results a prefix of their own")


def _groups(inputs: Iterable[_Input]) -> Iterator[list[_Input]]:
    """Of sorted names, those together that could have one result: all that begin as the first does without its extension."""
    group: list[_Input] = []
    begin = ""
    for each in inputs:
        if group and not str(each.relative).startswith(begin):
            yield group
            group = []
        if not group:
            begin = str(each.relative.with_suffix("")) + "."
        group.append(each)
    if group:
        yield group


def _input(entry: Entry, relative: str) -> _Input:
    fault = relative_fault(relative)
    return _Input(entry, PurePosixPath(entry.url.name if fault else relative), fault)


def _matches(parts: Sequence[str], patterns: Sequence[str], recursive: bool) -> bool:
    """Whether a path matches, or lies in a folder that does."""
    if not patterns:
        return recursive or not parts
    if patterns[0] == "**" and _matches(parts, patterns[1:], recursive):
        return True
    rest = patterns if patterns[0] == "**" else patterns[1:]
    return bool(parts) and (patterns[0] == "**" or fnmatchcase(parts[0], patterns[0])) and _matches(parts[1:], rest, recursive)


def _suffix(place: Place) -> str:
    return PurePosixPath(place.name).suffix.lower()
