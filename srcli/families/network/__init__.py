"""Any single-image network that spandrel recognises: one file of weights, one pass; and adapters of it, with a dial for each.

spandrel (MIT) knows the architectures; the files are read by srcli, and no code in them is run.

The adapters are after AdaptSR (arXiv 2503.07748), of which the abstract alone is public: LoRA in the convolutions and the
attention and MLP layers of a frozen network that was trained on bicubic damage, merged for inference. The two adapters, of which
the second is trained on the first, and their dials are PiSA-SR's (Sun et al., CVPR 2025).
"""

from __future__ import annotations

from srcli.protocol import Base, Dial, Family, Slot

PIXEL, SEMANTIC = ADAPTERS = ("pixel", "semantic")

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
    defaults={"tile": 0, "overlap": 0, "tiling": "context", "color_fix": "none"},
    files=(".safetensors", ".pth", ".pt", ".ckpt", ".bin"),
)
"""A row's `tile` and `overlap` of 0 are chosen from the network: by its memory, and by how far it sees."""
