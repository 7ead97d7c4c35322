from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_model import make_base
from torch import Tensor
from torch.nn import Parameter

from srcli.errors import ModelError, UsageError
from srcli.families.pisasr import TARGETS
from srcli.families.pisasr.orthogonal import Projector, fidelity_subspaces, overlap
from srcli.networks.adapters import Adapter, AdapterInfo, merge
from srcli.networks.attached import attach, extract
from srcli.networks.backbone import load_unet

RANK, ALPHA = 4, 8.0
SHAPES = {  # (out, in[, kernel, kernel]) of the layer
    "attn.to_q": (24, 20),
    "conv_in": (16, 6, 3, 3),
    "conv_out": (3, 16, 3, 3),
    "ff.net.2": (12, 3),
}


def make_adapter(seed: int = 0, rank: int = RANK, scale: float = 1.0) -> Adapter:
    chance = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (out, *rest) in SHAPES.items():
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, *rest, generator=chance)
        up = torch.randn(out, rank, generator=chance) * torch.tensor([3.0, 1.0, 0.3, 0.1] + [0.01] * (rank - 4))
        tensors[f"{name}.lora_B.weight"] = scale * up.view(out, rank, *[1 for _ in rest[1:]])
    return Adapter("pixel", tensors, AdapterInfo(rank, ALPHA))


def dense(adapter: Adapter, name: str) -> Tensor:
    """ΔW as a matrix, (out, in·kh·kw), float64."""
    down, up = (adapter.tensors[f"{name}.lora_{half}.weight"].double() for half in "AB")
    return adapter.info.alpha / adapter.info.rank * up.flatten(1) @ down.flatten(1)


def semantic_parameters(seed: int = 1) -> dict[str, Parameter]:
    adapter = make_adapter(seed)
    return {name: Parameter(adapter.tensors[f"{name}.lora_B.weight"]) for name in SHAPES}


def leak(parameters: dict[str, Parameter], subspaces: dict[str, Tensor]) -> float:
    """The largest relative part of any lora_B inside its subspace."""
    parts = []
    for name, parameter in parameters.items():
        matrix = parameter.detach().flatten(1)
        free = subspaces[name].shape[1] < len(matrix)
        parts.append(float((subspaces[name].T @ matrix).norm() / (matrix.norm() if free else 1)))
    return max(parts)


# --- subspaces ---


@pytest.mark.parametrize("rank", [4, 18])
@pytest.mark.parametrize("energy", [0.5, 0.95, 0.999])
def test_subspaces_are_those_of_the_full_decomposition(energy: float, rank: int) -> None:
    adapter = make_adapter(rank=rank)
    subspaces = fidelity_subspaces(adapter, energy)
    assert subspaces.keys() == SHAPES.keys()
    for name, ours in subspaces.items():
        vectors, values, _ = torch.linalg.svd(dense(adapter, name), full_matrices=False)
        shares = values.square().cumsum(0) / values.square().sum()
        count = next(k for k in range(1, len(values) + 1) if shares[k - 1] >= energy)
        assert ours.shape == (SHAPES[name][0], count)
        assert torch.allclose(ours.T @ ours, torch.eye(count), atol=1e-6)
        projector = (vectors[:, :count] @ vectors[:, :count].T).float()
        assert torch.allclose(ours @ ours.T, projector, atol=1e-5)


@pytest.mark.parametrize(
    ("squares", "energy", "expected"),
    [((95.0, 5.0), 0.95, 1), ((94.9, 5.1), 0.95, 2), ((95.1, 4.9), 0.95, 1), ((95.0, 5.0), 1.0, 2), ((1.0, 0.0), 1.0, 1)],
)
def test_a_share_that_is_just_reached_is_enough(squares: tuple[float, float], energy: float, expected: int) -> None:
    up = torch.zeros(6, 2)
    up[1, 0], up[4, 1] = (math.sqrt(square) for square in squares)
    tensors = {"x.lora_A.weight": torch.eye(2, 5), "x.lora_B.weight": up}
    basis = fidelity_subspaces(Adapter("pixel", tensors, AdapterInfo(2, 2)), energy)["x"]
    assert basis.shape == (6, expected)
    assert float(basis[1, 0].abs()) == pytest.approx(1)


def test_rounding_does_not_add_a_direction() -> None:
    up = torch.zeros(9, 4)
    up[[1, 3, 5, 7], [0, 1, 2, 3]] = torch.tensor([19.0, 3.0, 3.0, 1.0])  # 19² of 380 is 0.95
    tensors = {"x.lora_A.weight": 0.3 * torch.eye(4, 7), "x.lora_B.weight": up}
    assert fidelity_subspaces(Adapter("pixel", tensors, AdapterInfo(4, 3.0)), 0.95)["x"].shape == (9, 1)


def test_an_update_of_zero_takes_no_room() -> None:
    assert {name: basis.shape for name, basis in fidelity_subspaces(make_adapter(scale=0.0)).items()} == {
        name: (shape[0], 0) for name, shape in SHAPES.items()
    }


@pytest.mark.parametrize("energy", [0.0, -1.0, 1.01, math.nan])
def test_an_energy_that_is_no_share_is_refused(energy: float) -> None:
    with pytest.raises(UsageError, match="energy"):
        fidelity_subspaces(make_adapter(), energy)


def test_overlap_is_the_share_of_energy_inside() -> None:
    subspaces = fidelity_subspaces(make_adapter())
    semantic = make_adapter(seed=1)
    inside = sum(float((subspaces[name].double().T @ dense(semantic, name)).square().sum()) for name in SHAPES)
    total = sum(float(dense(semantic, name).square().sum()) for name in SHAPES)
    assert overlap(semantic, subspaces) == pytest.approx(inside / total, rel=1e-6)
    assert overlap(make_adapter(), subspaces) > 0.95
    assert overlap(make_adapter(scale=0.0), subspaces) == 0
    assert overlap(semantic, {}) == 0


# --- projection ---


def test_projected_gradients_are_orthogonal_and_keep_the_rest() -> None:
    subspaces = fidelity_subspaces(make_adapter())
    parameters = semantic_parameters()
    before = {}
    for name, parameter in parameters.items():
        parameter.grad = before[name] = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
        before[name] = parameter.grad.clone()
    Projector(parameters, subspaces).project_gradients()
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        basis, after = subspaces[name], parameter.grad.flatten(1)
        assert float((basis.T @ after).abs().max()) < 1e-5
        removed = before[name].flatten(1) - after
        assert torch.allclose(basis @ (basis.T @ removed), removed, atol=1e-5)
        assert float(removed.norm()) > 0.1


def train(parameters: dict[str, Parameter], subspaces: dict[str, Tensor], *, weights_too: bool) -> None:
    """Twenty steps of Adam towards random targets, from zero."""
    chance = torch.Generator().manual_seed(3)
    targets = {name: torch.randn(parameter.shape, generator=chance) for name, parameter in parameters.items()}
    optimiser = torch.optim.AdamW(parameters.values(), lr=0.05, weight_decay=1e-2)
    projector = Projector(parameters, subspaces)
    for _ in range(20):
        optimiser.zero_grad()
        torch.stack([(parameters[name] - targets[name]).square().sum() for name in parameters]).sum().backward()
        projector.project_gradients()
        optimiser.step()
        if weights_too:
            projector.project_weights()


def test_adam_leaves_the_free_space_unless_weights_are_projected_too() -> None:
    subspaces = fidelity_subspaces(make_adapter())
    gradients_only, both = semantic_parameters(), semantic_parameters()
    with torch.no_grad():
        for parameter in [*gradients_only.values(), *both.values()]:
            parameter.zero_()
    train(gradients_only, subspaces, weights_too=False)
    train(both, subspaces, weights_too=True)
    assert leak(gradients_only, subspaces) > 0.1
    assert leak(both, subspaces) < 1e-6
    assert float(both["conv_in"].detach().norm()) > 1


def test_parameters_without_a_gradient_are_passed_over() -> None:
    parameters = semantic_parameters()
    parameters["conv_in"].grad = torch.ones_like(parameters["conv_in"])
    Projector(parameters, fidelity_subspaces(make_adapter())).project_gradients()
    assert not torch.equal(parameters["conv_in"].grad, torch.ones_like(parameters["conv_in"]))
    assert parameters["attn.to_q"].grad is None


def test_projecting_twice_changes_nothing_more() -> None:
    subspaces = fidelity_subspaces(make_adapter())
    parameters = semantic_parameters()
    projector = Projector(parameters, subspaces)
    projector.project_weights()
    once = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    projector.project_weights()
    assert all(torch.allclose(parameters[name], once[name], atol=1e-6) for name in parameters)
    assert leak(parameters, subspaces) < 1e-6


def test_layers_without_a_subspace_stay_as_they_are() -> None:
    subspaces = fidelity_subspaces(make_adapter())
    del subspaces["ff.net.2"]
    subspaces["attn.to_q"] = torch.zeros(24, 0)
    parameters = semantic_parameters()
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    Projector(parameters, subspaces).project_weights()
    unchanged = {name for name in parameters if torch.equal(parameters[name], before[name])}
    assert unchanged == {"ff.net.2", "attn.to_q"}


def test_half_precision_weights_are_projected_in_float32() -> None:
    subspaces = fidelity_subspaces(make_adapter())
    parameters = {name: Parameter(parameter.detach().bfloat16()) for name, parameter in semantic_parameters().items()}
    expected = {name: Parameter(parameter.detach().float()) for name, parameter in parameters.items()}
    Projector(expected, subspaces).project_weights()
    with torch.autocast("cpu", torch.bfloat16):
        Projector(parameters, subspaces).project_weights()
    for name, parameter in parameters.items():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, expected[name].bfloat16())


def test_adapters_that_do_not_belong_together_are_refused() -> None:
    subspaces = fidelity_subspaces(make_adapter())
    with pytest.raises(ModelError, match="no layer in common"):
        Projector({"elsewhere": Parameter(torch.zeros(2, 2))}, subspaces)
    with pytest.raises(ModelError, match="`conv_in`"):
        Projector({"conv_in": Parameter(torch.zeros(17, 4, 1, 1))}, subspaces)


def test_a_semantic_adapter_on_a_unet_stays_orthogonal_to_the_pixel_adapter(tmp_path: Path) -> None:
    base = make_base(tmp_path)
    torch.manual_seed(4)
    unet = load_unet(base)
    with torch.no_grad():
        for parameter in attach(unet, "pixel", 2, 2, TARGETS):
            parameter.normal_(0, 0.1)
    pixel = extract(unet, "pixel", AdapterInfo(2, 2.0))
    subspaces = fidelity_subspaces(pixel)
    unet = load_unet(base)
    merge(unet, [pixel])
    trained = attach(unet, "semantic", 2, 2, TARGETS)
    mark = ".lora_B.semantic.weight"
    parameters = {key.removesuffix(mark): value for key, value in unet.named_parameters() if key.endswith(mark)}
    assert parameters.keys() == subspaces.keys()
    projector = Projector(parameters, subspaces)
    optimiser = torch.optim.Adam(trained, lr=1e-2)
    for _ in range(3):
        optimiser.zero_grad()
        residual = unet(torch.randn(1, 48, 4, 4), 1, encoder_hidden_states=torch.randn(1, 2, 8)).sample
        (residual - 1).square().mean().backward()
        projector.project_gradients()
        optimiser.step()
        projector.project_weights()
    semantic = extract(unet, "semantic", AdapterInfo(2, 2.0))
    assert sum(float(parameter.detach().square().sum()) for parameter in parameters.values()) > 0.01
    assert overlap(semantic, subspaces) < 1e-12
