"""Which files are read and where each result goes: decided in full before the first picture is opened.

Nothing here looks into a file; the standard library is enough, so that the command line can import it cheaply.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from srcli.errors import UsageError, joined_faults

OUTPUT_FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif"}
"""Name of each format that can be written -> the suffix that a converted file gets."""

_FORMAT_OF_SUFFIX = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".jpe": "jpeg",
    ".jfif": "jpeg",
    ".webp": "webp",
    ".tif": "tiff",
    ".tiff": "tiff",
}

INPUT_SUFFIXES = frozenset(_FORMAT_OF_SUFFIX) | {
    *(".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".j2k", ".jp2", ".jpx"),
    *(".mpo", ".pbm", ".pgm", ".pnm", ".ppm", ".tga"),
}
"""What is taken for an image inside a folder (lower case)."""

_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Job:
    """One file to read and the file to write for it."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Found:
    """An input file and its place below a folder: of results, or of references beside them."""

    source: Path
    relative: Path


@dataclass
class _Search:
    """What holds for all inputs of one call, and the faults seen so far."""

    output: str
    recursive: bool
    faults: list[str] = field(default_factory=list)

    def expand(self, text: str) -> list[Found]:
        """The files that one argument of the command line stands for, in the order of their names."""
        path = Path(text)
        if path.is_file():
            return [Found(path, Path(path.name))]
        if path.is_dir():
            known = len(self.faults)
            found = sorted(self._walk(path, path), key=lambda each: each.relative.parts)
            if not found and len(self.faults) == known:
                self.faults.append(f"`{text}` is a folder without images")
            return found
        if not _MAGIC.search(text):
            self.faults.append(f"`{text}` does not exist")
            return []
        found = sorted(self._glob(text), key=lambda each: each.relative.parts)
        if not found:
            self.faults.append(f"`{text}` matches no images")
        return found

    def _glob(self, pattern: str) -> Iterator[Found]:
        parts = Path(pattern).parts
        fixed = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
        base = Path(*parts[:fixed])
        asked = Path(pattern).suffix.lower()  # `*.psd` asks for such files, whatever we know of them
        suffixes = INPUT_SUFFIXES | {asked} - {""}
        for match in map(Path, glob.glob(pattern, recursive=True)):  # noqa: PTH207 (Path.glob takes no absolute pattern)
            if self._is_in_output(match, base):
                continue
            if match.is_dir():
                yield from self._walk(match, base)
            elif match.suffix.lower() in suffixes:
                yield Found(match, match.relative_to(base))

    def _walk(self, folder: Path, base: Path) -> Iterator[Found]:
        for where, folders, names in os.walk(folder, onerror=self._cannot_list):
            here = Path(where)
            folders[:] = [name for name in folders if self.recursive and self._is_input(here / name, base)]
            for name in names:
                if not _hidden(name) and Path(name).suffix.lower() in INPUT_SUFFIXES:
                    yield Found(here / name, (here / name).relative_to(base))

    def _is_input(self, folder: Path, base: Path) -> bool:
        return not _hidden(folder.name) and not self._is_in_output(folder, base)

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
) -> list[Job]:
    """Find the input files and give each the file that is written for it.

    A folder's tree is kept below `output`, a glob's relative to its part without wildcards. Hidden files and folders,
    links to folders, and an `output` inside the input are left out; a file that is named by itself is always taken.

    Args:
        inputs: files, folders and globs (`**` works); a text is taken as a glob only where no such path exists.
        output: a folder, or, for exactly one input file, a file name with a suffix that can be written.
        recursive: also take what lies in folders below the given ones.
        format: a key of `OUTPUT_FORMATS`; None keeps PNG, JPEG, WebP and TIFF, and turns others into PNG.
        suffix: put between the stem and the extension, as in `a_x4.png`.

    Returns:
        The jobs in the order of `inputs`, by name inside each; no source and no target appears twice.

    Raises:
        UsageError: an input is missing or stands for no image, two inputs have one target, or a target is an input.
            One error names all such faults.
    """
    _check_options(inputs, format, suffix)
    to_file = _is_target_file(inputs, output, format)
    found = find_files(inputs, output, recursive=recursive)
    jobs = [Job(each.source, output if to_file else output / _renamed(each.relative, format, suffix)) for each in found]
    return _checked(jobs)


def find_files(inputs: Sequence[str], output: Path, *, recursive: bool = True) -> list[Found]:
    """The input files of `plan_jobs`, for a command that gives its results other names.

    Args:
        inputs: files, folders and globs, as there.
        output: a folder; where it lies inside an input, it is left out.
        recursive: also take what lies in folders below the given ones.

    Raises:
        UsageError: an input is missing or stands for no image; one error names all such faults.
    """
    search = _Search(_key(output), recursive)
    found = [each for text in inputs for each in search.expand(text)]
    if search.faults:
        raise UsageError(
            joined_faults("these inputs cannot be used:", search.faults),
            "check the spelling; relative paths start at the current folder",
        )
    return _without_repeats(found)


def format_of(path: Path) -> str:
    """The name of the output format that the suffix of `path` stands for.

    Raises:
        UsageError: it is not one that can be written.
    """
    try:
        return _FORMAT_OF_SUFFIX[path.suffix.lower()]
    except KeyError:
        raise UsageError(
            f"`{path.suffix or path.name}` is not the suffix of an image format that can be written",
            f"use one of {', '.join(sorted(_FORMAT_OF_SUFFIX))}",
        ) from None


def is_done(target: Path) -> bool:
    """Whether an earlier run has written `target`; files are put in place when complete, so any content will do."""
    try:
        return target.is_file() and target.stat().st_size > 0
    except OSError:
        return False


def _check_options(inputs: Sequence[str], format: str | None, suffix: str) -> None:
    if not inputs:
        raise UsageError("there is no input", "name at least one file, folder or glob")
    if format is not None and format not in OUTPUT_FORMATS:
        raise UsageError(f"`{format}` is not a format that can be written", f"use one of {', '.join(OUTPUT_FORMATS)}")
    if "/" in suffix or os.sep in suffix:
        raise UsageError(f"the suffix `{suffix}` contains a path separator", "name folders with the output instead")


def _is_target_file(inputs: Sequence[str], output: Path, format: str | None) -> bool:
    """Whether `output` is the file to write, not a folder. Says so where it can be neither."""
    if output.is_dir():
        return False
    named = _FORMAT_OF_SUFFIX.get(output.suffix.lower())
    if named is None:
        if output.exists():
            raise UsageError(f"the output `{output}` exists and is no folder", "name another folder")
        return False
    if len(inputs) != 1 or not Path(inputs[0]).is_file():
        raise UsageError(
            f"the output `{output}` is a file name, but the input is more than one file",
            "name a folder, or make a folder of that name first",
        )
    if format not in (None, named):
        raise UsageError(f"the output `{output}` is not a {format} file", "change the name or leave out the format")
    return True


def _renamed(relative: Path, format: str | None, suffix: str) -> Path:
    if format is not None:
        extension = OUTPUT_FORMATS[format]
    else:
        extension = relative.suffix if relative.suffix.lower() in _FORMAT_OF_SUFFIX else ".png"
    return relative.with_name(f"{relative.stem}{suffix}{extension}")


def _without_repeats(found: list[Found]) -> list[Found]:
    """Each file once, at its first place. Links are files of their own: only the path counts."""
    first: dict[str, Found] = {}
    for each in found:
        first.setdefault(os.path.normcase(os.path.abspath(each.source)), each)  # noqa: PTH100 (Path.resolve follows links)
    return list(first.values())


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
            "choose another output folder or a `--suffix`, keep formats apart, or process such inputs one by one",
        )
    return list(by_target.values())


def _is_below(inner: str, outer: str) -> bool:
    return inner.startswith(outer.rstrip(os.sep) + os.sep) and inner != outer


def _hidden(name: str) -> bool:
    return name.startswith(".")


def _key(path: Path) -> str:
    """A text that is equal for two spellings of one path."""
    return os.path.normcase(os.path.realpath(path))
