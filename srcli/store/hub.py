"""The model hub: what a repository holds, what of it is in the cache, and the download of the rest.

Files lie where huggingface_hub keeps them (`HF_HOME`), so that other programs share them.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from srcli.disk import DISK_FULL, first_line, write_whole
from srcli.errors import ModelError, joined_faults
from srcli.rows.spec import BaseSource
from srcli.store.hub_file import (
    TIMEOUT_S,
    HubFile,
    UnfitError,
    WrongFileError,
    endpoint,
    fetch_file,
    is_fault_of_disk,
    known_as_others,
    partial_of,
    remove_damaged,
    remove_if_damaged,
)
from srcli.store.layout import INDEX_FILE, lacking_files, lacking_parts, needed_files

_LOGGER = logging.getLogger("srcli")


@dataclass(frozen=True)
class Plan:
    """What is to be done to have a base."""

    repo: str
    commit: str
    licence: str
    """What the model card says; empty where it says nothing."""
    storage: Path
    """The repository's folder in the hub's cache."""
    files: tuple[HubFile, ...]
    """All that are needed, sorted by path."""
    present: frozenset[str]
    """Paths of those that are in the cache, whole."""
    partial_bytes: int
    """What earlier, broken downloads of the others have left."""

    @property
    def folder(self) -> Path:
        return self.storage / "snapshots" / self.commit

    @property
    def missing(self) -> tuple[HubFile, ...]:
        return tuple(file for file in self.files if file.path not in self.present)

    @property
    def present_bytes(self) -> int:
        return sum(file.size_bytes or 0 for file in self.files if file.path in self.present)

    @property
    def missing_bytes(self) -> int:
        """What is still to be sent; files whose size the hub does not tell count nothing."""
        return max(sum(file.size_bytes or 0 for file in self.missing) - self.partial_bytes, 0)

    @property
    def free_bytes(self) -> int:
        """On the cache's disk."""
        return shutil.disk_usage(next(path for path in (self.storage, *self.storage.parents) if path.exists())).free


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
    """The complete copy of a base in the hub's cache, from the first repository that has one; looks at the disk alone."""
    for repo in repositories(base):
        folder = _cached_folder(repo, base.revision, INDEX_FILE)
        if folder is not None and not lacking_files(folder) and not known_as_others(folder, base.sha256 or {}):
            return folder
    return None


def repositories(base: BaseSource) -> tuple[str, ...]:
    """The repository and its mirrors, in the order in which they are tried."""
    return (base.repo, *base.mirrors) if base.repo is not None else ()


def fetch_base(base: BaseSource, label: str, listener: Listener, *, dry_run: bool = False) -> Path | None:
    """Download what is missing of a base from the first repository that has all of it, and check it.

    A complete copy in the cache is used without a look at the network; its files are checked.

    Args:
        base: one with a `repo`.
        label: what messages call it.
        listener: gets the plan and the progress.
        dry_run: True ends after the plan.

    Returns:
        The base's folder, in diffusers' layout; None from a dry run where something is missing.

    Raises:
        ModelError: no repository has it all, whole and right (each is named with its fault), or the disk takes no more.
    """
    folder = cached_base(base)
    if folder is not None and (dry_run or not remove_damaged(folder, base.sha256 or {})):
        listener.plan(_plan_of_copy(folder))
        return folder
    faults: list[str] = []
    repos = repositories(base)
    for repo in repos:
        if faults:
            _LOGGER.warning("%s; trying the mirror `%s`", faults[-1], repo)
        try:
            plan = _plan(repo, base)
            listener.plan(plan)
            if dry_run:
                return None
            return _carry_out(plan, base, listener)
        except ModelError:
            raise
        except Exception as fault:  # which HTTP client the hub's library raises from depends on its version
            _raise_fault_of_disk(fault)
            faults.append(f"`{repo}`: {_reason(fault)}")
    raise ModelError(joined_faults(f"cannot fetch the base of {label}", faults), _ways_out(faults))


def fetch_config(base: BaseSource, path: str, label: str) -> Path:
    """One small file of a base, from the cache or else from the first repository that has it.

    Raises:
        ModelError: none has it; each is named with its fault.
    """
    sums = base.sha256 or {}
    for repo in repositories(base):
        folder = _cached_folder(repo, base.revision, path)
        if folder is not None and _is_here(folder, HubFile(path)) and not remove_if_damaged(folder, path, sums.get(path)):
            return folder / path
    faults: list[str] = []
    for repo in repositories(base):
        try:
            listed, info = _listing(repo, base.revision)
            if path not in listed:
                raise UnfitError(f"lacks `{path}`")
            storage, commit = _storage(repo), str(info.sha)
            fetch_file(repo, commit, storage, listed[path], sums.get(path), lambda _: None)
            _name_commit(storage, commit, base.revision or "main")
            return storage / "snapshots" / commit / path
        except Exception as fault:  # as in `fetch_base`
            _raise_fault_of_disk(fault)
            faults.append(f"`{repo}`: {_reason(fault)}")
    raise ModelError(joined_faults(f"cannot fetch `{path}` of the base of {label}", faults), _ways_out(faults))


# Planning ------------------------------------------------------------------------------------------------------------


def _listing(repo: str, revision: str | None) -> tuple[dict[str, HubFile], Any]:
    """All files of a repository, and what else the hub says of it; asks once, without repeats."""
    from huggingface_hub import HfApi

    info = HfApi(endpoint=endpoint()).model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
    if not re.fullmatch(r"[\w-]+", str(info.sha)):  # it names a folder
        raise UnfitError("the server tells no usable commit")
    return {each.rfilename: _hub_file(each) for each in info.siblings or ()}, info


def _plan(repo: str, base: BaseSource) -> Plan:
    listed, info = _listing(repo, base.revision)
    lacking = lacking_parts(listed)
    if lacking:
        raise UnfitError(f"lacks {', '.join(f'`{name}`' for name in lacking)}")
    files = tuple(listed[name] for name in needed_files(listed))
    _check_listed_sums(files, base.sha256 or {})
    storage, commit = _storage(repo), str(info.sha)
    present = frozenset(file.path for file in files if _is_here(storage / "snapshots" / commit, file))
    partial = sum(_partial_bytes(storage, file) for file in files if file.path not in present)
    licence = getattr(info.card_data, "license", None) or ""
    return Plan(repo, commit, licence if isinstance(licence, str) else ", ".join(licence), storage, files, present, partial)


def _hub_file(listed: Any) -> HubFile:
    large = listed.lfs
    size = getattr(large, "size", None) or listed.size
    return HubFile(listed.rfilename, size, getattr(large, "sha256", None), listed.blob_id)


def _check_listed_sums(files: tuple[HubFile, ...], wanted: Mapping[str, str]) -> None:
    for file in files:
        if file.sha256 is not None and wanted.get(file.path, file.sha256) != file.sha256:
            raise WrongFileError(file.path, "SHA-256", file.sha256, wanted[file.path])


def _is_here(folder: Path, file: HubFile) -> bool:
    """Whether a snapshot has a file, of the size that the hub tells; what is in it is looked at elsewhere."""
    path = folder / file.path
    if not path.exists():
        return False
    size = path.stat().st_size
    return size > 0 if file.size_bytes is None else size == file.size_bytes


def _partial_bytes(storage: Path, file: HubFile) -> int:
    blob = storage / "blobs" / (file.sha256 or file.blob_id or "-")
    for path in (blob, partial_of(blob)):
        if path.exists():
            return min(path.stat().st_size, file.size_bytes or 0)
    return 0


def _plan_of_copy(folder: Path) -> Plan:
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    files = tuple(HubFile(name, (folder / name).stat().st_size) for name in needed_files(names))
    storage = folder.parent.parent
    repo = storage.name.removeprefix("models--").replace("--", "/", 1)
    return Plan(repo, folder.name, "", storage, files, frozenset(file.path for file in files), 0)


# Downloading ---------------------------------------------------------------------------------------------------------


def _carry_out(plan: Plan, base: BaseSource, listener: Listener) -> Path:
    free = plan.free_bytes
    if plan.missing_bytes > free:
        sizes = f"{size_text(plan.missing_bytes)} to come, {size_text(free)} free"
        raise ModelError(f"not enough space for the base in `{plan.storage.parent}`: {sizes}", _SPACE_HINT)
    sums = base.sha256 or {}
    remove_damaged(plan.folder, sums)
    others = known_as_others(plan.folder, sums)
    if others:
        raise UnfitError(f"{', '.join(f'`{name}`' for name in others)} in the cache is another file than the row's SHA-256 says")
    for file in plan.files:
        if not _is_here(plan.folder, file):
            listener.start(file)
            fetch_file(plan.repo, plan.commit, plan.storage, file, sums.get(file.path), listener.advance)
    lacking = lacking_files(plan.folder)
    if lacking:
        raise UnfitError(f"lacks {', '.join(f'`{name}`' for name in lacking)}")
    _name_commit(plan.storage, plan.commit, base.revision or "main")
    return plan.folder


def _name_commit(storage: Path, commit: str, revision: str) -> None:
    """Note in the cache which commit the branch or tag is; last, so that a copy is found only when it is complete."""
    if revision != commit:
        write_whole(storage / "refs" / revision, commit.encode())


# The cache and the library -------------------------------------------------------------------------------------------


def _storage(repo: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser() / f"models--{repo.replace('/', '--')}"


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

        place = fault.filename or constants.HF_HUB_CACHE
        hint = "check the rights of the folder, or set `HF_HOME` to another one"
        raise ModelError(
            f"cannot write to `{place}`: {fault.strerror}", _SPACE_HINT if fault.errno in DISK_FULL else hint
        ) from fault


def _reason(fault: BaseException) -> str:
    """Why a download failed, in one line."""
    from huggingface_hub import errors

    if isinstance(fault, UnfitError):
        return str(fault)
    if isinstance(fault, errors.LocalEntryNotFoundError) and fault.__cause__ is not None:
        fault = fault.__cause__
    if isinstance(fault, errors.GatedRepoError):
        return "its owner wants a login (`hf auth login`, or a token in `HF_TOKEN`) and an accepted licence"
    if isinstance(fault, errors.RepositoryNotFoundError):
        return "no such repository, or a private one"
    if isinstance(fault, errors.RevisionNotFoundError):
        return "no such revision"
    if isinstance(fault, errors.OfflineModeIsEnabled):
        return "not in the cache, and `HF_HUB_OFFLINE` is set"
    return f"{first_line(fault)} ({type(fault).__name__})"


def _ways_out(faults: list[str]) -> str:
    if any("`HF_HUB_OFFLINE`" in fault for fault in faults):
        return "unset `HF_HUB_OFFLINE`; or copy the hub's cache (`HF_HOME`) from a machine that has the base"
    return (
        "try again later: what has come so far is kept; or name another mirror, or a local folder, in the model's row of your "
        "`models.toml` or as `--base`; or copy the hub's cache (`HF_HOME`) from a machine that has it and set `HF_HUB_OFFLINE=1`"
    )


def size_text(size_bytes: int) -> str:
    """`1.73 GB`, `680 MB`, `12.3 kB`; decimal units, as disks are sold by."""
    for unit, power in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= power:
            return f"{size_bytes / power:.3g} {unit}"
    return f"{size_bytes} B"
