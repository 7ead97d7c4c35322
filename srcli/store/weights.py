"""The files of a model: find them, fetch them, check them, read them without running what they hold."""

from __future__ import annotations

import errno
import re
import shlex
import warnings
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srcli.console import counted
from srcli.disk import first_line
from srcli.errors import ModelError, joined_faults
from srcli.rows.base import BUILTIN, BaseSource
from srcli.rows.spec import ModelSpec, raise_together, standing_files
from srcli.store import hub
from srcli.store.hub_file import file_digest
from srcli.store.layout import needed_files

if TYPE_CHECKING:
    from torch import Tensor


def embedded_folder(name: str) -> Path:
    """The folder of a model that ships with srcli.

    Raises:
        ModelError: there is no such model.
    """
    folder = BUILTIN / name
    if folder.is_dir():
        return folder
    present = sorted(path.name for path in BUILTIN.glob("*") if path.is_dir() and not path.name.startswith("_"))
    known = ", ".join(f"`{other}`" for other in present) or "none; is the installation complete?"
    raise ModelError(f"no model `{name}` ships with srcli", f"embedded models: {known}")


def base_folder(spec: ModelSpec) -> Path:
    """The folder of a model's frozen network, in diffusers' layout. Downloads nothing; `srcli models fetch` does.

    Raises:
        ModelError: the folder is missing or incomplete; the hint is the command that gets it.
    """
    if spec.base.embedded is not None:
        return embedded_folder(spec.base.embedded)
    if spec.base.repo is None:
        return _local_base(spec.base.path or Path(), spec.name)
    folder = hub.cached_base(spec.base)
    if folder is None:
        raise _not_ready(spec)
    return folder


def base_file(spec: ModelSpec) -> Path:
    """The file that a model's network is, checked against its row's SHA-256 where there is one. Downloads nothing.

    Raises:
        ModelError: it is missing, unreadable or another one; the hint is the command that gets it.
    """
    path = _place_of_file(spec)
    expected = spec.base.sums.get(spec.base.file or "")
    if expected and (actual := sha256_of(path)) != expected:
        raise ModelError(
            joined_faults(
                f"the network of model `{spec.name}` is not the file its row describes: `{path}`",
                [f"expected SHA-256 `{expected}`", f"actual SHA-256 `{actual}`"],
            ),
            f"get the file anew; if you changed it yourself, put the actual sum into `{spec.origin}`",
        )
    return path


def base_place(spec: ModelSpec) -> Path:
    """The folder or the file of a model's network; raises as `base_folder` and `base_file`."""
    return base_folder(spec) if spec.base.file is None else base_file(spec)


def check_files(spec: ModelSpec) -> None:
    """Check that all files of a model are there, and its parents', against their rows' sums where these have any.

    Raises:
        ModelError: some are missing, damaged, or others; of several parents all that are said so.
    """
    if spec.base.names:
        base_place(spec)
    for adapter in spec.adapters:
        adapter_path(spec, adapter)
    faults = []
    for parent in spec.parents.values():
        try:
            check_files(parent)
        except ModelError as fault:
            faults.append(fault)
    raise_together(f"the models that `{spec.name}` is made of cannot be used:", faults)


def size_of_files(spec: ModelSpec) -> int:
    """Bytes on disk of what a model needs, its parents' included.

    Raises:
        ModelError: they are not there.
    """
    total = sum((spec.folder / adapter.path).stat().st_size for adapter in spec.adapters.values())
    if spec.base.names:
        total += size_of_base(base_place(spec))
    return total + sum(map(size_of_files, spec.parents.values()))


def size_of_base(place: Path) -> int:
    """Bytes on disk of the files of a base that srcli needs: of a folder in diffusers' layout, or of one file."""
    if place.is_file():
        return place.stat().st_size
    names = [path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()]
    return sum((place / name).stat().st_size for name in needed_files(names))


def _place_of_file(spec: ModelSpec) -> Path:
    base, file = spec.base, spec.base.file or ""
    if base.package is not None:
        return package_file(base.package, file, f"model `{spec.name}`")
    if base.repo is None:
        return Path(file)
    folder = hub.cached_base(base)
    if folder is None:
        raise _not_ready(spec)
    return folder / file


def package_file(package: str, file: str, needed_by: str) -> Path:
    """Where a file of an installed distribution is; it may be missing.

    Args:
        package: as the package index calls it.
        file: its path in the package, with `/`.
        needed_by: what the message begins with.

    Raises:
        ModelError: the package is not installed; the hint is the command that installs it.
    """
    try:
        return Path(str(metadata.distribution(package).locate_file(file)))
    except metadata.PackageNotFoundError as fault:
        message = f"{needed_by} needs the package `{package}`, which is not installed"
        raise ModelError(message, f"`pip install {_extra_with(package)}` installs it") from fault


def _extra_with(package: str) -> str:
    """What to install for a package: the extra of srcli that has it, where there is one."""
    try:
        lines = metadata.requires("srcli") or []
    except metadata.PackageNotFoundError:
        lines = []
    extras = (re.match(rf"{re.escape(package)}\b.*extra == ['\"]([\w-]+)", line) for line in lines)
    return next((f"'srcli[{extra[1]}]'" for extra in extras if extra), package)


def adapter_path(spec: ModelSpec, name: str) -> Path:
    """The file of one of a model's adapters, checked against its row's SHA-256.

    Raises:
        ModelError: the row has no such adapter, or its file is missing, unreadable or another one.
    """
    if name not in spec.adapters:
        known = ", ".join(f"`{other}`" for other in spec.adapters) or "none"
        raise ModelError(f"model `{spec.name}` has no adapter `{name}`", f"its adapters: {known}")
    adapter = spec.adapters[name]
    path = spec.folder / adapter.path
    if name in waiting_adapters(spec):
        raise _not_ready(spec)
    if not path.is_file():
        message = f"the {name} adapter of model `{spec.name}` is missing: `{path}`"
        raise ModelError(message, f"put the file there, or correct its path in `{spec.origin}`")
    actual = sha256_of(path)
    if actual != adapter.sha256:
        anew = f"get the file anew; if you changed it yourself, put the actual sum into `{spec.origin}`"
        raise ModelError(
            joined_faults(
                f"the {name} adapter of model `{spec.name}` is not the file its row describes: `{path}`",
                [f"expected SHA-256 `{adapter.sha256}`", f"actual SHA-256 `{actual}`"],
            ),
            f"import it anew: `{import_command(spec)} --force`" if adapter.imported_from else anew,
        )
    return path


def waiting_adapters(spec: ModelSpec) -> list[str]:
    """The adapters of a model that are still to be imported."""
    adapters = [adapter for adapter in spec.adapters.values() if adapter.imported_from]
    return [adapter.name for adapter in adapters if not (adapter.sha256 and (spec.folder / adapter.path).is_file())]


def fetchable_sources(spec: ModelSpec) -> list[BaseSource]:
    """Where the files are that a model's adapters are still to be imported from, if the row says so of all of them."""
    sources = [spec.adapters[name].source for name in waiting_adapters(spec)]
    return [] if None in sources else list(dict.fromkeys(source for source in sources if source is not None))


def import_command(spec: ModelSpec) -> str:
    """What to type to import a model's adapters."""
    return f"srcli models import {spec.name} {' '.join(map(shlex.quote, _origins(spec)))}{models_file_option(spec)}"


def steps_left(spec: ModelSpec) -> str:
    """What is still to be fetched and imported before a model can upscale, a numbered line each; empty if nothing is."""
    steps = list(dict.fromkeys(_steps_left(spec)))
    lines = [f"  {number}. {step}" for number, step in enumerate(steps, 1)]
    return "\n".join([f"{counted(len(steps), 'step')} {'is' if len(steps) == 1 else 'are'} left:", *lines]) if steps else ""


def _steps_left(spec: ModelSpec) -> list[str]:
    steps = [step for parent in spec.parents.values() for step in _steps_left(parent)]
    sources = fetchable_sources(spec)
    if sources or (spec.base.repo is not None and hub.cached_base(spec.base) is None):
        steps.append(f"srcli models fetch {spec.name}{models_file_option(spec)}")
    if waiting_adapters(spec) and not sources:
        origins = " and ".join(f"`{origin}`" for origin in _origins(spec))
        steps.append(f"to upscale, get {origins} from its authors, then: {import_command(spec)}")
    for slot in spec.lacking:
        steps.append(f"to upscale, train {slot.about}, and give it as `--{slot.name}` or in the row in `{spec.origin}`")
    return steps


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, 64 lower-case hexadecimal digits.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        return file_digest(path)
    except OSError as fault:
        raise _unreadable(path, fault) from fault


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, on the CPU, as they were stored.

    Raises:
        ModelError: missing, unreadable or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except OSError as fault:
        raise _unreadable(path, fault) from fault
    except SafetensorError as fault:
        raise ModelError(f"`{path}` is no usable safetensors file: {first_line(fault)}", _DAMAGED_HINT) from fault


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata alone of a safetensors file; needs no torch.

    Raises:
        ModelError: missing, unreadable or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except OSError as fault:
        raise _unreadable(path, fault) from fault
    except SafetensorError as fault:
        raise ModelError(f"`{path}` is no usable safetensors file: {first_line(fault)}", _DAMAGED_HINT) from fault


def load_pickle(path: Path) -> dict[str, Any]:
    """A checkpoint in torch's own format, on the CPU.

    A pickle is a program: only one that builds nothing but tensors, numbers, text and containers is run.

    Raises:
        ModelError: missing, damaged, refused, or not a dictionary.
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on old protocols and storages, which is the file's affair
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as fault:  # a damaged file makes the unpickler raise nearly anything
        if isinstance(fault, OSError) and fault.errno != errno.EINVAL:  # as torch seeks a place before a short file's beginning
            raise _unreadable(path, fault) from fault
        asked = re.search(r"GLOBAL ([\w.]+)", str(fault))
        if asked:
            raise ModelError(
                f"`{path}` is refused: it asks to run `{asked[1]}` when it is loaded, and could run any code that way",
                "take the file from its authors' own place, or a safetensors version of it",
            ) from fault
        raise ModelError(f"`{path}` is damaged or not a torch checkpoint", _DAMAGED_HINT) from fault
    if not isinstance(content, dict):
        raise ModelError(f"`{path}` holds a `{type(content).__name__}`, not a dictionary of weights", _DAMAGED_HINT)
    return content


# What is missing -----------------------------------------------------------------------------------------------------


def _local_base(folder: Path, name: str) -> Path:
    missing = [part for part in ("unet/config.json", "vae/config.json") if not (folder / part).is_file()]
    if not missing:
        return folder
    wrong = "is no folder" if not folder.is_dir() else f"lacks {' and '.join(f'`{part}`' for part in missing)}"
    raise ModelError(
        f"the base of model `{name}`, `{folder}`, {wrong}",
        "give the top folder of a model in diffusers' layout, the one with `unet` and `vae` in it",
    )


def _not_ready(spec: ModelSpec) -> ModelError:
    if spec.given_base is not None:
        return ModelError(
            f"the base `{spec.base.repo}` is not downloaded", f"`srcli models fetch {shlex.quote(spec.given_base)}` downloads it"
        )
    return ModelError(f"model `{spec.name}` is not ready", steps_left(spec))


def _origins(spec: ModelSpec) -> list[str]:
    """The files that a model's adapters are imported from."""
    return list(dict.fromkeys(adapter.imported_from for adapter in spec.adapters.values() if adapter.imported_from))


def models_file_option(spec: ModelSpec) -> str:
    """What has to be added to a command so that it finds the model: ` --models-file FILE`, or nothing."""
    named = [origin for origin in _origins_of(spec) if origin.suffix == ".toml" and origin not in standing_files()]
    return f" --models-file {shlex.quote(str(named[0]))}" if named else ""


def _origins_of(spec: ModelSpec) -> list[Path]:
    """The files of its row and its parents' rows; a model that has none is its own."""
    return [spec.origin, *(origin for parent in spec.parents.values() for origin in _origins_of(parent))]


# Messages ------------------------------------------------------------------------------------------------------------


_DAMAGED_HINT = "check that it is the right file, and download it again"


def _unreadable(path: Path, fault: OSError) -> ModelError:
    reason = "no such file" if isinstance(fault, FileNotFoundError) else fault.strerror or first_line(fault)
    return ModelError(f"cannot read `{path}`: {reason}", "check the path and the rights of the file")
