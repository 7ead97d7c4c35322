"""The arrows of the design, read from the imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import srcli
from srcli.families import families

PACKAGE = Path(srcli.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

FLOOR = {"errors", "console", "memory", "disk", "protocol"}
LEAVES = {"families"}
"""Light declarations that every room may ask for; what lies in a family's folder is reached by its name alone."""
MODELS = {"networks", "store", "rows"}

LAYERS = {  # what each room may import of srcli, besides itself, the ground floor and the leaves
    "errors": set(),
    "memory": set(),
    "disk": set(),
    "protocol": set(),
    "console": set(),
    "config": {"images", "evaluation", "shards"},
    "images": set(),
    "remote": {"images", "shards"},
    "shards": {"images"},
    "rows": {"images", "config"},
    "store": {"rows", "images", "config"},
    "networks": MODELS | {"images", "config"},
    "families": MODELS | {"images", "config"},
    "engine": {"images"},
    "training": MODELS | {"images", "config", "remote"},
    "evaluation": MODELS | {"images", "config"},
    "opening": MODELS | {"images", "config", "engine"},
    "fleet": MODELS | {"images", "config", "engine", "opening", "shards"},
    "sweep": MODELS | {"images", "config", "engine", "evaluation", "opening"},
    "cli": MODELS
    | {"images", "remote", "config", "engine", "training", "evaluation", "sweep", "opening", "console", "shards", "fleet", ""},
    "__main__": {"cli"},
    "python": {"config", "images", "engine", "opening"},
    "": {"python"},
}
METHODS = set(families())
WORDS = {"network"}
"""Names of families that are words of the field, too: as texts they may stand anywhere."""


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def eager(path: Path) -> Iterator[str]:
    """Modules that importing `path` imports: not those of functions or of `if TYPE_CHECKING`."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    plain = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
    yield from imported(ast.Module(plain, []))


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0].replace("__init__", "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_run_one_way(path: Path) -> None:
    own = room_of(path)
    for module in imported(ast.parse(path.read_text(encoding="utf-8"))):
        if not module.startswith("srcli."):
            continue
        target = room(module)
        if target == "__version__":
            continue
        assert target in {own} | LAYERS[own] | FLOOR | LEAVES, f"{path.name} imports {module}"


def test_a_familys_name_stands_in_its_own_folder_alone() -> None:
    for path in FILES:
        own = path.relative_to(PACKAGE).parts[:2]
        others = METHODS - ({own[1]} if own[0] == "families" and len(own) > 1 else set())
        named = {node.value for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Constant)}
        parts = {part for module in imported(ast.parse(path.read_text(encoding="utf-8"))) for part in module.split(".")}
        assert not others & ((named - WORDS) | parts), path


@pytest.mark.parametrize("module", ["tiles", "cli", "config", "console", "disk", "files", "spec"])
def test_light_modules_import_no_heavy_library(module: str) -> None:
    heavy = {"torch", "diffusers", "peft", "transformers", "cv2", "accelerate", "torchvision"}
    paths = [path for path in FILES if path.stem == module or (module in ("cli", "config") and path.parent.name == module)]
    assert paths
    for path in paths:
        assert not heavy & {name.split(".")[0] for name in eager(path)}, path


def test_ray_is_imported_by_the_fleet_alone_and_when_it_is_needed() -> None:
    for path in FILES:
        names = imported(ast.parse(path.read_text(encoding="utf-8"))) if room_of(path) != "fleet" else eager(path)
        assert "ray" not in {name.split(".")[0] for name in names}, path


def test_nothing_imports_torchvision() -> None:
    for path in FILES:
        names = imported(ast.parse(path.read_text(encoding="utf-8")))
        assert "torchvision" not in {name.split(".")[0] for name in names}, path


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys; from srcli.cli.main import app\n"
        "try: app(['upscale', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'cv2', 'diffusers', 'numpy') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("model", ["light", "tiny"])
def test_a_picture_needs_none_of_what_training_needs(tmp_path: Path, model: str) -> None:
    Image.new("RGB", (16, 12), "teal").save(tmp_path / "a.png")
    code = (
        "import sys; from srcli.cli.main import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: code = end.code\n"
        "slow = ('diffusers', 'peft', 'transformers', 'accelerate', 'spandrel', 'torchvision', 'scipy', 'torch._dynamo')\n"
        "slow += ('fsspec', 's3fs', 'aiohttp', 'botocore')\n"
        "print(code, [m for m in slow if m in sys.modules], file=sys.stderr)"
    )
    options = ["upscale", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), "-q", "--device", "cpu"]
    options += ["--model", model]
    done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "0 []"
    assert (tmp_path / "b.png").is_file()
