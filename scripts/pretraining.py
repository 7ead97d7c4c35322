"""What both pretraining scripts share: options, with a recipe's values below them, and how rates and averages of weights go."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def parsed(parser: argparse.ArgumentParser, *, steps: int, batch: int, crop: int) -> argparse.Namespace:
    """What is given to a script that has options of its own already, with these defaults of the shared ones."""
    parser.add_argument("--steps", type=int, default=steps, help="updates (%(default)s)")
    parser.add_argument("--minutes", type=float, default=1e9, help="end after this long; the schedule follows the clock")
    parser.add_argument("--batch", type=int, default=batch, help="crops a step (%(default)s)")
    parser.add_argument("--crop", type=int, default=crop, help="side of the crops, in output pixels (%(default)s)")
    parser.add_argument("--lr", type=float, default=4e-4, help="peak learning rate of AdamW (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all chance (%(default)s)")
    parser.add_argument("--recipe", type=Path, help="TOML with values of the options above; options given here go above them")
    given = parser.parse_args()
    if given.recipe is not None:
        from srcli.config.recipe_file import read_recipe_file

        values = read_recipe_file(given.recipe)
        if unknown := sorted(values.keys() - (vars(given).keys() - {"data", "photos", "output", "recipe"})):
            parser.error(f"unknown keys in {given.recipe}: {', '.join(unknown)}")
        parser.set_defaults(**values)
    return parser.parse_args()


def set_rate(optimiser: torch.optim.Optimizer, peak: float, step: int, warm_up: int, progress: float) -> None:
    """The learning rate of a step: it rises over `warm_up` steps, and falls as a cosine with `progress`, from 0 to 1."""
    import torch

    warm = min(1.0, (step + 1) / warm_up)
    for group in optimiser.param_groups:
        group["lr"] = peak * warm * 0.5 * (1 + torch.cos(torch.tensor(progress * torch.pi)).item())


def follow(average: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], step: int, most: float) -> None:
    """Move a running average towards the weights after a step: `most` of it stays, less at the start."""
    import torch

    with torch.no_grad():
        torch._foreach_lerp_(average, [weight.detach() for weight in weights], 1 - min(most, (1 + step) / (10 + step)))
