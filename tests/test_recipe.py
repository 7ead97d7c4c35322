from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from commands import srcli

from srcli.config.recipe import Losses, Recipe
from srcli.config.recipe_file import build_recipe, read_recipe_file, recipe_as_toml, recipe_differences
from srcli.errors import UsageError
from srcli.families.pisasr import TARGETS


def test_the_defaults_are_the_papers() -> None:
    pixel, semantic = build_recipe("pisasr", "pixel", []), build_recipe("pisasr", "semantic", [])
    assert (pixel.steps, semantic.steps) == (4000, 8500)
    for recipe in (pixel, semantic):
        assert (recipe.batch, recipe.crop, recipe.rank, recipe.alpha, recipe.learning_rate) == (16, 512, 4, 8.0, 5e-5)
        assert (recipe.schedule, recipe.weight_decay, recipe.clip_norm, recipe.ema) == ("constant", 1e-2, 1.0, 0.0)
        assert recipe.targets == TARGETS
    csd = semantic.csd  # type: ignore[attr-defined]
    assert (csd.guidance_scale, csd.step_range, csd.null_prompt_ratio) == (7.5, (0.02, 0.5), 0.5)
    weights = [{name: weight for name, weight in vars(recipe.losses).items() if weight} for recipe in (pixel, semantic)]
    assert weights == [{"l2": 1.0}, {"l2": 1.0, "lpips": 2.0, "csd": 1.0}]


def test_later_layers_lie_above_and_tables_are_merged() -> None:
    recipe = build_recipe("pisasr", "semantic", [{"rank": 8, "losses": {"gan": 0.1}}, {"rank": 16, "losses": {"csd": 0.5}}])
    assert recipe.rank == 16
    assert vars(recipe.losses) | {"gan": 0.1, "csd": 0.5, "lpips": 2.0} == vars(recipe.losses)


@pytest.mark.parametrize("stage", ["pixel", "semantic"])
def test_a_printed_recipe_reads_back_to_the_same(stage: str, tmp_path: Path) -> None:
    changed = {"schedule": "cosine", "losses": {"gan": 0.1}, "degradation": {"first": {"sigma": [0.1, 2]}}}
    changed |= {"orthogonal": True} if stage == "semantic" else {}
    recipe = build_recipe("pisasr", stage, [changed])
    file = tmp_path / "recipe.toml"
    file.write_text(recipe_as_toml(recipe, "a title"), encoding="utf-8")
    assert build_recipe("pisasr", stage, [read_recipe_file(file)]) == recipe


def test_every_key_of_a_printed_recipe_is_explained() -> None:
    lines = recipe_as_toml(build_recipe("pisasr", "pixel", []), "title").splitlines()
    bare = [line for line in lines if line and not line.startswith("#") and " # " not in line]
    assert bare == []


def test_all_faults_are_named_at_once() -> None:
    wrong = {
        "steps": 0,
        "rnak": 4,
        "losses": {"l2": -1},
        "csd": {"step_range": [0.5, 0.1]},
        "degradation": {"first": {"blur": 1}},
    }
    with pytest.raises(UsageError) as caught:
        build_recipe("pisasr", "semantic", [wrong])
    for part in ("5 faults", "`steps` = 0", "`rnak`", "`losses.l2` = -1", "`csd.step_range`", "`degradation.first.blur`"):
        assert part in caught.value.message, part


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"losses": {"l2": 0}}, "nothing to learn"),
        ({"targets": "("}, "no regular expression"),
        ({"schedule": "stairs"}, "`schedule`"),
        ({"crop": 32, "frequency": {"patch": 64}}, "larger than `crop`"),
        ({"frequency": {"patch": 31}}, "`frequency.patch` = 31: patches overlap by half: give an even number"),
        ({"crop": 36, "losses": {"gan": 0.1}}, "no multiple of 8"),
        ({"steps": 5, "losses": {"l2": 0, "gan": 1}, "gan": {"start": 5}}, "from step 5 of 5 on: there is nothing to learn"),
        ({"losses": {"csd": 1}}, "unknown key `losses.csd`"),
        ({"learning_rate": float("nan")}, "`learning_rate`"),
        ({"frequency": {"excess": 2}}, "`excess` is for the mode `amplitude`"),
        ({"degradation": {"mild_sharpening": 1}}, "`mild_probability`, which is 0"),
    ],
)
def test_values_that_make_no_sense_are_refused(layer: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build_recipe("pisasr", "pixel", [layer])


def test_an_unreadable_recipe_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the recipe"):
        read_recipe_file(tmp_path / "none.toml")
    for content, reason in (
        (b"steps = = 3", "not valid TOML"),
        (b"rank = 1\nrank = 2\n", "not valid TOML"),
        (b"targets = '\xe9'", "not UTF-8 text"),
        (b"x = " + b"[" * 20_000, "nested too deep"),
        (b"losses" + b".a" * 20_000 + b" = 1", "nested too deep"),
        (b"losses" + b' . "a"' * 20_000 + b" = 1", "nested too deep"),
        (b"steps = 1" + b"0" * 5000, "a number needs more than 64 bits"),
    ):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(UsageError, match=reason):
            read_recipe_file(tmp_path / "bad.toml")
    (tmp_path / "windows.toml").write_text("rank = 3\n", encoding="utf-8-sig")
    assert read_recipe_file(tmp_path / "windows.toml") == {"rank": 3}


def test_a_recipe_is_built_from_its_class_alone() -> None:
    assert Recipe().degradation == build_recipe("pisasr", "pixel", []).degradation


def test_every_loss_has_an_option() -> None:
    done = srcli("train-pixel", "--help")
    assert [field.name for field in fields(Losses) if f"--{field.name} " not in done.stdout] == []


def test_the_differences_of_a_recipe_make_it_of_another() -> None:
    plain = build_recipe("pisasr", "semantic", [])
    other = build_recipe("pisasr", "semantic", [{"rank": 9, "losses": {"csd": 0.5}, "csd": {"step_range": [0.1, 0.2]}}])
    layer = recipe_differences(other, plain)
    assert layer == {"rank": 9, "losses": {"csd": 0.5}, "csd": {"step_range": [0.1, 0.2]}}
    assert build_recipe("pisasr", "semantic", [layer]) == other
    assert recipe_differences(plain, plain) == {}
