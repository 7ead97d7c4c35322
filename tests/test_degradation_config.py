from __future__ import annotations

import dataclasses
import json
import math
import pickle
import subprocess
import sys
from typing import Any

import pytest
import tomlkit
from pydantic import TypeAdapter, ValidationError

from srcli.config.degradation import Degradation, FinalStage, FirstStage, KernelOdds, Kernels, SecondStage

ADAPTER = TypeAdapter(Degradation)

SIZES = [7, 9, 11, 13, 15, 17, 19, 21]
MODES = ["area", "bilinear", "bicubic"]
KERNELS = {
    "sizes": SIZES,
    "sinc_probability": 0.1,
    "sinc_small_below": 13,
    "sinc_cutoff_small": [math.pi / 3, math.pi],
    "sinc_cutoff_large": [math.pi / 5, math.pi],
    "theta": [-math.pi, math.pi],
    "low_beta_probability": 0.5,
    "generalised_beta": [0.5, 4],
    "plateau_beta": [1, 2],
    "odds": {
        "isotropic": 0.45,
        "anisotropic": 0.25,
        "generalised_isotropic": 0.12,
        "generalised_anisotropic": 0.03,
        "plateau_isotropic": 0.12,
        "plateau_anisotropic": 0.03,
    },
}
NOISE_AND_MODES = {"resize_modes": MODES, "gaussian_probability": 0.5, "gray_probability": 0.4, "kernels": KERNELS}
REFERENCE = {  # the numbers of PiSA-SR's training, written out
    "resize_back": "bicubic",
    "mild_probability": 0,
    "mild_sharpening": 0,
    "first": {
        "blur_probability": 1,
        "sigma": [0.2, 3],
        "resize_odds": [0.2, 0.7, 0.1],
        "enlarge": [1, 1.5],
        "shrink": [0.3, 1],
        "gaussian_sigma": [1, 15],
        "poisson_scale": [0.05, 2],
        "jpeg_probability": 1,
        "jpeg_quality": [60, 95],
        **NOISE_AND_MODES,
    },
    "second": {
        "blur_probability": 0.5,
        "sigma": [0.2, 1.5],
        "resize_odds": [0.3, 0.4, 0.3],
        "enlarge": [1, 1.2],
        "shrink": [0.6, 1],
        "gaussian_sigma": [1, 12],
        "poisson_scale": [0.05, 1],
        **NOISE_AND_MODES,
    },
    "final": {
        "resize_first_probability": 0.5,
        "resize_modes": MODES,
        "kernel_sizes": SIZES,
        "sinc_probability": 0.8,
        "sinc_cutoff": [math.pi / 3, math.pi],
        "jpeg_probability": 1,
        "jpeg_quality": [60, 100],
    },
}


def as_lists(how: Degradation) -> dict[str, Any]:
    """As TOML and JSON hold it: lists for tuples."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(how)))
    return plain


def faults(recipe: dict[str, Any]) -> dict[str, str]:
    """The faults of a recipe, message by dotted name."""
    with pytest.raises(ValidationError) as caught:
        ADAPTER.validate_python(recipe)
    return {".".join(map(str, fault["loc"])): fault["msg"] for fault in caught.value.errors()}


def test_the_defaults_are_the_numbers_of_the_reference() -> None:
    assert as_lists(Degradation()) == REFERENCE


def test_lists_of_a_recipe_become_the_same_settings() -> None:
    assert ADAPTER.validate_python(REFERENCE) == Degradation()


def test_toml_keeps_every_number() -> None:
    how = Degradation(resize_back="random", second=SecondStage(sigma=(1 / 3, 2 / 3)))
    text = tomlkit.dumps(as_lists(how))
    assert ADAPTER.validate_python(tomlkit.parse(text).unwrap()) == how


def test_a_pickle_keeps_every_number() -> None:
    how = Degradation(final=FinalStage(sinc_probability=0.25))
    assert pickle.loads(pickle.dumps(how)) == how


@pytest.mark.parametrize("stage", ["first", "second", "final"])
def test_one_changed_key_leaves_the_others_of_its_stage(stage: str) -> None:
    changed = as_lists(ADAPTER.validate_python({stage: {"resize_modes": ["area"]}}))
    changed[stage]["resize_modes"] = MODES
    assert changed == REFERENCE


def test_one_changed_key_of_the_kernels_leaves_the_widths_of_the_stage() -> None:
    how = ADAPTER.validate_python({"second": {"kernels": {"sinc_probability": 0.0}}})
    assert how.second.sigma == (0.2, 1.5)
    assert how.first.kernels.sinc_probability == 0.1


def test_all_faults_are_named_at_once() -> None:
    found = faults(
        {
            "unheard": 1,
            "resize_back": "nearest",
            "first": {
                "blur_probability": 1.5,
                "sigma": [3, 0.2],
                "resize_odds": [0.5, 0.5, 0.1],
                "shrink": [0.5, 1.5],
                "jpeg_quality": [0, 95],
                "gaussian_sigma": "loud",
                "kernels": {"sizes": [7, 8], "odds": {"isotropic": 0.5}, "generalised_beta": [2, 3], "sharpen": 1},
            },
            "final": {"sinc_cutoff": [1, 4], "resize_modes": ["area", "area"], "kernel_sizes": []},
        }
    )
    assert set(found) == {
        "unheard",
        "resize_back",
        "first.blur_probability",
        "first.sigma",
        "first.resize_odds",
        "first.shrink.1",
        "first.jpeg_quality.0",
        "first.gaussian_sigma",
        "first.kernels.sizes",
        "first.kernels.odds",
        "first.kernels.generalised_beta",
        "first.kernels.sharpen",
        "final.sinc_cutoff.1",
        "final.resize_modes",
        "final.kernel_sizes",
    }
    assert "low end 3 is above the high end 0.2" in found["first.sigma"]
    assert "sum to 1.1, not to 1" in found["first.resize_odds"]
    assert "sum to 1.05, not to 1" in found["first.kernels.odds"]
    assert "odd, unlike 8" in found["first.kernels.sizes"]
    assert "1 is not between 2 and 3" in found["first.kernels.generalised_beta"]


@pytest.mark.parametrize("value", ["0.5", True, math.nan, -0.1, 1.1, None])
def test_a_probability_is_a_number_from_0_to_1(value: object) -> None:
    assert set(faults({"second": {"blur_probability": value}})) == {"second.blur_probability"}


@pytest.mark.parametrize("value", [0.5, [0.5], [0.5, 0.6, 0.7], {"low": 0.5}])
def test_a_range_has_two_ends(value: object) -> None:
    (name,) = {name.rsplit(".", 1)[0] if name[-1].isdigit() else name for name in faults({"second": {"sigma": value}})}
    assert name == "second.sigma"


def test_odds_may_miss_1_by_rounding_only() -> None:
    assert SecondStage(resize_odds=(0.3333333, 0.3333333, 0.3333333)).resize_odds[0] == 0.3333333
    with pytest.raises(ValidationError, match="odds sum to"):
        SecondStage(resize_odds=(0.33333, 0.33333, 0.33333))
    with pytest.raises(ValidationError, match="odds sum to"):
        KernelOdds(isotropic=0.45001)


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Degradation().first.sigma = (1.0, 1.0)  # type: ignore[misc]


def test_every_key_has_a_description() -> None:
    def descriptions(schema: dict[str, Any]) -> dict[str, str]:
        return {name: content.get("description", "") for name, content in schema["properties"].items()}

    for kind in (FirstStage, SecondStage, FinalStage, Kernels, KernelOdds, Degradation):
        schema = TypeAdapter(kind).json_schema()
        for name, words in descriptions(schema).items():
            nested = name in ("kernels", "odds", "first", "second", "final")
            assert words or nested, f"{kind.__name__}.{name}"


def test_the_settings_load_no_heavy_library() -> None:
    code = "import sys, srcli.config.degradation; print([m for m in ('numpy', 'torch', 'cv2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
