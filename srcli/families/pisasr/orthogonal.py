"""Keep the semantic adapter out of what the pixel adapter needs: `--orthogonal`.

For each layer, the pixel adapter's update is ΔW = (alpha / rank)·B·A. Its strongest left singular vectors U_k span the outputs
that fidelity depends on; the semantic adapter may write to all others. As ΔW_sem = (alpha / rank)·B_sem·A_sem, that holds exactly
if U_kᵀ·B_sem = 0, whatever A_sem is.

Source of the idea: "FreqOrtho-SR", 2026, arXiv 2606.28745, which projects the gradient of B_sem. That alone is not enough: Adam
divides each element by its own running scale, and the step leaves the space that the gradient lies in. So B_sem itself is
projected too, after each step; the layer then stays orthogonal to within float32's rounding.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

from srcli.errors import ModelError, UsageError
from srcli.networks.adapters import Adapter

ENERGY = 0.95
_ROUNDING = 1e-9
"""Relative; a share that reaches `energy` but for the rounding of float64 has reached it."""


def fidelity_subspaces(adapter: Adapter, energy: float = ENERGY) -> dict[str, Tensor]:
    """What each layer of the pixel adapter writes to: the fewest left singular vectors that hold `energy` of its update.

    Computed in float64 by QR of B and Aᵀ and the SVD of the small matrix between them; ΔW is never formed.

    Args:
        adapter: the pixel adapter. Convolutions count as matrices (out, in·kh·kw).
        energy: share of the squared singular values, in (0, 1]; 1 keeps all that are not rounding.

    Returns:
        for each module U_k, (out, k), float32, on the CPU, with orthonormal columns; k = 0 where the update is zero. Where
        k = out the semantic adapter cannot change the layer at all.

    Raises:
        UsageError: energy out of range.
    """
    if not 0 < energy <= 1:
        raise UsageError(f"the energy `{energy}` is not a share above 0 and up to 1", f"the usual value is {ENERGY}")
    return {module: _strongest(*_factors(adapter, module), energy).float() for module in adapter.modules}


def overlap(adapter: Adapter, subspaces: Mapping[str, Tensor]) -> float:
    """The share of an update that lies where fidelity does: Σ‖U_kᵀ·ΔW‖² / Σ‖ΔW‖² over all layers (Frobenius).

    Args:
        adapter: the semantic adapter.
        subspaces: of the pixel adapter, by module; a module without one counts as free.

    Returns:
        a number in [0, 1]; 0 for an adapter that changes nothing.
    """
    inside = total = 0.0
    for module in adapter.modules:
        up, down = _factors(adapter, module)
        update = up @ torch.linalg.qr(down.T).R.T  # has the norms of B·A: the rows of A's Q are orthonormal
        total += float(update.square().sum())
        if module in subspaces:
            inside += float((subspaces[module].to(up).T @ update).square().sum())
    return inside / total if total else 0.0


class Projector:
    """Holds lora_B orthogonal to the fidelity subspaces: U_kᵀ·B = 0 in each layer.

    The loop calls `project_gradients` when gradients are complete (summed over processes, not yet clipped), and `project_weights`
    after the optimiser's step. The first keeps Adam's moments free of what would be thrown away, the second makes the result
    exact.

    Args:
        parameters: lora_B of the semantic adapter by module, (out, rank) or (out, rank, 1, 1), on any device.
        subspaces: U_k by module, (out, k); a module that has none stays free.

    Raises:
        ModelError: no layer in common, or a layer of another width; every such layer is named.
    """

    def __init__(self, parameters: Mapping[str, Parameter], subspaces: Mapping[str, Tensor]) -> None:
        shared = sorted(parameters.keys() & subspaces.keys())
        wrong = [name for name in shared if len(parameters[name]) != len(subspaces[name])]
        if wrong or not shared:
            reason = f"other widths in {', '.join(f'`{name}`' for name in wrong)}" if wrong else "no layer in common"
            message = f"the semantic adapter cannot be kept orthogonal to the pixel adapter: {reason}"
            raise ModelError(message, "both adapters must be for the same base")
        self._pairs = [
            (parameters[name], subspaces[name].to(parameters[name].device, torch.float32))
            for name in shared
            if subspaces[name].shape[1]
        ]

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Replace each gradient g by g - U_k·(U_kᵀ·g), in place; a parameter that has none is passed over."""
        for parameter, basis in self._pairs:
            if parameter.grad is not None:
                _remove(parameter.grad, basis)

    @torch.no_grad()
    def project_weights(self) -> None:
        """Replace each B by B - U_k·(U_kᵀ·B), in place."""
        for parameter, basis in self._pairs:
            _remove(parameter, basis)


def _remove(matrix: Tensor, basis: Tensor) -> None:
    """Subtract from `matrix`, (out, ...), its part inside `basis`, (out, k); in place, computed in float32 with autocast off."""
    with torch.autocast(matrix.device.type, enabled=False):
        flat = matrix.flatten(1).float()
        matrix.copy_((flat - basis @ (basis.T @ flat)).view_as(matrix))


def _factors(adapter: Adapter, module: str) -> tuple[Tensor, Tensor]:
    """B, (out, rank), times alpha / rank, and A, (rank, in·kh·kw), both float64 on the CPU."""
    down, up = (adapter.tensors[f"{module}.lora_{half}.weight"].flatten(1).double().cpu() for half in "AB")
    return up * (adapter.info.alpha / adapter.info.rank), down


def _strongest(up: Tensor, down: Tensor, energy: float) -> Tensor:
    """The first left singular vectors of up·down, (out, rank)·(rank, in), as many as `energy` needs: (out, k)."""
    left, right = torch.linalg.qr(up), torch.linalg.qr(down.T)
    vectors, values, _ = torch.linalg.svd(left.R @ right.R.T)
    reached = values.square().cumsum(0)
    missing = reached < (energy - _ROUNDING) * reached[-1]
    count = int(missing.sum()) + 1 if reached[-1] > 0 else 0
    strongest: Tensor = left.Q @ vectors[:, :count]
    return strongest
