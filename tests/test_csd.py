from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from parity import CsdParity
from torch import Tensor

from srcli.errors import UsageError
from srcli.families.pisasr.csd import (
    MIN_WEIGHT,
    add_noise,
    csd,
    csd_direction,
    csd_loss,
    draw_timesteps_and_noise,
    estimate_clean,
)

DATA = Path(__file__).parent / "data" / "csd"
CASES = {case["name"]: case for case in json.loads((DATA / "cases.json").read_text())["cases"]}
SHAPE = (4, 6, 6)
ALPHAS = torch.linspace(0.999, 0.01, 1000)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_reference(name: str) -> None:
    errors = CsdParity(DATA).measure(CASES[name])
    assert errors.within(CASES[name]["tolerance"]), errors


def draws(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """z_sr, noise, timestep, eps_negative, eps_positive."""
    chance = torch.Generator().manual_seed(seed)
    z_sr, noise, negative, positive = (torch.randn(count, *SHAPE, generator=chance) for _ in range(4))
    return z_sr, noise, torch.randint(20, 500, (count,), generator=chance), negative, positive


# --- formulas ---


def test_the_clean_latent_comes_back_from_the_true_noise() -> None:
    clean, noise, timestep, _, _ = draws(3)
    noisy = add_noise(clean, noise, timestep, ALPHAS)
    assert not torch.allclose(noisy, clean, atol=0.1)
    assert torch.allclose(estimate_clean(noisy, noise, timestep, ALPHAS), clean, atol=1e-5)


def test_each_sample_has_its_own_timestep_and_weight() -> None:
    z_sr, noise, timestep, negative, positive = draws(3)
    together = csd_direction(z_sr, noise, timestep, negative, positive, ALPHAS, 7.5)
    for i in range(3):
        one = slice(i, i + 1)
        alone = csd_direction(z_sr[one], noise[one], timestep[one], negative[one], positive[one], ALPHAS, 7.5)
        assert torch.allclose(together[one], alone, atol=1e-6)


def test_the_direction_is_the_formula_by_hand() -> None:
    alphas = torch.tensor([0.64])
    z_sr, noise = torch.full((1, 1, 1, 2), 2.0), torch.zeros(1, 1, 1, 2)
    negative, positive = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[2.0, 0.0]]]])
    # z_t = 1.6; eps_cfg = (1 + 3·1, 0); ẑ = (1.6 - 0.6·eps) / 0.8: ẑ_neg = (1.25, 2), ẑ_cfg = (-1, 2); weight = (3 + 0) / 2
    direction = csd_direction(z_sr, noise, torch.tensor([0]), negative, positive, alphas, 3.0)
    assert torch.allclose(direction, torch.tensor([[[[2.25 / 1.5, 0.0]]]]), atol=1e-6)


def test_the_gradient_is_twice_the_direction_over_the_number_of_elements() -> None:
    z_sr, noise, timestep, negative, positive = draws(2)
    z_sr = (100 * z_sr).requires_grad_()  # large, so that z - (z - G) would round G away
    loss = csd_loss(z_sr, noise, timestep, negative, positive, ALPHAS, 7.5)
    loss.backward()
    direction = csd_direction(z_sr, noise, timestep, negative, positive, ALPHAS, 7.5)
    assert torch.allclose(z_sr.grad, 2 * direction / z_sr.numel(), rtol=1e-6, atol=0)
    assert float(loss.detach()) == pytest.approx(float(direction.square().mean()))


def test_a_guidance_of_zero_asks_for_nothing() -> None:
    z_sr, noise, timestep, negative, positive = draws(2)
    assert float(csd_loss(z_sr, noise, timestep, negative, positive, ALPHAS, 0.0)) == 0


def test_a_perfect_guess_divides_by_no_zero() -> None:
    alphas, timestep = torch.tensor([0.25]), torch.tensor([0])
    z_sr, noise = torch.zeros(1, *SHAPE), torch.ones(1, *SHAPE)
    direction = csd_direction(z_sr, noise, timestep, torch.zeros_like(noise), noise, alphas, 1.0)  # guided: the true noise
    assert direction.isfinite().all()
    assert float(direction.abs().max()) == pytest.approx(3**0.5 / MIN_WEIGHT, rel=1e-5)


# --- both passes ---


def answer(noisy: Tensor, timestep: Tensor, embedding: Tensor) -> Tensor:
    """A teacher whose answer depends on all it is given."""
    return noisy * embedding.mean(dim=(1, 2)).view(-1, 1, 1, 1) + timestep.view(-1, 1, 1, 1) / 1000


def test_the_teacher_is_asked_once_for_both_prompts_without_gradients() -> None:
    z_sr, noise, timestep, _, _ = draws(3)
    asked = []

    def teacher(noisy: Tensor, steps: Tensor, embedding: Tensor) -> Tensor:
        asked.append((noisy, steps, embedding))
        assert not torch.is_grad_enabled()
        return answer(noisy, steps, embedding)

    positive, negative = torch.rand(3, 5, 2), torch.rand(1, 5, 2)
    loss = csd(z_sr.requires_grad_(), teacher, positive, negative, timestep, noise, ALPHAS, 7.5)
    ((noisy, steps, embedding),) = asked
    assert (noisy.shape, steps.shape, embedding.shape) == ((6, *SHAPE), (6,), (6, 5, 2))
    eps_negative, eps_positive = (
        answer(add_noise(z_sr.detach(), noise, timestep, ALPHAS), timestep, prompt.expand(3, 5, 2))
        for prompt in (negative, positive)
    )
    expected = csd_loss(z_sr, noise, timestep, eps_negative, eps_positive, ALPHAS, 7.5)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_half_precision_around_it_does_not_change_the_maths() -> None:
    z_sr, noise, timestep, _, _ = draws(2)
    prompts = torch.rand(2, 5, 2), torch.rand(2, 5, 2)
    expected = csd(z_sr, lambda *x: answer(*x).bfloat16(), *prompts, timestep, noise, ALPHAS, 7.5)
    with torch.autocast("cpu", torch.bfloat16):
        loss = csd(z_sr, lambda *x: answer(*x).bfloat16(), *prompts, timestep, noise, ALPHAS, 7.5)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def test_descent_moves_the_latent_to_what_the_positive_prompt_wants() -> None:
    target = draws(1, seed=5)[0]
    prompts = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)

    def teacher(noisy: Tensor, steps: Tensor, embedding: Tensor) -> Tensor:
        """Under the positive prompt the clean latent is `target`, under the negative one its opposite."""
        alpha = ALPHAS[steps].view(-1, 1, 1, 1)
        clean = target * (2 * embedding.view(-1, 1, 1, 1) - 1)
        return (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()

    z_sr = torch.zeros(1, *SHAPE, requires_grad=True)
    optimiser = torch.optim.SGD([z_sr], lr=2.0)
    for step in range(20):
        timestep, noise = draw_timesteps_and_noise([step], SHAPE)
        optimiser.zero_grad()
        csd(z_sr, teacher, *prompts, timestep, noise, ALPHAS, 7.5).backward()
        optimiser.step()
    cosine = torch.nn.functional.cosine_similarity(z_sr.detach().flatten(), target.flatten(), dim=0)
    assert float(cosine) > 0.99


# --- draws ---


def test_a_split_batch_draws_what_the_whole_one_does() -> None:
    timestep, noise = draw_timesteps_and_noise([7, 8, 9, 10], SHAPE)
    parts = [draw_timesteps_and_noise(seeds, SHAPE) for seeds in ([7, 8], [9, 10])]
    assert torch.equal(timestep, torch.cat([part[0] for part in parts]))
    assert torch.equal(noise, torch.cat([part[1] for part in parts]))
    assert len({tuple(sample.flatten().tolist()) for sample in noise}) == 4


def test_draws_leave_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    draw_timesteps_and_noise([1, 2], SHAPE)
    assert torch.equal(torch.rand(1), expected)


def test_timesteps_fill_the_range_and_noise_is_standard_normal() -> None:
    timestep, noise = draw_timesteps_and_noise(range(4000), (1, 4, 4))
    assert (timestep.dtype, noise.dtype) == (torch.int64, torch.float32)
    assert (int(timestep.min()), int(timestep.max())) == (20, 499)
    counts = torch.histc(timestep.float(), 8, 20, 500)
    assert float(counts.min()) > 400
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("step_range", [(0.5, 0.5), (0.4, 0.1), (-0.1, 0.5), (0.2, 1.2)])
def test_a_range_without_timesteps_is_refused(step_range: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="none of the teacher's 1000 timesteps"):
        draw_timesteps_and_noise([1], SHAPE, step_range=step_range)
