"""Where each result goes: decided in full before the first picture is opened, and so that no original is in danger.

Nothing here decodes a file; the standard library is enough, so that the command line can import it cheaply.
"""

from __future__ import annotations

import logging
import os
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from srcli import disk
from srcli.errors import UsageError, joined_faults
from srcli.images.search import Fault, Found, LeftOut, find_files, find_listed, key_of, type_of
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


@dataclass(frozen=True)
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
) -> list[Job]:
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
    if _is_target_file(found, output, format, suffix):
        jobs = [Job(found[0].source, output, place=found[0].relative.as_posix())]
        _refuse_overwriting(jobs)
        return jobs
    jobs = [
        Job(each.source, output / result_name(each.relative, format, suffix), named=each.named, place=each.relative.as_posix())
        for each in found
    ]
    jobs = _without_results(jobs) if suffix and not overwrite else jobs
    relative = {each.source: each.relative for each in found}
    jobs = _with_full_names(jobs, output, relative, format, suffix)
    _refuse_overwriting(jobs)
    jobs, faults = _apart(jobs, output)
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


def result_name(relative: Path, format: str | None, suffix: str, *, full: bool = False) -> Path:
    """The name of a result; `full` keeps the input's extension in it."""
    if format is not None:
        extension = OUTPUT_FORMATS[format]
    else:
        extension = relative.suffix if relative.suffix.lower() in FORMAT_OF_SUFFIX else ".png"
    return relative.with_name(f"{relative.name if full else relative.stem}{suffix}{extension}")


def _without_results(jobs: list[Job]) -> list[Job]:
    """Less what was found, not named, and is what another job writes: the work of an earlier run, beside its photos."""
    writers: dict[str, set[str]] = defaultdict(set)
    for job in jobs:
        writers[key_of(job.target)].add(key_of(job.source))
    keys = {job: key_of(job.source) for job in jobs}
    results = {job for job in jobs if not job.named and writers[keys[job]] - {keys[job]}}
    if results:
        example = next(job.source for job in jobs if job in results)
        log.info("files taken for results of this command: %d, `%s` for one", len(results), example)
    return [job for job in jobs if job not in results]


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


def _with_full_names(jobs: list[Job], output: Path, relative: Mapping[Path, Path], format: str | None, suffix: str) -> list[Job]:
    """Files that differ by extension only have results of different names, whichever of them are there already."""
    groups: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        groups[os.path.normcase(job.target)].append(job)
    renamed: dict[Job, Job] = {}
    for group in groups.values():
        for job in group if len({key_of(job.source) for job in group}) > 1 else ():
            if job.source.suffix != job.target.suffix:
                target = output / result_name(relative[job.source], format, suffix, full=True)
                renamed[job] = replace(job, target=target)
    if renamed:
        first = next(iter(renamed.values()))
        message = "files that differ from others by their extension only keep it in their results' names: %d, as `%s`"
        log.info(message, len(renamed), first.target)
    return [renamed.get(job, job) for job in jobs]


def _refuse_overwriting(jobs: list[Job]) -> None:
    """No original is replaced, whatever it is called: what counts is which file the disk finds.

    Raises:
        UsageError: targets are inputs; all of them.
    """
    inputs = _Inputs(jobs)
    faults = []
    for job in jobs:
        source = inputs.that_is(job.target)
        if source is not None:
            faults.append(f"`{job.source}` would overwrite the input `{source}`")
    if faults:
        more = [f"and {len(faults) - _FAULTS_TOLD} more"] if len(faults) > _FAULTS_TOLD else []
        raise UsageError(
            joined_faults("originals are not replaced:", faults[:_FAULTS_TOLD] + more),
            "choose another output folder or a `--suffix`, or delete earlier results that lie among the inputs",
        )


class _Inputs:
    """Finds out whether a file is one of the inputs."""

    def __init__(self, jobs: list[Job]) -> None:
        self._by_path = {key_of(job.source): job.source for job in jobs}
        self._by_file: dict[tuple[int, int], Path] = {}
        self._by_size: dict[tuple[str, int], list[Path]] = defaultdict(list)
        self._folders: dict[tuple[Path, Path], bool] = {}
        for job in jobs:
            found = _stat(job.source)
            if found is not None:
                self._by_file[found.st_dev, found.st_ino] = job.source
                self._by_size[folded(job.source.name), found.st_size].append(job.source)

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


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


def _head(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return None


def _apart(jobs: list[Job], output: Path) -> tuple[list[Job], list[Fault]]:
    """The jobs, each file once, less those that would write the same file, which are faults.

    Names that differ by case or by the way that letters with marks are put together are one file on some disks: only where
    there are such names, the disk is asked.
    """
    places: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        places[folded(os.path.realpath(job.target.parent) + os.sep + job.target.name)].append(job)
    faults: dict[Job, Fault] = {}
    repeated: set[Job] = set()
    for group in places.values():
        for index, job in enumerate(group):
            for other in group[:index]:
                if not _same_place(job.target, other.target, output):
                    continue
                if key_of(job.source) == key_of(other.source):  # the same pixels
                    repeated.add(job)
                    continue
                for each in (other, job):
                    reason = f"`{other.source}` and `{job.source}` would both become `{each.target}`"
                    hint = "rename one of them, or process one into another output folder"
                    faults.setdefault(each, Fault(each.source, reason, hint))
    return [job for job in jobs if job not in faults and job not in repeated], list(faults.values())


def _same_place(first: Path, second: Path, output: Path) -> bool:
    if key_of(first) == key_of(second):
        return True
    return disk.one_place(output, first.relative_to(output), second.relative_to(output))


def folded(name: str) -> str:
    """Equal for names that some disk takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
