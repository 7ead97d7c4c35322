"""Two models of any families, and PiSA-SR's dials between their pictures: one for fidelity, one for detail.

    result = x + λ_pix·(P - x) + λ_sem·(S - P)

is eq. 8 of PiSA-SR (Sun et al., CVPR 2025) with pictures in the place of its residuals: x is the plainly enlarged input, P the
whole result of one model, and S that of the other, each with its own settings.
"""

from __future__ import annotations

from srcli.protocol.declarations import Base, Dial, Family, Slot

PIXEL, SEMANTIC = "pixel", "semantic"

FAMILY = Family(
    title="pair of models",
    dials=(
        Dial("lambda_pixel", "λ_pix", "weight of pixel fidelity: denoise and deblur", 1.0, usual=(0, 2)),
        Dial("lambda_semantic", "λ_sem", "weight of semantic detail: texture and sharpness", 0.5, usual=(0, 1), painted=True),
    ),
    parents=(Slot(PIXEL, "the model that keeps to the input"), Slot(SEMANTIC, "the model that adds detail")),
    base=Base.NONE,
    defaults={"tiling": "even", "overlap": 0, "color_fix": ""},
)
"""A row without a `color_fix` has that of its first parent with one; it is done after the blend, not before."""
