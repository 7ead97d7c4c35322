"""Any single-image network that spandrel recognises: one file of weights, one pass; and adapters of it, with a dial for each.

spandrel (MIT) knows the architectures; the files are read by srcli, and no code in them is run.

The adapters are after AdaptSR (arXiv 2503.07748), of which the abstract alone is public: LoRA in the convolutions and the
attention and MLP layers of a frozen network that was trained on bicubic damage, merged for inference. The two adapters, of which
the second is trained on the first, and their dials are PiSA-SR's (Sun et al., CVPR 2025).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from srcli.protocol.declarations import Base, Dial, Family, Slot, Stage, StageOption

if TYPE_CHECKING:
    from srcli.config.training import TrainConfig

PIXEL, SEMANTIC = ADAPTERS = ("pixel", "semantic")

_DEFAULTS: dict[str, Any] = {"batch": 8, "crop": 192, "steps": 2000, "learning_rate": 5e-4, "schedule": "cosine", "warmup": 50}
"""Of both stages."""
_OPTIONS = (
    StageOption(
        "layers",
        "Kinds of layers that get an adapter: some of conv, attention, mlp, with commas.",
        "layers",
        str,
        panel="Training (the recipe)",
    ),
    StageOption(
        "budget",
        "Numbers that `--rank auto` shares out; 0 for as many as rank 8 everywhere has.",
        "budget",
        int,
        panel="Training (the recipe)",
    ),
)


def _faults(config: TrainConfig) -> list[str]:
    if config.recipe.degradation.resize_back == "bicubic":
        return []
    return ["`degradation.resize_back` has no effect: networks in one file take their input as small as it is"]


FAMILY = Family(
    title="super-resolution network",
    dials=(
        Dial("lambda_pixel", "λ_pix", "weight of pixel fidelity: denoise and deblur", 1.0, usual=(0, 2), adapter=PIXEL),
        Dial("lambda_semantic", "λ_sem", "weight of semantic detail: texture and sharpness", 1.0, usual=(0, 2), adapter=SEMANTIC),
        Dial("strength", "λ", "weight of the network against the plainly enlarged input", 1.0, 0, 2, painted=True),
    ),
    adapters=(
        Slot(PIXEL, "an adapter for the damage of real photos", required=False),
        Slot(SEMANTIC, "an adapter for detail, which builds on the pixel adapter", required=False),
    ),
    base=Base.ONE_FILE,
    stages={
        PIXEL: Stage(
            """Train a pixel adapter of a network in one file, for the damage of real photos.

            The network stays as it is; the adapter is merged into it for use, so that
            it costs nothing there. With pairs of real photos (`--data HQ,lq=LQ`) LQ has
            the network's input size.

            Example: srcli train-pixel --model 4x-net.safetensors --data ~/photos -o runs/pixel
            """,
            defaults={**_DEFAULTS, "losses": {"l2": 0.0, "l1": 1.0}},
            options=_OPTIONS,
            check=_faults,
        ),
        SEMANTIC: Stage(
            """Train a semantic adapter of a network in one file, for detail, on its frozen pixel adapter.

            By the absolute error, the distance of features and an adversarial loss.

            Example: srcli train-semantic --model 4x-net.safetensors --pixel runs/pixel --data ~/photos -o runs/semantic
            """,
            defaults={**_DEFAULTS, "losses": {"l2": 0.0, "l1": 1.0, "features": 0.5, "gan": 0.05}},
            needs=(PIXEL,),
            options=_OPTIONS,
            check=_faults,
        ),
    },
    raw_input=True,
    defaults={"tile": 0, "overlap": 0, "tiling": "context", "color_fix": "none"},
    files=(".safetensors", ".pth", ".pt", ".ckpt", ".bin"),
)
"""A row's `tile` and `overlap` of 0 are chosen from the network: by its memory, and by how far it sees."""
