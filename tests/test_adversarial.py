from __future__ import annotations

import io
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from srcli.config.recipe import Gan
from srcli.errors import ModelError, UsageError
from srcli.networks.features import efficientnet_lite
from srcli.training.losses.adversarial import (
    GanKind,
    UNetDiscriminator,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from srcli.training.losses.critic import Critic
from srcli.training.losses.projected import augmented

KINDS: list[GanKind] = ["vanilla", "hinge", "relativistic"]


def make(seed: int = 0, features: int = 4) -> UNetDiscriminator:
    torch.manual_seed(seed)
    return UNetDiscriminator(features)


def test_a_target_below_1_is_the_cross_entropy_with_it() -> None:
    real, fake = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3)
    entropy = nn.functional.binary_cross_entropy_with_logits
    expected = entropy(real, torch.full_like(real, 0.8)) + entropy(fake, torch.zeros_like(fake))
    assert torch.allclose(discriminator_loss(real, fake, "vanilla", 0.8), expected)
    assert torch.allclose(generator_loss(fake, None, "vanilla", 0.8), entropy(fake, torch.full_like(fake, 0.8)))


def test_heads_on_a_feature_network_learn_to_tell_pictures_apart() -> None:
    try:
        network = efficientnet_lite("efficientnet-lite0", torch.device("cpu"), "this test")
    except ModelError as fault:
        pytest.skip(fault.message)
    alone = {
        "device": "cpu",
        "num_processes": 1,
        "gradient_accumulation_steps": 1,
        "sync_gradients": True,
        "mixed_precision": "no",
    }
    judge = Critic(Gan(network="efficientnet-lite0", features=8, learning_rate=3e-3), 0, SimpleNamespace(**alone), network)
    hq = pictures(4, 48, 48)
    sr = nn.functional.avg_pool2d(hq, 3, 1, 1)
    told = [float(judge.learn(sr, hq, range(4 * step, 4 * step + 4))["discriminator"]) for step in range(30)]
    assert sum(told[-5:]) < 0.7 * sum(told[:5])
    leaf = sr.clone().requires_grad_()
    loss = judge.judge(leaf, hq, range(4))
    assert float(loss.detach()) > float(judge.judge(hq, sr, range(4)))
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert gradient.any()


def test_augmentation_is_the_same_for_both_and_passes_gradients_on() -> None:
    one = pictures(1, 32, 48).repeat(6, 1, 1, 1).requires_grad_()
    shown = augmented(torch.cat([one, one]), 0, range(6))
    first, second = shown.chunk(2)
    assert torch.equal(first, second)
    assert len({float(each.detach().mean()) for each in first}) == 6
    cut = (first == 0).all(1).float().mean((1, 2))
    assert float(cut.min()) > 0.06
    assert float(cut.max()) < 0.5
    assert torch.equal(first[2:], augmented(torch.cat([one[2:], one[2:]]), 0, range(2, 6)).chunk(2)[0])
    (gradient,) = torch.autograd.grad(shown.sum(), one)
    assert gradient.isfinite().all()
    assert gradient.any()


def pictures(count: int = 2, height: int = 16, width: int = 24, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def train_step(network: nn.Module, optimiser: torch.optim.Optimizer, seed: int) -> float:
    real, fake = pictures(seed=seed), pictures(seed=seed + 100)
    loss = discriminator_loss(network(real), network(fake), "vanilla") + gradient_penalty(network, real)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return float(loss.detach())


# --- network ---


@pytest.mark.parametrize("size", [(8, 8), (16, 40), (64, 24)])
def test_every_pixel_gets_a_logit(size: tuple[int, int]) -> None:
    assert make()(pictures(2, *size)).shape == (2, 1, *size)


@pytest.mark.parametrize("size", [(12, 16), (16, 4)])
def test_a_side_that_is_no_multiple_of_8_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=f"{size[1]}x{size[0]} px"):
        make()(pictures(1, *size))


def test_the_default_is_as_large_as_real_esrgans() -> None:
    assert sum(parameter.numel() for parameter in UNetDiscriminator().parameters()) == pytest.approx(4.38e6, rel=0.01)


def test_all_levels_see_and_are_seen() -> None:
    network = make()
    picture = pictures(1, 48, 48).requires_grad_()
    logits = network(picture)
    logits[0, 0, 24, 24].backward()
    assert picture.grad is not None
    reach = picture.grad.abs().sum(1)[0].nonzero()
    assert int(reach.max() - reach.min()) > 32
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in network.parameters())


def test_what_is_seen_at_full_size_is_added_on_the_way_up() -> None:
    network = make()
    network.up[-1].register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    one, other = network.eval()(pictures()), network(pictures(seed=2))
    assert not torch.allclose(one, other, atol=1e-3)


def test_normalised_layers_have_a_largest_singular_value_near_one() -> None:
    network = make()
    for _ in range(30):
        network(pictures(1, 8, 8))
    network.eval()
    for layer in [*network.down, *network.up, *network.refine]:
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        assert float(largest.detach()) == pytest.approx(1, abs=0.02)


def test_the_same_seed_makes_the_same_discriminator() -> None:
    picture = pictures()
    outputs = [make(seed)(picture) for seed in (0, 0, 1)]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_a_reloaded_discriminator_goes_on_where_it_was() -> None:
    network = make()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    for step in range(3):
        train_step(network, optimiser, step)
    file = io.BytesIO()
    torch.save({"network": network.state_dict(), "optimiser": optimiser.state_dict()}, file)
    file.seek(0)
    saved: dict[str, Any] = torch.load(file, weights_only=True)
    again = make(seed=9)
    again.load_state_dict(saved["network"])
    optimiser_again = torch.optim.Adam(again.parameters(), lr=1e-3)
    optimiser_again.load_state_dict(saved["optimiser"])
    with torch.no_grad():
        assert torch.equal(network.eval()(pictures()), again.eval()(pictures()))
    network.train(), again.train()
    assert train_step(network, optimiser, 7) == train_step(again, optimiser_again, 7)
    state, state_again = network.state_dict(), again.state_dict()
    assert any(key.endswith("._u") for key in state)
    assert all(torch.equal(state[key], state_again[key]) for key in state)


def test_autocast_normalises_in_full_precision() -> None:
    one, two = make(), make()
    lowered = []
    two.down[0].parametrizations.weight[0].register_forward_hook(
        lambda module, inputs, output: lowered.append(torch.is_autocast_enabled("cpu"))
    )
    exact = one(pictures()).detach()
    with torch.autocast("cpu", torch.bfloat16):
        half = two(pictures()).detach()
    assert half.dtype == torch.bfloat16
    assert lowered == [False]
    assert float((half - exact).abs().mean() / exact.abs().mean()) < 0.05
    buffers, again = dict(one.named_buffers()), dict(two.named_buffers())
    assert all(torch.equal(buffers[key], again[key]) for key in buffers)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_to_tell_smooth_pictures_from_textured_ones(kind: GanKind) -> None:
    network = make()
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    real = pictures(4, 16, 16)
    fake = nn.functional.avg_pool2d(real, 5, 1, 2)
    losses = []
    for _ in range(40):
        logits = network(torch.cat([real, fake]))
        loss = discriminator_loss(logits[:4], logits[4:], kind) + 0.01 * gradient_penalty(network, real)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    with torch.no_grad():
        assert float(network(real).mean()) > float(network(fake).mean()) + 0.5


# --- losses ---


def softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


REAL, FAKE = torch.tensor([2.0, -0.5]), torch.tensor([-1.0, 3.0])
BY_HAND: dict[GanKind, tuple[float, float]] = {  # discriminator, generator
    "vanilla": (
        (softplus(-2) + softplus(0.5)) / 2 + (softplus(-1) + softplus(3)) / 2,
        (softplus(1) + softplus(-3)) / 2,
    ),
    "hinge": ((0 + 1.5) / 2 + (0 + 4) / 2, -1.0),
    "relativistic": ((softplus(-3) + softplus(3.5)) / 2, (softplus(3) + softplus(-3.5)) / 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_the_formulas_by_hand(kind: GanKind) -> None:
    assert float(discriminator_loss(REAL, FAKE, kind)) == pytest.approx(BY_HAND[kind][0], rel=1e-6)
    assert float(generator_loss(FAKE, REAL, kind)) == pytest.approx(BY_HAND[kind][1], rel=1e-6)


def test_the_vanilla_loss_is_cross_entropy() -> None:
    entropy = nn.functional.binary_cross_entropy_with_logits
    expected = entropy(REAL, torch.ones(2)) + entropy(FAKE, torch.zeros(2))
    assert float(discriminator_loss(REAL, FAKE, "vanilla")) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_two_sides_pull_the_fake_logit_apart(kind: GanKind) -> None:
    fake = torch.zeros(3, requires_grad=True)
    (up,) = torch.autograd.grad(generator_loss(fake, torch.zeros(3), kind), fake)
    (down,) = torch.autograd.grad(discriminator_loss(torch.zeros(3), fake, kind), fake)
    assert bool((up < 0).all())
    assert bool((down > 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_in_half_precision_stay_finite(kind: GanKind) -> None:
    far = torch.full((2,), 3e4, dtype=torch.float16)
    for real, fake in ((far, -far), (-far, far)):
        assert discriminator_loss(real, fake, kind).isfinite()
        assert generator_loss(fake, real, kind).isfinite()


def test_only_the_relativistic_loss_needs_real_logits() -> None:
    assert float(generator_loss(FAKE, None, "hinge")) == -1
    assert float(generator_loss(FAKE, None, "vanilla")) == pytest.approx(BY_HAND["vanilla"][1])
    for wrong in (None, torch.zeros(1)):  # a single logit would broadcast in silence
        with pytest.raises(ValueError, match="relativistic"):
            generator_loss(FAKE, wrong, "relativistic")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="`wgan`"):
        generator_loss(FAKE, REAL, "wgan")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="`wgan`") as caught:
        discriminator_loss(REAL, FAKE, "wgan")  # type: ignore[arg-type]
    assert "`relativistic`" in caught.value.hint


# --- penalty ---


class Linear(nn.Module):
    """D = slope · sum of the picture, one logit a sample."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, picture: Tensor) -> Tensor:
        return self.slope * picture.sum(dim=(1, 2, 3))


def test_the_penalty_of_a_linear_discriminator_is_known_and_so_is_its_slope() -> None:
    network = Linear(0.5)
    penalty = gradient_penalty(network, pictures(4, 2, 2))
    penalty.backward()
    assert float(penalty.detach()) == pytest.approx(0.5 * 12 * 0.25)
    assert float(network.slope.grad) == pytest.approx(12 * 0.5)


def test_the_penalty_of_a_logit_a_pixel_does_not_grow_with_the_crop() -> None:
    network = nn.Conv2d(3, 1, 1)
    sizes = [float(gradient_penalty(network, pictures(2, side, side)).detach()) for side in (8, 32)]
    assert sizes[0] == pytest.approx(0.5 * float(network.weight.detach().square().sum()), rel=1e-5)
    assert sizes[1] == pytest.approx(sizes[0], rel=1e-5)


def test_the_penalty_lowers_the_slope_and_leaves_pictures_alone() -> None:
    network = make()
    batch = pictures().requires_grad_()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    values = []
    for _ in range(10):
        with torch.autocast("cpu", torch.bfloat16):
            penalty = gradient_penalty(network, batch)
        assert penalty.dtype == torch.float32
        optimiser.zero_grad()
        penalty.backward()
        optimiser.step()
        values.append(float(penalty.detach()))
    assert values[-1] < 0.8 * values[0]
    assert batch.grad is None
