"""Where each result goes: decided in full before the first picture is opened, and so that no original is in danger.

Nothing here decodes a file; the standard library is enough, so that the command line can import it cheaply.
"""

from __future__ import annotations

import logging
import os
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, compress
from pathlib import Path
from typing import overload

from srcli import disk
from srcli.errors import UsageError, joined_faults
from srcli.images.search import Fault, Found, LeftOut, find_files, find_listed, key_of, repeated, type_of
from srcli.images.suffixes import FORMAT_OF_SUFFIX, INPUT_SUFFIXES, OUTPUT_FORMATS, format_of

log = logging.getLogger("srcli")

_FAULTS_TOLD = 20
_HEAD_BYTES = 1 << 16

EXISTS, ELSEWHERE = "exists", "another run is making it"
OTHERWISE, UNKNOWN, OUTDATED = (
    "exists, made with other settings",
    "exists, made with settings that are not known",
    "exists, older than its photo",
)
"""Why a job is skipped."""


@dataclass(frozen=True, slots=True)
class Job:
    """One file to read and the file to write for it."""

    source: Path
    target: Path
    map: Path | None = None
    """What leads the painted dials at each place."""
    named: bool = field(default=True, compare=False)
    """Whether the source is an input by itself, not found in a folder or by a glob."""
    place: str = field(default="", compare=False)
    """Of the source below the searched folder, with `/`."""


@dataclass(frozen=True)
class Jobs(Sequence[Job]):
    """Jobs that are made when they are asked for: what is kept of each is a text, since a plan may have a million."""

    found: Sequence[Found]
    output: Path
    format: str | None = None
    suffix: str = ""
    full: frozenset[Found] = frozenset()
    """Those that keep their extension in their results' names."""
    to_file: bool = False
    """Whether `output` is the file of the only one."""
    map_of: Callable[[Job], Path | None] | None = None
    """Finds what leads the dials of a job."""

    @overload
    def __getitem__(self, index: int) -> Job: ...
    @overload
    def __getitem__(self, index: slice) -> Jobs: ...
    def __getitem__(self, index: int | slice) -> Job | Jobs:
        return replace(self, found=self.found[index]) if isinstance(index, slice) else self.job(self.found[index])

    def __len__(self) -> int:
        return len(self.found)

    def job(self, found: Found) -> Job:
        """Of an input."""
        job = Job(found.source, Path(self.target(found)), named=found.named, place=found.place)
        return job if self.map_of is None else replace(job, map=self.map_of(job))

    def target(self, found: Found) -> str:
        """The path of an input's result."""
        name = result_name(found.place, self.format, self.suffix, full=found in self.full) if not self.to_file else ""
        return os.path.join(self.output, name) if name else str(self.output)  # noqa: PTH118 (as of `Found.text`)

    def chosen(self, keep: Iterable[bool]) -> Jobs:
        """Those that `keep` is true for."""
        return replace(self, found=list(compress(self.found, keep)))

    def without(self, found: Collection[Found]) -> Jobs:
        """The others."""
        return replace(self, found=[each for each in self.found if each not in found]) if found else self


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


def plan_jobs(
    inputs: Sequence[str],
    output: Path,
    *,
    listed: bool = False,
    recursive: bool = True,
    format: str | None = None,
    suffix: str = "",
    overwrite: bool = False,
    is_own: Callable[[Path], bool] | None = None,
    left_out: LeftOut | None = None,
) -> Jobs:
    """Find the input files and give each the file that is written for it.

    A folder's tree is kept below `output`, a glob's relative to its part without wildcards, a list's below the folder that
    is common to all. Hidden files and folders, links to folders, and an `output` inside the input are left out; a file that
    is named by itself is always taken. With a `suffix`, what has the name of another's result (`a_x4.png` beside `a.png`) is
    left out too, unless it would be overwritten: it may be a photo that is only called so.

    Of files that would have one result, as `a.gif` and `a.png`, the one that is called like it keeps that name, and the
    others' results are called by their full names, `a.gif.png`. What collides nevertheless becomes a fault of `left_out`.

    Args:
        inputs: files, folders and globs (`**` and `~` work); a text is taken as a glob only where no such path exists.
        output: a folder, or, for exactly one input file, a file name with a suffix that can be written.
        listed: `inputs` are a list's paths: files, whatever their names look like.
        recursive: also take what lies in folders below the given ones.
        format: a key of `OUTPUT_FORMATS`; None keeps those, and turns others into PNG.
        suffix: put between the stem and the extension, as in `a_x4.png`.
        overwrite: whether targets that are there will be replaced.
        is_own: tells results of earlier runs, which are left out where they lie among photos: they would be enlarged again.
            A folder of nothing else is meant as it is.
        left_out: gets what becomes no job. None makes an error of faults that concern some files only.

    Returns:
        The jobs in the order of `inputs`, by name inside each; no source and no target appears twice.

    Raises:
        UsageError: an input is missing or stands for no image, or a target is an input. One error names all such faults.
            Or `output` can be neither folder nor file.
    """
    _check_options(format, suffix)
    beside = LeftOut() if left_out is None else left_out
    found = find_listed(inputs, beside) if listed else find_files(inputs, output, recursive=recursive, left_out=left_out)
    found = found if is_own is None else _without_own(found, is_own, beside)
    jobs = Jobs(found, output, format, suffix, to_file=_is_target_file(found, output, format, suffix))
    if not jobs.to_file:
        jobs = _without_results(jobs) if suffix and not overwrite else jobs
        jobs = _with_full_names(jobs)
    _refuse_overwriting(jobs)
    jobs, faults = _apart(jobs)
    beside.faults += faults
    if left_out is None and beside.faults:
        raise UsageError(
            joined_faults("these inputs cannot be used:", [fault.reason for fault in beside.faults]), beside.faults[0].hint
        )
    return jobs


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
        kind = type_of(output)
    except OSError as error:
        raise UsageError(f"the output `{output}` cannot be used: {error.strerror}", "name another folder") from error
    if kind == stat.S_IFDIR:
        return False
    there = next((each for each in output.parents if os.path.lexists(each)), output.parent)
    if not kind and not there.is_dir():
        raise UsageError(f"the output `{output}` cannot be made: `{there}` is no folder", "give another `--output`")
    named = FORMAT_OF_SUFFIX.get(output.suffix.lower())
    if named is None:
        if kind:
            raise UsageError(f"the output `{output}` exists and is no folder", "name another folder")
        if output.suffix.lower() in INPUT_SUFFIXES:
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


def result_name(place: str, format: str | None, suffix: str, *, full: bool = False) -> str:
    """The path of a result below the output, by its input's; `full` keeps the input's extension in it."""
    folder, slash, name = place.rpartition("/")
    own = suffix_of(name)
    extension = (own if own.lower() in FORMAT_OF_SUFFIX else ".png") if format is None else OUTPUT_FORMATS[format]
    return f"{folder}{slash}{name if full else name.removesuffix(own)}{suffix}{extension}"


def suffix_of(name: str) -> str:
    """As of `Path.suffix`."""
    at = name.rfind(".")
    return name[at:] if 0 < at < len(name) - 1 else ""


class Keys:
    """`key_of`, which asks the disk once for each folder."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def of(self, path: str) -> str:
        """Of a file."""
        return key_of(Path(path)) if os.path.islink(path) else os.path.normcase(self.beside(path))  # noqa: PTH114

    def beside(self, path: str) -> str:
        """The path with links in its folder followed, not those of its name."""
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], name)  # noqa: PTH118


def _without_results(jobs: Jobs) -> Jobs:
    """Less what was found, not named, and is what another job writes: the work of an earlier run, beside its photos."""
    keys = Keys()
    likely: dict[str, list[Found]] = defaultdict(list)
    for each in jobs.found:
        stem = (key := keys.of(each.text)).removesuffix(suffix_of(key))
        if not each.named and stem.endswith(os.path.normcase(jobs.suffix)):
            likely[key].append(each)
    results: dict[Found, None] = {}
    for each in jobs.found if likely else ():
        if (key := keys.of(jobs.target(each))) in likely and key != keys.of(each.text):
            results |= dict.fromkeys(likely[key])
    if results:
        log.info("files taken for results of this command: %d, `%s` for one", len(results), next(iter(results)).source)
    return jobs.without(results)


def _without_own(found: list[Found], is_own: Callable[[Path], bool], left_out: LeftOut) -> list[Found]:
    """Less the results of earlier runs that lie among photos; files that are named by themselves are asked for."""
    own = [each for each in found if not each.named and is_own(each.source)]
    if not own or len(own) == len(found):
        return found
    left_out.results = len(own)
    message = "results of earlier runs are left out: %d, `%s` for one; what is named by itself is enlarged again"
    log.info(message, len(own), own[0].source)
    left = set(own)
    return [each for each in found if each not in left]


def _with_full_names(jobs: Jobs) -> Jobs:
    """Files that differ by extension only have results of different names, whichever of them are there already."""
    groups = _groups(jobs, os.path.normcase)
    several = (group for group in groups if len({key_of(each.source) for each in group}) > 1)
    renamed = [each for group in several for each in group if each.relative.suffix != suffix_of(jobs.target(each))]
    jobs = replace(jobs, full=frozenset(renamed))
    if renamed:
        message = "files that differ from others by their extension only keep it in their results' names: %d, as `%s`"
        log.info(message, len(renamed), jobs.job(renamed[0]).target)
    return jobs


def _groups(jobs: Jobs, key: Callable[[str], str]) -> list[list[Found]]:
    """Of the files whose results have one key, those together; the others, nearly all, are left out."""
    several = repeated(key(jobs.target(each)) for each in jobs.found)
    groups: dict[str, list[Found]] = defaultdict(list)
    for each in jobs.found if several else ():
        if hash(place := key(jobs.target(each))) in several:
            groups[place].append(each)
    return list(groups.values())


def _refuse_overwriting(jobs: Jobs) -> None:
    """No original is replaced, whatever it is called: what counts is which file the disk finds.

    Raises:
        UsageError: targets are inputs; all of them.
    """
    marks = {mark for each in jobs.found for mark in _marks(jobs.target(each))}  # none in a new folder
    inputs = _Inputs([source for each in jobs.found if not marks.isdisjoint(_marks(source := each.text))] if marks else [])
    faults = []
    for each in jobs.found if inputs else ():
        original = inputs.that_is(Path(jobs.target(each)))
        if original is not None:
            faults.append(f"`{each.source}` would overwrite the input `{original}`")
    if faults:
        more = [f"and {len(faults) - _FAULTS_TOLD} more"] if len(faults) > _FAULTS_TOLD else []
        raise UsageError(
            joined_faults("originals are not replaced:", faults[:_FAULTS_TOLD] + more),
            "choose another output folder or a `--suffix`, or delete earlier results that lie among the inputs",
        )


def _marks(path: str) -> tuple[int, ...]:
    """What a file has in common with another path to it: its place on the disk, or name and size; empty where there is none."""
    found = _stat(path)
    if found is None:
        return ()
    alike = hash((folded(Path(path).name), found.st_size))
    return (hash((found.st_dev, found.st_ino)), alike) if found.st_ino else (alike,)


class _Inputs:
    """Finds out whether a file is one of the inputs."""

    def __init__(self, sources: Sequence[str]) -> None:
        self._by_path = {key_of(source): source for source in map(Path, sources)}
        self._by_file: dict[tuple[int, int], Path] = {}
        self._by_size: dict[tuple[str, int], list[Path]] = defaultdict(list)
        self._folders: dict[tuple[Path, Path], bool] = {}
        for source in self._by_path.values():
            found = _stat(source)
            if found is not None:
                self._by_file[found.st_dev, found.st_ino] = source
                self._by_size[folded(source.name), found.st_size].append(source)

    def __bool__(self) -> bool:
        return bool(self._by_path)

    def that_is(self, target: Path) -> Path | None:
        """The input that `target` is, by its path or its place on the disk; None where it is none.

        A volume that is mounted twice may have numbers of its own at each place. Where names, sizes and beginnings are equal,
        the folders are tried whether they are one.
        """
        by_path = self._by_path.get(key_of(target))
        found = _stat(target)
        if by_path is not None or found is None:
            return by_path
        by_file = self._by_file.get((found.st_dev, found.st_ino)) if found.st_ino else None
        if by_file is not None or not found.st_size:
            return by_file
        alike = self._by_size.get((folded(target.name), found.st_size), ())
        likely = (source for source in alike if _head(source) == _head(target))
        return next((source for source in likely if self._are_one(target.parent, source.parent)), None)

    def _are_one(self, first: Path, second: Path) -> bool:
        if (first, second) not in self._folders:
            self._folders[first, second] = disk.one_folder(first, second)
        return self._folders[first, second]


def _stat(path: str | Path) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return None


def _head(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return None


def _apart(jobs: Jobs) -> tuple[Jobs, list[Fault]]:
    """The jobs, each file once, less those that would write the same file, which are faults.

    Names that differ by case or by the way that letters with marks are put together are one file on some disks: only where
    there are such names, the disk is asked.
    """
    keys = Keys()
    faults: dict[Found, Fault] = {}
    repeats: set[Found] = set()
    for group in _groups(jobs, lambda target: folded(keys.beside(target))):
        for other, each in combinations(group, 2):
            first, second = jobs.job(other), jobs.job(each)
            if not _same_place(first.target, second.target, jobs.output):
                continue
            if key_of(first.source) == key_of(second.source):  # the same pixels
                repeats.add(each)
                continue
            hint = "rename one of them, or process one into another output folder"
            for one, job in ((other, first), (each, second)):
                reason = f"`{first.source}` and `{second.source}` would both become `{job.target}`"
                faults.setdefault(one, Fault(job.source, reason, hint))
    return jobs.without({*faults, *repeats}), list(faults.values())


def _same_place(first: Path, second: Path, output: Path) -> bool:
    if key_of(first) == key_of(second):
        return True
    return disk.one_place(output, first.relative_to(output), second.relative_to(output))


def folded(name: str) -> str:
    """Equal for names that some disk takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
