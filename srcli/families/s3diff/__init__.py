"""S3Diff: one step, with weights that an estimate of the picture's degradation makes, and classifier-free guidance.

Source: Zhang et al., "Degradation-Guided One-Step Image Super-Resolution with Diffusion Priors", 2024.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from srcli.protocol.declarations import Dial, Family, Import, RowKey, Slot, Stage, StageOption

if TYPE_CHECKING:
    from srcli.config.degradation import Degradation
    from srcli.config.training import TrainConfig

SEMANTIC, ESTIMATOR = "semantic", "estimator"

POSITIVE = "A high-resolution, 8K, ultra-realistic image with sharp focus, vibrant colors, and natural lighting."
NEGATIVE = "oil painting, cartoon, blur, dirty, messy, low quality, deformation, low resolution, oversmooth"
"""The prompts of the authors' code; their paper quotes another positive one."""

_LAYERS = r"to_q|to_k|to_v|to_out\.0|conv\d*|conv_shortcut|conv_out"
TARGETS = rf"unet\.(.*\.)?({_LAYERS}|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2)|vae\.encoder\.(.*\.)?({_LAYERS}|conv_in)"
"""The layers that S3Diff adapts; the UNet's `conv_in` is trained in full."""
_MILDER: dict[str, Any] = {"generalised_beta": (0.5, 2.0), "plateau_beta": (1.0, 1.5)}
_PANEL = "Training (the recipe)"


_GRADED = ("sigma", "shrink", "gaussian_sigma", "jpeg_quality")
"""What of the damage's first round the estimator's training has by degrees."""


def _ungraded(config: TrainConfig, defaults: Degradation) -> list[str]:
    """What of the damage is told and has no effect where it is by degrees."""
    from dataclasses import replace

    damage = config.recipe.degradation
    if replace(damage, first=replace(damage.first, **{key: getattr(defaults.first, key) for key in _GRADED})) == defaults:
        return []
    keys = ", ".join(f"`degradation.first.{key}`" for key in _GRADED)
    return [f"of `degradation` only {keys} have an effect here"]


def _estimator_faults(config: TrainConfig) -> list[str]:
    from dataclasses import asdict

    from srcli.config.degradation import Degradation

    own = ("ranking", "anchors", "grades")
    pictures = [name for name, weight in asdict(config.recipe.losses).items() if weight and name not in own]
    faults = [f"the loss `{name}` compares pictures, and an estimator makes none: give it a weight of 0" for name in pictures]
    return [*faults, *_ungraded(config, Degradation())]


def _faults(config: TrainConfig) -> list[str]:
    from srcli.config.recipe_file import build_recipe
    from srcli.families.s3diff.recipe import SemanticRecipe

    if cast(SemanticRecipe, config.recipe).scores == "drawn":
        return _ungraded(config, build_recipe(config.family, config.stage, []).degradation)
    if config.recipe.degradation.resize_back == "bicubic":
        return []
    return ["`degradation.resize_back` has no effect: the row's `enlargement` says how the input is enlarged"]


FAMILY = Family(
    title="S3Diff",
    dials=(
        Dial("guidance_scale", "w", "guidance by the prompts: 1 is the most faithful, and one pass", 1.07, 0, usual=(0.9, 1.3)),
        Dial(
            "blur", "d_blur", "how blurred the input is said to be: the more, the more is sharpened", None, 0, 1, finder=ESTIMATOR
        ),
        Dial(
            "noise", "d_noise", "how noisy the input is said to be: the more, the more is smoothed", None, 0, 1, finder=ESTIMATOR
        ),
    ),
    adapters=(
        Slot(SEMANTIC, "the adapter of encoder and UNet, whose weights the two scores of a picture make"),
        Slot(ESTIMATOR, "the estimator of these scores; not needed where `--blur` and `--noise` are given", required=False),
    ),
    keys=(
        RowKey("prompts.positive", "what guidance leads to", POSITIVE, prompt=True),
        RowKey("prompts.negative", "what guidance leads away from", NEGATIVE, prompt=True),
        RowKey("enlargement", "how the input is enlarged before it is encoded", "bilinear", choices=("bilinear", "bicubic")),
        RowKey("timestep", "of the base's noise schedule, at which the one step begins", 999, 0),
    ),
    defaults={"color_fix": "wavelet"},
    raw_input=True,
    stages={
        SEMANTIC: Stage(
            """Train S3Diff's adapter of encoder and UNet, with the weights that each photo's scores make.

            Squared error, LPIPS and an adversarial loss. A share of the samples learns
            what the negative prompt means: to stay as bad as they are. Where no
            hub is reached, train with `--lpips 0 --features 1`, and with
            `gan.network = "efficientnet-lite0"` in a recipe.

            Example: srcli train-semantic --model s3diff --estimator DIR --data ~/photos -o runs/s3diff
            """,
            defaults={
                "steps": 30_000,
                "rank": 32,
                "learning_rate": 2e-5,
                "targets": TARGETS,
                "losses": {"l2": 2.0, "lpips": 5.0, "gan": 0.5},
                "gan": {"network": "dino-vitb16", "features": 128, "target": 0.8, "learning_rate": 2e-5},
                "degradation": {
                    "first": {"sigma": (0.2, 1.5), "kernels": _MILDER},
                    "second": {"sigma": (0.2, 1.0), "kernels": _MILDER},
                },
            },
            needs=(ESTIMATOR,),
            options=(
                StageOption(
                    "vae_rank", "Rank in the encoder's layers; `--rank` is for the UNet's.", "vae_rank", int, panel=_PANEL
                ),
                StageOption(
                    "negative_ratio",
                    "Share of samples whose target is their own input, under the negative prompt.",
                    "negative_ratio",
                    panel=_PANEL,
                ),
            ),
            check=_faults,
        ),
        ESTIMATOR: Stage(
            """Train an estimator of blur and noise, of S3Diff's kind, on photos alone.

            Each photo is damaged by degrees; the worse of two versions has to get the
            higher score, clean photos 0 and the worst ones 1 (MM-RealSR).

            Example: srcli train-estimator --model s3diff --data ~/photos -o runs/estimator
            """,
            defaults={
                "steps": 40_000,
                "batch": 24,
                "crop": 192,
                "learning_rate": 2e-4,
                "weight_decay": 0.0,
                "ema": 0.999,
                "losses": {"l2": 0.0},
                "degradation": {
                    "first": {"shrink": (0.15, 1.0), "gaussian_sigma": (1.0, 30.0), "jpeg_quality": (30.0, 95.0)},
                },
            },
            options=(StageOption("width", "Channels of the estimator; 64 is MM-RealSR's.", "width", int, panel=_PANEL),),
            check=_estimator_faults,
        ),
    },
    imports=Import(
        files=("s3diff.pkl", "de_net.pth"),
        about="S3Diff's own checkpoints, s3diff.pkl and de_net.pth together; their base is SD-Turbo.",
        base_files=("unet/config.json", "vae/config.json"),
        row={
            "description": "S3Diff, imported",
            "native_scale": 4,
            "prompts": {"positive": POSITIVE, "negative": NEGATIVE},
            "enlargement": "bilinear",
            "tile": 768,
            "overlap": 256,
            "min_side": 0,
            "color_fix": "wavelet",
        },
    ),
)
