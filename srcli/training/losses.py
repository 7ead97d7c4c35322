"""What training minimises."""

from __future__ import annotations

from torch import Tensor


def pixel_loss(sr: Tensor, hq: Tensor, l1_weight: float = 0.0) -> Tensor:
    """ℓ2 in image space (PiSA-SR, eq. 3, stage 1), and a share of ℓ1 if asked for.

    Args:
        sr: (N, 3, H, W), RGB, float32, about [-1, 1].
        hq: (N, 3, H, W), RGB, float32 in [-1, 1].
        l1_weight: weight of the mean absolute error; 0 is the paper's loss.

    Returns:
        a scalar, the mean over all elements.
    """
    error = sr - hq
    loss = error.square().mean()
    return loss + l1_weight * error.abs().mean() if l1_weight else loss
