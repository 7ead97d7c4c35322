"""The model hub: what a repository holds, what of it is in the cache, and the download of the rest.

Files lie where huggingface_hub keeps them (`HF_HOME`), so that other programs share them.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from rich.filesize import decimal

from srcli.disk import DISK_FULL, first_line, write_whole
from srcli.errors import ModelError, joined_faults
from srcli.rows.base import INDEX_FILE, BaseSource
from srcli.store.hub_file import (
    TIMEOUT_S,
    HubFile,
    UnfitError,
    WrongFileError,
    endpoint,
    fetch_file,
    is_fault_of_disk,
    is_sha256,
    known_as_others,
    partial_of,
    remove_damaged,
    remove_if_damaged,
)
from srcli.store.layout import lacking_files, lacking_parts, needed_files

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_LOGGER = logging.getLogger("srcli")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Plan:
    """What is to be done to have a base."""

    repo: str
    folder: Path
    """The snapshot of the pinned commit in the hub's cache: `models--owner--name/snapshots/<commit>`."""
    licence: str
    """What the model card says; empty where it says nothing."""
    missing: tuple[HubFile, ...]
    """Those needed that are not in the cache, sorted by path."""
    present_bytes: int
    """Of those needed that are."""
    partial_bytes: int
    """What earlier, broken downloads of the missing ones have left."""

    @property
    def cache(self) -> Path:
        return self.folder.parents[2]

    @property
    def missing_bytes(self) -> int:
        """What is still to be sent; files whose size the hub does not tell count nothing."""
        return max(sum(file.size_bytes or 0 for file in self.missing) - self.partial_bytes, 0)

    @property
    def free_bytes(self) -> int:
        """On the cache's disk."""
        return shutil.disk_usage(next(path for path in self.folder.parents if path.exists())).free


class Listener(Protocol):
    """Who wants to know how a download goes on."""

    def plan(self, plan: Plan) -> None:
        """Before anything is downloaded."""
        ...

    def start(self, file: HubFile) -> None:
        """A file is about to be downloaded, or what is left of it."""
        ...

    def advance(self, size_bytes: int) -> None:
        """So many bytes more have come."""
        ...


def cached_base(base: BaseSource) -> Path | None:
    """The complete copy of a base in the hub's cache, from the first repository that has one; looks at the disk alone.

    Returns:
        The snapshot's folder, also where the base is one file in it.
    """
    for repo in repositories(base):
        folder = _cached_folder(repo, base.revision, base.file or INDEX_FILE)
        if folder is not None and not _lacking_here(base, folder) and not known_as_others(folder, base.sums):
            return folder
    return None


def _needed(base: BaseSource, names: Collection[str]) -> list[str]:
    """Of a repository's files those that the base is made of."""
    return needed_files(names) if base.file is None else [base.file]


def _lacking_here(base: BaseSource, folder: Path) -> list[str]:
    """What a snapshot needs and has not."""
    if base.file is None:
        return lacking_files(folder)
    return [] if _is_here(folder, HubFile(base.file)) else [base.file]


def repositories(base: BaseSource) -> tuple[str, ...]:
    """The repository and its mirrors, in the order in which they are tried."""
    return (base.repo, *base.mirrors) if base.repo is not None else ()


def fetch_base(base: BaseSource, what: str, listener: Listener, *, dry_run: bool = False) -> Path | None:
    """Download what is missing of a base, or another file, from the first repository that has all of it, and check it.

    A complete copy in the cache is used without a look at the network; its files are checked.

    Args:
        base: one with a `repo`.
        what: what messages call it, as `the base of model ...`.
        listener: gets the plan and the progress.
        dry_run: True ends after the plan.

    Returns:
        The snapshot's folder; None from a dry run where something is missing.

    Raises:
        ModelError: no repository has it all, whole and right (each is named with its fault), or the disk takes no more.
    """
    folder = cached_base(base)
    if folder is not None and (dry_run or not remove_damaged(folder, _files_in(base, folder), base.sums)):
        listener.plan(_plan_of_copy(base, folder))
        return folder

    def attempt(repo: str) -> Path | None:
        plan = _plan(repo, base, repair=not dry_run)
        listener.plan(plan)
        return None if dry_run else _carry_out(plan, base, listener)

    return _of_first(base, what, attempt)


def fetch_config(base: BaseSource, path: str, label: str) -> Path:
    """One small file of a base, from the cache or else from the first repository that has it.

    Raises:
        ModelError: none has it; each is named with its fault.
    """
    known = HubFile(path, digest=base.sums.get(path))
    for repo in repositories(base):
        folder = _cached_folder(repo, base.revision, path)
        if folder is not None and _is_here(folder, known) and not remove_if_damaged(folder / path, known):
            return folder / path

    def attempt(repo: str) -> Path:
        folder, _, listed = _listing(repo, base.revision)
        if path not in listed:
            raise UnfitError(f"lacks `{path}`")
        fetch_file(repo, folder, listed[path], known.digest, lambda _: None)
        _name_commit(folder, base.revision or "main")
        return folder / path

    return _of_first(base, f"`{path}` of the base of {label}", attempt)


def _of_first(base: BaseSource, what: str, attempt: Callable[[str], _T]) -> _T:
    """What the first repository gives that does not fail."""
    faults: list[str] = []
    for repo in repositories(base):
        if faults:
            _LOGGER.warning("%s; trying the mirror `%s`", faults[-1], repo)
        try:
            return attempt(repo)
        except ModelError:
            raise
        except Exception as fault:  # which HTTP client the hub's library raises from depends on its version
            _raise_fault_of_disk(fault)
            faults.append(f"`{repo}`: {_reason(fault)}")
    raise ModelError(joined_faults(f"cannot fetch {what}", faults), _ways_out(faults))


# Planning ------------------------------------------------------------------------------------------------------------
# One request lists names, sizes and sums. The library's own dry run (`hf_hub_download(dry_run=True)`) needs one for each file
# and tells less: no sum to hold against the row's or to find an unfinished blob by, no licence, and as present any file of that
# name, damaged or empty ones too; `snapshot_download(dry_run=True)` also notes the commit of a copy that is not complete.


def _listing(repo: str, revision: str | None) -> tuple[Path, str, dict[str, HubFile]]:
    """A repository's snapshot in the cache (there or not), its licence and all of its files; asks the hub once."""
    from huggingface_hub import HfApi, constants

    info = HfApi(endpoint=endpoint()).model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
    if not re.fullmatch(r"[\w-]+", str(info.sha)):  # it names a folder
        raise UnfitError("the server tells no usable commit")
    storage = Path(constants.HF_HUB_CACHE).expanduser() / f"models--{repo.replace('/', '--')}"
    licence = getattr(info.card_data, "license", None) or ""
    licence = licence if isinstance(licence, str) else ", ".join(licence)
    return storage / "snapshots" / str(info.sha), licence, {each.rfilename: _hub_file(each) for each in info.siblings or ()}


def _hub_file(listed: RepoSibling) -> HubFile:
    large = listed.lfs
    return HubFile(listed.rfilename, large.size if large else listed.size, large.sha256 if large else listed.blob_id)


def _plan(repo: str, base: BaseSource, *, repair: bool) -> Plan:
    """Ask what there is to do; `repair` takes damaged files out of the cache first, so that they count as missing."""
    folder, licence, listed = _listing(repo, base.revision)
    lacking = lacking_parts(listed) if base.file is None else [base.file] if base.file not in listed else []
    if lacking:
        raise UnfitError(f"lacks {', '.join(f'`{name}`' for name in lacking)}")
    files = [listed[name] for name in _needed(base, listed)]
    sums = base.sums
    for file in files:
        if is_sha256(file.digest) and sums.get(file.path, file.digest) != file.digest:
            raise WrongFileError(file.path, "SHA-256", str(file.digest), sums[file.path])
    if repair:
        remove_damaged(folder, _files_in(base, folder), sums)
    missing = tuple(file for file in files if not _is_here(folder, file))
    present = sum(file.size_bytes or 0 for file in files if file not in missing)
    return Plan(repo, folder, licence, missing, present, sum(_partial_bytes(folder, file) for file in missing))


def _is_here(folder: Path, file: HubFile) -> bool:
    """Whether a snapshot has a file, of the size that the hub tells; what is in it is looked at elsewhere."""
    path = folder / file.path
    if not path.exists():
        return False
    size = path.stat().st_size
    return size > 0 if file.size_bytes is None else size == file.size_bytes


def _partial_bytes(folder: Path, file: HubFile) -> int:
    blob = folder.parents[1] / "blobs" / (file.digest or "-")
    for path in (blob, partial_of(blob)):
        if path.exists():
            return min(path.stat().st_size, file.size_bytes or 0)
    return 0


def _plan_of_copy(base: BaseSource, folder: Path) -> Plan:
    repo = folder.parents[1].name.removeprefix("models--").replace("--", "/", 1)
    return Plan(repo, folder, "", (), sum((folder / name).stat().st_size for name in _files_in(base, folder)), 0)


def _files_in(base: BaseSource, folder: Path) -> list[str]:
    """Those of a snapshot that the base is made of, as far as they are there."""
    return _needed(base, [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()])


# Downloading ---------------------------------------------------------------------------------------------------------


def _carry_out(plan: Plan, base: BaseSource, listener: Listener) -> Path:
    free = plan.free_bytes
    if plan.missing_bytes > free:
        sizes = f"{decimal(plan.missing_bytes)} to come, {decimal(free)} free"
        raise ModelError(f"not enough space for the base in `{plan.cache}`: {sizes}", _SPACE_HINT)
    sums = base.sums
    others = known_as_others(plan.folder, sums)
    if others:
        raise UnfitError(f"{', '.join(f'`{name}`' for name in others)} in the cache is another file than the row's SHA-256 says")
    for file in plan.missing:
        listener.start(file)
        fetch_file(plan.repo, plan.folder, file, sums.get(file.path), listener.advance)
    lacking = _lacking_here(base, plan.folder)
    if lacking:
        raise UnfitError(f"lacks {', '.join(f'`{name}`' for name in lacking)}")
    _name_commit(plan.folder, base.revision or "main")
    return plan.folder


def _name_commit(folder: Path, revision: str) -> None:
    """Note in the cache which commit the branch or tag is; last, so that a copy is found only when it is complete."""
    if revision != folder.name:
        write_whole(folder.parents[1] / "refs" / revision, folder.name.encode())


# The cache and the library -------------------------------------------------------------------------------------------


def _cached_folder(repo: str, revision: str | None, path: str) -> Path | None:
    """The snapshot in the cache that holds a file."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repo, path, revision=revision)
    except (OSError, ValueError):  # no possible name: the download tells more
        return None
    return Path(found).parents[path.count("/")] if isinstance(found, str) else None


# Messages ------------------------------------------------------------------------------------------------------------

_SPACE_HINT = (
    "make space, or set `HF_HOME` to a folder on another disk; what has come so far is kept, and the same command goes on "
    "from there"
)


def _raise_fault_of_disk(fault: BaseException) -> None:
    """Another mirror does not help a disk that is full or closed."""
    if isinstance(fault, OSError) and is_fault_of_disk(fault):
        from huggingface_hub import constants

        hint = "check the rights of the folder, or set `HF_HOME` to another one"
        message = f"cannot write to `{fault.filename or constants.HF_HUB_CACHE}`: {fault.strerror}"
        raise ModelError(message, _SPACE_HINT if fault.errno in DISK_FULL else hint) from fault


def _reason(fault: BaseException) -> str:
    """Why a download failed, in one line."""
    from huggingface_hub import errors

    if isinstance(fault, errors.LocalEntryNotFoundError) and fault.__cause__ is not None:
        fault = fault.__cause__
    reasons: dict[type[Exception], str] = {
        UnfitError: str(fault),
        errors.GatedRepoError: "its owner wants a login (`hf auth login`, or a token in `HF_TOKEN`) and an accepted licence",
        errors.RepositoryNotFoundError: "no such repository, or a private one",
        errors.RevisionNotFoundError: "no such revision",
        errors.OfflineModeIsEnabled: "not in the cache, and `HF_HUB_OFFLINE` is set",
    }
    known = (text for kind, text in reasons.items() if isinstance(fault, kind))
    return next(known, f"{first_line(fault)} ({type(fault).__name__})")


def _ways_out(faults: list[str]) -> str:
    if any("`HF_HUB_OFFLINE`" in fault for fault in faults):
        return "unset `HF_HUB_OFFLINE`; or copy the hub's cache (`HF_HOME`) from a machine that has the base"
    return (
        "try again later: what has come so far is kept; or name another mirror, or a local folder, in the model's row of your "
        "`models.toml` or as `--base`; or copy the hub's cache (`HF_HOME`) from a machine that has it and set `HF_HUB_OFFLINE=1`"
    )
