"""PiSA-SR: one step, two adapters, two dials.

Source: Sun et al., "Pixel-level and Semantic-level Adjustable Super-resolution: A Dual-LoRA Approach", CVPR 2025.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from srcli.protocol.declarations import Dial, Family, Import, RowKey, Slot, Stage, StageOption

if TYPE_CHECKING:
    from srcli.config.training import TrainConfig

PIXEL, SEMANTIC = "pixel", "semantic"

TARGETS = r"(conv_in|conv_out|.*\.(to_q|to_k|to_v|to_out\.0|conv\d*|conv_shortcut|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2))"
"""The UNet's layers that PiSA-SR adapts: all convolutions and all attention and MLP projections, not the time embedding."""
_PROMPTS = "Prompts"


def _semantic_faults(config: TrainConfig) -> list[str]:
    """Score distillation pulls from the negative prompt to the positive one: between equal ones it is 0."""
    positive, negative = config.told["prompts.positive"], config.told["prompts.negative"]
    if not getattr(config.recipe.losses, "csd", 0) or positive != negative or config.captions:
        return []
    return [f"score distillation needs a negative prompt other than the positive one (`{positive}`): give `--negative-prompt`"]


FAMILY = Family(
    title="PiSA-SR",
    dials=(
        Dial("lambda_pixel", "λ_pix", "weight of pixel fidelity: denoise and deblur", 1.0, usual=(0, 2), adapter=PIXEL),
        Dial(
            "lambda_semantic",
            "λ_sem",
            "weight of semantic detail: texture and sharpness",
            1.0,
            usual=(0, 2),
            adapter=SEMANTIC,
            painted=True,
        ),
        Dial("timestep", "t", "diffusion timestep that the UNet is told", 1, 0, 999, whole=True),
    ),
    adapters=(
        Slot(PIXEL, "the adapter for pixel fidelity"),
        Slot(SEMANTIC, "the adapter for semantic detail, which builds on the pixel adapter", required=False),
    ),
    keys=(
        RowKey("prompt", "the prompt at inference", "", prompt=True),
        RowKey("prompts.positive", "the positive prompt of training", "", prompt=True),
        RowKey("prompts.negative", "the negative prompt of training", "", prompt=True),
    ),
    moved_keys={"timestep": "dials.timestep"},
    stages={
        PIXEL: Stage(
            """Train a pixel adapter: PiSA-SR's first stage.

            Photos are degraded as Real-ESRGAN does; the adapter learns to undo it.
            SIGTERM and Ctrl-C save a checkpoint; `--resume` goes on from it. Works
            under `accelerate launch` on several GPUs and nodes.

            Example: srcli train-pixel --data ~/photos -o runs/pixel --steps 2000
            """,
            defaults={"steps": 4000, "targets": TARGETS},
        ),
        SEMANTIC: Stage(
            """Train a semantic adapter on a frozen pixel adapter: PiSA-SR's second stage.

            Squared error, LPIPS and score distillation by the base (all weights are
            options). Without LPIPS weights, train with `--lpips 0 --features 1`, as
            the recipe of `tiny` does.

            Example: srcli train-semantic --data ~/photos --pixel runs/pixel -o runs/semantic
            """,
            defaults={"steps": 8500, "targets": TARGETS, "losses": {"lpips": 2.0, "csd": 1.0}},
            needs=(PIXEL,),
            options=(
                StageOption("csd", "Weight of score distillation.", "losses.csd"),
                StageOption(
                    "guidance_scale", "Guidance of the teacher in score distillation.", "csd.guidance_scale", only_with="csd"
                ),
                StageOption(
                    "step_range", "Noise steps of score distillation, as two shares.", "csd.step_range", count=2, only_with="csd"
                ),
                StageOption(
                    "null_prompt_ratio",
                    "Share of samples that the UNet sees under the empty prompt.",
                    "csd.null_prompt_ratio",
                    only_with="csd",
                ),
                StageOption(
                    "orthogonal",
                    "Keep the adapter's update off what the pixel adapter spans.",
                    "orthogonal",
                    bool,
                    panel="Training (the recipe)",
                ),
                StageOption(
                    "prompt",
                    "Positive prompt, after the caption if there is one. The model's if not given.",
                    "prompts.positive",
                    str,
                    panel=_PROMPTS,
                    of_row=True,
                    only_with="csd",
                ),
                StageOption(
                    "negative_prompt",
                    "Negative prompt. The model's if not given.",
                    "prompts.negative",
                    str,
                    panel=_PROMPTS,
                    of_row=True,
                    only_with="csd",
                ),
            ),
            captions="csd",
            check=_semantic_faults,
        ),
    },
    imports=Import(
        files=("pisa_sr.pkl",),
        about="PiSA-SR's own checkpoint, pisa_sr.pkl; its base is SD 2.1-base.",
        base_files=("unet/config.json",),
        row={
            "description": "PiSA-SR, imported",
            "native_scale": 4,
            "prompt": "",
            "prompts": {
                "positive": "",
                "negative": "painting, illustration, cartoon, 3D render, blurry, noisy, jpeg artifacts, over-smooth, "
                "low quality, watermark",
            },
            "tile": 768,
            "overlap": 256,
            "min_side": 128,
            "color_fix": "adain",
        },
    ),
)
