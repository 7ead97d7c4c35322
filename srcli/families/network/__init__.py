"""Any single-image network that spandrel recognises: one file of weights, one pass, one dial.

spandrel (MIT) knows the architectures; the files are read by srcli, and no code in them is run.
"""

from __future__ import annotations

from srcli.protocol import Base, Dial, Family

FAMILY = Family(
    title="super-resolution network",
    dials=(Dial("strength", "λ", "weight of the network against the plainly enlarged input", 1.0, 0, 2, painted=True),),
    base=Base.ONE_FILE,
    defaults={"tile": 0, "overlap": 0, "tiling": "context", "color_fix": "none"},
    files=(".safetensors", ".pth", ".pt", ".ckpt", ".bin"),
)
"""A row's `tile` and `overlap` of 0 are chosen from the network: by its memory, and by how far it sees."""
