"""Which files are read: those that are named, those of folders and globs, those of a list; and what was met beside them.

Nothing here looks into a file; the standard library is enough, so that the command line can import it cheaply.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from srcli.errors import UsageError, joined_faults
from srcli.images.suffixes import INPUT_SUFFIXES, UNREAD_SUFFIXES, counts_by_suffix

OWN_FOLDER = ".srcli"
"""What runs keep beside their results, which is of no concern to those who look for photos."""
_KINDS_TOLD = 8
_STANDARD_INPUT = ("-", "/dev/stdin")
_MAGIC = re.compile(r"[*?\[]")
_OWN_KINDS = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}


@dataclass(frozen=True, slots=True)
class Found:
    """An input file and its place below a folder: of results, or of references beside them.

    It keeps texts and makes paths of them when it is asked, since those of a million files would take a gigabyte.
    """

    base: str
    """The searched folder."""
    place: str
    """Of the file below it, with `/`."""
    named: bool = False
    """Whether it is an input by itself, not found in a folder or by a glob."""
    listed: str = ""
    """Its path as a list has it, which need not begin with the folder."""

    @property
    def text(self) -> str:
        """Its path."""
        return self.listed or os.path.join(self.base, self.place)  # noqa: PTH118 (a path takes a hundred times as long)

    @property
    def source(self) -> Path:
        """Its path."""
        return Path(self.text)

    @property
    def relative(self) -> Path:
        """`place` as a path."""
        return Path(self.place)


class Fault(NamedTuple):
    """A file or folder that cannot be used, while the others can."""

    path: Path
    reason: str
    hint: str


@dataclass
class LeftOut:
    """What a search met that becomes no input."""

    pictures: set[Path] = field(default_factory=set)
    """Of `UNREAD_SUFFIXES`."""
    others: Counter[str] = field(default_factory=Counter)
    """Kind -> how many files: a suffix (lower case), or a word such as `pipe`."""
    results: int = 0
    """How many results of earlier runs."""
    faults: list[Fault] = field(default_factory=list)
    """Folders that cannot be listed, and what else concerns some files only."""

    def count(self, name: str, kind: int) -> None:
        """Count a file by its name and what `type_of` tells of it."""
        word = "hidden file" if name.startswith(".") else Path(name).suffix.lower() or "extensionless file"
        self.others[_OWN_KINDS.get(kind, word)] += 1

    def merge(self, other: LeftOut) -> None:
        """Take over what another search met."""
        self.pictures |= other.pictures
        self.others += other.others
        self.results += other.results
        self.faults += other.faults


class _Entry(NamedTuple):
    path: Path
    is_folder: bool
    is_link: bool


@dataclass
class _Search:
    """What holds for all inputs of one call, and what was met so far."""

    output: str
    recursive: bool
    left_out: LeftOut = field(default_factory=LeftOut)
    faults: list[str] = field(default_factory=list)
    """Of the inputs themselves."""

    def expand(self, text: str) -> list[Found]:
        """The files that one argument of the command line stands for, in the order of their names."""
        path = Path(text)
        try:
            kind = type_of(path)
        except OSError as error:
            self.faults.append(f"`{text}` cannot be used: {error.strerror}")
            return []
        if kind == stat.S_IFREG:
            return [Found(str(path.parent), path.name, named=True)]
        if kind == stat.S_IFDIR:
            return self._several(self._walk(path, path), path, f"`{text}` is a folder without images")
        if not kind and _MAGIC.search(text):
            return self._several(self._glob(text), path, f"`{text}` matches no images")
        fault = "is neither a file nor a folder" if kind else "does not exist"
        self.faults.append(f"`{text}` " + ("is standard input, which cannot be read here" if text in _STANDARD_INPUT else fault))
        return []

    def _several(self, files: Iterator[Found], argument: Path, none: str) -> list[Found]:
        """`files` by name; where there are none, or `argument` cannot be listed itself, that is a fault."""
        before, self.left_out = self.left_out, LeftOut()
        found = sorted(files, key=lambda each: each.place.replace("/", "\0"))  # by the parts of the paths
        itself = [fault.reason for fault in self.left_out.faults if fault.path == argument]
        if itself:
            self.faults += itself
        elif not found and not self.left_out.faults:
            others = counts_by_suffix(self.left_out.pictures) or counted_kinds(self.left_out.others)
            self.faults.append(none + (f", only {others}" if others else ""))
        before.merge(self.left_out)
        self.left_out = before
        return found

    def _glob(self, pattern: str) -> Iterator[Found]:
        parts = Path(pattern).parts
        fixed = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
        base = Path(*parts[:fixed])
        asked = Path(pattern).suffix.lower()  # `*.dat` asks for such files, and is told of each what it is
        suffixes = INPUT_SUFFIXES | {asked} - {""}
        self._tell_unlisted(base, parts[fixed:-1])
        for match in map(Path, glob.glob(pattern, recursive=True)):  # noqa: PTH207 (Path.glob takes no absolute pattern)
            folder = _leads_to(match, stat.S_IFDIR)
            if self._is_in_output(match, base) or _crosses_link(match, base if "**" in parts else match.parent, folder):
                continue
            yield from self._walk(match, base) if folder else self._taken(match, base, suffixes)

    def _tell_unlisted(self, folder: Path, patterns: Sequence[str]) -> None:
        """`glob` passes over folders that it cannot list: look for those on the way, by the pattern of each level."""
        for entry in self._entries(folder) if patterns else ():
            if not entry.is_folder or entry.path.name.startswith(".") or self._is_in_output(entry.path, folder):
                continue
            if patterns[0] == "**" and not entry.is_link:
                self._tell_unlisted(entry.path, patterns)
            elif fnmatch(entry.path.name, patterns[0]):
                self._tell_unlisted(entry.path, patterns[1:])

    def _walk(self, folder: Path, base: Path) -> Iterator[Found]:
        waiting = [folder]
        while waiting:
            for path, is_folder, is_link in self._entries(waiting.pop()):
                if is_folder and (path.name == OWN_FOLDER or self._is_in_output(path, base)):
                    continue
                if is_folder and (is_link or path.name.startswith(".")):
                    self.left_out.others["hidden folder" if path.name.startswith(".") else "folder link"] += 1
                elif is_folder:
                    waiting += [path] if self.recursive else []
                elif path.name.startswith("."):
                    self.left_out.count(path.name, stat.S_IFREG)
                else:
                    yield from self._taken(path, base, INPUT_SUFFIXES)

    def _entries(self, folder: Path) -> Iterator[_Entry]:
        """What lies in a folder, as far as it can be listed; where it cannot, that is told."""
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    is_folder = False
                    with suppress(OSError):  # a file then, to be told of when it is opened
                        is_folder = entry.is_dir()
                    yield _Entry(folder / entry.name, is_folder, entry.is_symlink())
        except OSError as error:
            reason = f"`{folder}` cannot be listed: {error.strerror or error}"
            self.left_out.faults.append(Fault(folder, reason, "check the folder and your rights to it, then repeat the command"))

    def _taken(self, path: Path, base: Path, suffixes: frozenset[str]) -> Iterator[Found]:
        """`path` if it is an image. A broken link is, to be named as such; a pipe, which would never end, is none."""
        suffix = path.suffix.lower()
        if suffix in suffixes and _leads_to(path, stat.S_IFREG, 0):
            yield Found(str(base), path.relative_to(base).as_posix())
        elif suffix in UNREAD_SUFFIXES:
            self.left_out.pictures.add(path)
        else:
            kind = 0
            with suppress(OSError):
                kind = type_of(path)
            self.left_out.count(path.name, kind)

    def _is_in_output(self, path: Path, base: Path) -> bool:
        """Whether `path` is a result of ours: only where the output folder lies inside the searched `base`."""
        return _is_below(self.output, key_of(base)) and (key_of(path) == self.output or _is_below(key_of(path), self.output))


def find_files(inputs: Sequence[str], output: Path, *, recursive: bool = True, left_out: LeftOut | None = None) -> list[Found]:
    """The input files that arguments of a command line stand for.

    Args:
        inputs: files, folders and globs (`**` and `~` work); a text is taken as a glob only where no such path exists.
        output: a folder; where it lies inside an input, it is left out.
        recursive: also take what lies in folders below the given ones.
        left_out: gets what folders and globs hold beside. None makes an error of faults that concern some files only.

    Raises:
        UsageError: an input is missing or stands for no image; one error names all such faults.
    """
    if not inputs or not all(inputs):
        message = "an input is empty" if inputs else "there is no input"
        raise UsageError(message, "name at least one file, folder or glob; `.` is the current folder")
    search = _Search(key_of(output), recursive)
    # not Path's own, which raises where there is no such user: `~copy.png` may be a file
    found = [each for text in inputs for each in search.expand(os.path.expanduser(text))]  # noqa: PTH111
    faults = search.faults + ([fault.reason for fault in search.left_out.faults] if left_out is None else [])
    if faults:
        raise UsageError(
            joined_faults("these inputs cannot be used:", faults),
            "check the spelling and your rights there; relative paths start at the current folder",
        )
    if left_out is not None:
        left_out.merge(search.left_out)
    return without_repeats(found)


def find_listed(paths: Sequence[str], left_out: LeftOut) -> list[Found]:
    """The files of a list, each with its path below the folder that is common to all.

    A file that is missing is among them, since whoever opens it tells so.

    Args:
        paths: of files, taken as they are; folders are counted in `left_out`, and pipes are faults of it.
        left_out: gets what is no file.

    Raises:
        UsageError: the list holds no files, or files of several drives.
    """
    files = []
    for path in map(Path, paths):
        kind = 0
        with suppress(OSError):
            kind = type_of(path)
        if kind in (0, stat.S_IFREG):
            files.append(path)
        elif kind == stat.S_IFDIR:
            left_out.others["folder"] += 1
        else:
            left_out.faults.append(Fault(path, f"`{path}` is neither a file nor a folder", "take it off the list"))
    if not files:
        raise UsageError("the list of files names no file", "give one path a line, or end each by a NUL with `--null`")
    places = [Path(os.path.abspath(path)) for path in files]  # noqa: PTH100 (Path.resolve follows links)
    try:
        root = os.path.commonpath([place.parent for place in places])
    except ValueError as fault:
        raise UsageError("the list names files of several drives", "give a list for each drive") from fault
    below = (place.relative_to(root).as_posix() for place in places)
    found = [Found(root, place, named=True, listed=str(path)) for path, place in zip(files, below, strict=True)]
    return without_repeats(found)


def without_repeats(found: list[Found]) -> list[Found]:
    """Each file once, at its first place. Links are files of their own: only the path counts."""
    several = repeated(map(_spelt, found))
    if not several:
        return found
    first: dict[str, int] = {}
    kept: list[Found] = []
    for each in found:
        key = _spelt(each)
        if hash(key) in several and first.setdefault(key, len(kept)) < len(kept):
            kept[first[key]] = replace(kept[first[key]], named=kept[first[key]].named or each.named)
        else:
            kept.append(each)
    return kept


def _spelt(found: Found) -> str:
    return os.path.normcase(os.path.abspath(found.text))  # noqa: PTH100 (Path.resolve follows links)


def repeated(keys: Iterable[str]) -> set[int]:
    """The hashes that several keys have: mostly none, and found in a small part of the memory that the keys would take."""
    hashes = sorted(map(hash, keys))
    return {one for one, other in pairwise(hashes) if one == other}


def counted_kinds(kinds: Counter[str]) -> str:
    """`200 .ico, 2 pipes`: the most first, of many kinds the first ones."""
    most = sorted(kinds.items(), key=lambda each: (-each[1], each[0]))
    told = [f"{count} {kind}{'s' if count > 1 and not kind.startswith('.') else ''}" for kind, count in most[:_KINDS_TOLD]]
    rest = sum(count for _, count in most[_KINDS_TOLD:])
    return ", ".join([*told, f"{rest} of other kinds"] if rest else told)


def type_of(path: Path) -> int:
    """What `path` leads to, as `stat.S_IFREG` and the like; 0 if nothing.

    Raises:
        OSError: the system does not tell: no right to look there, a name that is too long, links in a circle.
    """
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EINVAL):  # the last on Windows, for what can be no name there
            return 0
        raise


def key_of(path: Path) -> str:
    """A text that is equal for two spellings of one path."""
    return os.path.normcase(os.path.realpath(path))


def _is_below(inner: str, outer: str) -> bool:
    return inner.startswith(outer.rstrip(os.sep) + os.sep) and inner != outer


def _leads_to(path: Path, *types: int) -> bool:
    with suppress(OSError):
        return type_of(path) in types
    return 0 in types  # whoever opens it is told why that fails


def _crosses_link(path: Path, base: Path, folder: bool) -> bool:
    """Whether a folder below `base` on the way to `path`, or `path` where it is one, is a link."""
    steps = [path, *path.parents] if folder else path.parents
    return any(step.is_symlink() for step in steps if len(step.parts) > len(base.parts))
