"""Which files are read and where each result goes: decided in full before the first picture is opened.

Nothing here looks into a file; the standard library is enough, so that the command line can import it cheaply.
"""

from __future__ import annotations

import errno
import glob
import logging
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from srcli.errors import UsageError, joined_faults
from srcli.images.suffixes import (
    FORMAT_OF_SUFFIX,
    INPUT_SUFFIXES,
    OUTPUT_FORMATS,
    UNREAD_SUFFIXES,
    counts_by_suffix,
    format_of,
)

log = logging.getLogger("srcli")

_NO_FOLDER_SUFFIXES = INPUT_SUFFIXES | {".heic", ".heif", ".jxl"}
_STANDARD_INPUT = ("-", "/dev/stdin")
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Job:
    """One file to read and the file to write for it."""

    source: Path
    target: Path
    map: Path | None = None
    """What leads the painted dials at each place."""


@dataclass(frozen=True)
class Outcome:
    """What became of one job."""

    job: Job
    status: str
    """`done`, `skipped` or `failed`."""
    reason: str = ""
    hint: str = ""
    input_size: tuple[int, int] | None = None
    """(width, height) in pixels, as is `output_size`."""
    output_size: tuple[int, int] | None = None
    seconds: float = 0.0
    """Of the model; pictures that shared batches share it evenly."""
    found: Mapping[str, float] = field(default_factory=dict)
    """Dials that were found for the picture."""


@dataclass(frozen=True)
class Found:
    """An input file and its place below a folder: of results, or of references beside them."""

    source: Path
    relative: Path
    named: bool = False
    """Whether it is an input by itself, not found in a folder or by a glob."""


@dataclass
class _Search:
    """What holds for all inputs of one call, and the faults and pictures of unknown kinds seen so far."""

    output: str
    recursive: bool
    left_out: set[Path]
    faults: list[str] = field(default_factory=list)

    def expand(self, text: str) -> list[Found]:
        """The files that one argument of the command line stands for, in the order of their names."""
        path = Path(text)
        try:
            kind = _type_of(path)
        except OSError as error:
            self.faults.append(f"`{text}` cannot be used: {error.strerror}")
            return []
        if kind == stat.S_IFREG:
            return [Found(path, Path(path.name), named=True)]
        if kind == stat.S_IFDIR:
            return self._several(self._walk(path, path), f"`{text}` is a folder without images")
        if not kind and _MAGIC.search(text):
            return self._several(self._glob(text), f"`{text}` matches no images")
        fault = "is neither a file nor a folder" if kind else "does not exist"
        self.faults.append(f"`{text}` " + ("is standard input, which cannot be read" if text in _STANDARD_INPUT else fault))
        return []

    def _several(self, files: Iterator[Found], none: str) -> list[Found]:
        """`files` by name; where there are none, that is a fault."""
        faults, left_out = len(self.faults), self.left_out
        self.left_out = set()
        found = sorted(files, key=lambda each: each.relative.parts)
        if not found and len(self.faults) == faults:
            others = counts_by_suffix(self.left_out)
            self.faults.append(none + (f", only {others}" if others else ""))
        left_out |= self.left_out
        self.left_out = left_out
        return found

    def _glob(self, pattern: str) -> Iterator[Found]:
        parts = Path(pattern).parts
        fixed = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
        base = Path(*parts[:fixed])
        asked = Path(pattern).suffix.lower()  # `*.dat` asks for such files, and is told of each what it is
        suffixes = INPUT_SUFFIXES | {asked} - {""}
        for match in map(Path, glob.glob(pattern, recursive=True)):  # noqa: PTH207 (Path.glob takes no absolute pattern)
            folder = _leads_to(match, stat.S_IFDIR)
            if self._is_in_output(match, base) or _crosses_link(match, base if "**" in parts else match.parent, folder):
                continue
            yield from self._walk(match, base) if folder else self._taken(match, base, suffixes)

    def _walk(self, folder: Path, base: Path) -> Iterator[Found]:
        for where, folders, names in os.walk(folder, onerror=self._cannot_list):
            here = Path(where)
            folders[:] = [name for name in folders if self.recursive and self._is_input(here / name, base)]
            for name in names:
                if not name.startswith("."):
                    yield from self._taken(here / name, base, INPUT_SUFFIXES)

    def _taken(self, path: Path, base: Path, suffixes: frozenset[str]) -> Iterator[Found]:
        """`path` if it is an image. A broken link is, to be named as such; a pipe, which would never end, is none."""
        kind = path.suffix.lower()
        if kind in suffixes:
            if _leads_to(path, stat.S_IFREG, 0):
                yield Found(path, path.relative_to(base))
        elif kind in UNREAD_SUFFIXES:
            self.left_out.add(path)

    def _is_input(self, folder: Path, base: Path) -> bool:
        return not folder.name.startswith(".") and not self._is_in_output(folder, base)

    def _is_in_output(self, path: Path, base: Path) -> bool:
        """Whether `path` is a result of ours: only where the output folder lies inside the searched `base`."""
        return _is_below(self.output, _key(base)) and (_key(path) == self.output or _is_below(_key(path), self.output))

    def _cannot_list(self, error: OSError) -> None:
        self.faults.append(f"`{error.filename}` cannot be listed: {error.strerror}")


def plan_jobs(
    inputs: Sequence[str],
    output: Path,
    *,
    recursive: bool = True,
    format: str | None = None,
    suffix: str = "",
    overwrite: bool = False,
    left_out: set[Path] | None = None,
) -> list[Job]:
    """Find the input files and give each the file that is written for it.

    A folder's tree is kept below `output`, a glob's relative to its part without wildcards. Hidden files and folders,
    links to folders, and an `output` inside the input are left out; a file that is named by itself is always taken.
    With a `suffix`, what has the name of another's result (`a_x4.png` beside `a.png`) is left out too, unless it would be
    overwritten: it may be a photo that is only called so.

    Args:
        inputs: files, folders and globs (`**` and `~` work); a text is taken as a glob only where no such path exists.
        output: a folder, or, for exactly one input file, a file name with a suffix that can be written.
        recursive: also take what lies in folders below the given ones.
        format: a key of `OUTPUT_FORMATS`; None keeps those, and turns others into PNG.
        suffix: put between the stem and the extension, as in `a_x4.png`.
        overwrite: whether targets that are there will be replaced.
        left_out: as for `find_files`.

    Returns:
        The jobs in the order of `inputs`, by name inside each; no source and no target appears twice.

    Raises:
        UsageError: an input is missing or stands for no image, two inputs have one target, or a target is an input.
            One error names all such faults. Or `output` can be neither folder nor file.
    """
    _check_options(format, suffix)
    found = find_files(inputs, output, recursive=recursive, left_out=left_out)
    if _is_target_file(found, output, format, suffix):
        return _checked([Job(found[0].source, output)])
    jobs = [Job(each.source, output / _renamed(each.relative, format, suffix)) for each in found]
    return _checked(_without_results(found, jobs) if suffix and not overwrite else jobs)


def find_files(inputs: Sequence[str], output: Path, *, recursive: bool = True, left_out: set[Path] | None = None) -> list[Found]:
    """The input files of `plan_jobs`, for a command that gives its results other names.

    Args:
        inputs: files, folders and globs, as there.
        output: a folder; where it lies inside an input, it is left out.
        recursive: also take what lies in folders below the given ones.
        left_out: gets the files found in folders and by globs that are pictures of `UNREAD_SUFFIXES`.

    Raises:
        UsageError: an input is missing or stands for no image; one error names all such faults.
    """
    if not inputs or not all(inputs):
        message = "an input is empty" if inputs else "there is no input"
        raise UsageError(message, "name at least one file, folder or glob; `.` is the current folder")
    search = _Search(_key(output), recursive, set() if left_out is None else left_out)
    # not Path's own, which raises where there is no such user: `~copy.png` may be a file
    found = [each for text in inputs for each in search.expand(os.path.expanduser(text))]  # noqa: PTH111
    if search.faults:
        raise UsageError(
            joined_faults("these inputs cannot be used:", search.faults),
            "check the spelling; relative paths start at the current folder",
        )
    return _without_repeats(found)


def is_done(target: Path) -> bool:
    """Whether an earlier run has written `target`; files are put in place when complete, so any content will do."""
    try:
        return target.is_file() and target.stat().st_size > 0
    except OSError:
        return False


def _check_options(format: str | None, suffix: str) -> None:
    if format is not None and format not in OUTPUT_FORMATS:
        raise UsageError(f"`{format}` is not a format that can be written", f"use one of {', '.join(OUTPUT_FORMATS)}")
    if "/" in suffix or os.sep in suffix:
        raise UsageError(f"the suffix `{suffix}` contains a path separator", "name folders with the output instead")


def _is_target_file(found: Sequence[Found], output: Path, format: str | None, suffix: str) -> bool:
    """Whether `output` is the file to write, not a folder. Says so where it can be neither."""
    try:
        kind = _type_of(output)
    except OSError as error:
        raise UsageError(f"the output `{output}` cannot be used: {error.strerror}", "name another folder") from error
    if kind == stat.S_IFDIR:
        return False
    named = FORMAT_OF_SUFFIX.get(output.suffix.lower())
    if named is None:
        if kind:
            raise UsageError(f"the output `{output}` exists and is no folder", "name another folder")
        if output.suffix.lower() in _NO_FOLDER_SUFFIXES:
            format_of(output)  # raises
        return False
    if len(found) != 1 or not found[0].named:
        raise UsageError(
            f"the output `{output}` is a file name, but the input is or may be more than one file",
            "name a folder, or make a folder of that name first",
        )
    if format not in (None, named):
        raise UsageError(f"the output `{output}` is not a {format} file", "change the name or leave out the format")
    if suffix:
        raise UsageError(f"the output `{output}` is a file name, which gets no suffix", f"put `{suffix}` into the name")
    return True


def _renamed(relative: Path, format: str | None, suffix: str) -> Path:
    if format is not None:
        extension = OUTPUT_FORMATS[format]
    else:
        extension = relative.suffix if relative.suffix.lower() in FORMAT_OF_SUFFIX else ".png"
    return relative.with_name(f"{relative.stem}{suffix}{extension}")


def _without_repeats(found: list[Found]) -> list[Found]:
    """Each file once, at its first place. Links are files of their own: only the path counts."""
    first: dict[str, Found] = {}
    for each in found:
        key = os.path.normcase(os.path.abspath(each.source))  # noqa: PTH100 (Path.resolve follows links)
        known = first.setdefault(key, each)
        if each.named and not known.named:
            first[key] = replace(known, named=True)
    return list(first.values())


def _without_results(found: list[Found], jobs: list[Job]) -> list[Job]:
    """Less what was found, not named, and is what another job writes: the work of an earlier run, beside its photos."""
    writers: dict[str, set[str]] = defaultdict(set)
    for job in jobs:
        writers[_key(job.target)].add(_key(job.source))
    keys = {job: _key(job.source) for job in jobs}
    results = {job for job, each in zip(jobs, found, strict=True) if not each.named and writers[keys[job]] - {keys[job]}}
    if results:
        example = next(job.source for job in jobs if job in results)
        log.info("files taken for results of this command: %d, `%s` for one", len(results), example)
    return [job for job in jobs if job not in results]


def _checked(jobs: list[Job]) -> list[Job]:
    """The jobs, less those that would write the same file from the same pixels."""
    sources = {_key(job.source): job.source for job in jobs}
    by_target: dict[str, Job] = {}
    faults = []
    for job in jobs:
        target = _key(job.target)
        if target in sources:
            faults.append(f"`{job.source}` would overwrite the input `{sources[target]}`")
        first = by_target.setdefault(target, job)
        if _key(first.source) != _key(job.source):
            faults.append(f"`{first.source}` and `{job.source}` would both become `{job.target}`")
    if faults:
        raise UsageError(
            joined_faults("the outputs do not fit beside each other:", faults),
            "choose another output folder or a `--suffix`, delete earlier results that lie among the inputs, keep formats apart, "
            "or process such inputs one by one",
        )
    return list(by_target.values())


def _is_below(inner: str, outer: str) -> bool:
    return inner.startswith(outer.rstrip(os.sep) + os.sep) and inner != outer


def _type_of(path: Path) -> int:
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


def _leads_to(path: Path, *types: int) -> bool:
    with suppress(OSError):
        return _type_of(path) in types
    return 0 in types  # whoever opens it is told why that fails


def _crosses_link(path: Path, base: Path, folder: bool) -> bool:
    """Whether a folder below `base` on the way to `path`, or `path` where it is one, is a link."""
    steps = [path, *path.parents] if folder else path.parents
    return any(step.is_symlink() for step in steps if len(step.parts) > len(base.parts))


def _key(path: Path) -> str:
    """A text that is equal for two spellings of one path."""
    return os.path.normcase(os.path.realpath(path))
