"""The training of the degradation estimator: no score is right by itself, but a worse version's has to be higher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from srcli.config.training import TrainConfig
from srcli.families.s3diff import ESTIMATOR
from srcli.families.s3diff.estimator import Block, Estimator
from srcli.families.s3diff.grades import VERSIONS, Grade, damaged, drawn_grades
from srcli.families.s3diff.recipe import EstimatorRecipe
from srcli.networks.adapters import Adapter, AdapterInfo
from srcli.networks.device import autocast
from srcli.networks.saved_adapters import load_adapter, save_adapter
from srcli.protocol.training import Batch, Trainee
from srcli.store.adapter_files import find_adapter

FIRST, BLURRED, NOISY, BEST, WORST = range(len(VERSIONS))
BLUR, NOISE = range(2)
_BRANCH_START = 0.1
"""By which MM-RealSR's code multiplies the first weights of its residual branches."""


def begun(network: Estimator) -> Estimator:
    """With first weights under which what tells two versions apart reaches the scores: He's, with faint residual branches."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(cast(Tensor, module.bias))
    for module in network.modules():
        if isinstance(module, Block):
            for layer in (module.conv1, module.conv2):
                layer.weight.data.mul_(_BRANCH_START)
    return network


class EstimatorTrainee(Trainee):
    """What the stage trains. Its z_sr are scores, and nothing decodes them.

    Args:
        config: of the run.
        device: where it works.
        dtype: of the run; the weights are float32.

    Raises:
        ModelError: the estimator to start from is none.
    """

    frozen: Sequence[nn.Module] = ()
    decodes_alone = False

    def __init__(self, config: TrainConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.config, self.recipe = config, cast(EstimatorRecipe, config.recipe)
        self._device, self._dtype = device, dtype
        self.factor = config.scale
        self.steps_before = 0
        network = begun(Estimator((self.recipe.width, 2 * self.recipe.width), hidden=8 * self.recipe.width))
        if config.start_from is not None:
            start = load_adapter(find_adapter(config.start_from, ESTIMATOR), ESTIMATOR)
            network, self.steps_before = Estimator.of_tensors(start.tensors), start.info.steps
        self.network = network.requires_grad_(True).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.trained: Any = self.network
        self.parameters = list(self.network.parameters())

    def prepare(self, batch: Batch) -> Tensor:
        """The `VERSIONS` of each sample, (N · 5, 3, h, w), RGB, in [0, 1]."""
        ranges, seed = self.recipe.degradation, self.config.seed
        return torch.stack(
            [
                damaged((hq + 1) / 2, grade, self.config.scale, ranges, seed, index)
                for hq, index in zip(batch.hq, batch.indices, strict=True)
                for grade in self._grades(index)
            ]
        )

    def forward(self, prepared: Tensor) -> Tensor:
        """Scores, (N, 5, 2, 1)."""
        with autocast(self._device, self._dtype):
            scores: Tensor = self.trained(prepared)
        return scores.float().view(-1, len(VERSIONS), 2, 1)

    def decode(self, z_sr: Tensor) -> Tensor:
        return z_sr

    def losses(self, z_sr: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Margin ranking where one version is the worse; squared errors of the best and worst ones' scores, and of all."""
        scores, weights = z_sr[..., 0], self.recipe.losses
        losses = {}
        if weights.ranking:
            pairs = ((BLURRED, BLUR), (NOISY, NOISE))
            lacking = [self.recipe.margin - scores[:, worse, kind] + scores[:, FIRST, kind] for worse, kind in pairs]
            losses["ranking"] = torch.stack(lacking).clamp_min(0).mean(1).sum()
        if weights.anchors:
            losses["anchors"] = scores[:, BEST].square().mean() + (1 - scores[:, WORST]).square().mean()
        if weights.grades:
            grades = torch.tensor([[(each.blur, each.noise) for each in self._grades(index)] for index in batch.indices])
            losses["grades"] = functional.mse_loss(scores, grades.to(scores))
        return losses

    def _grades(self, index: int) -> tuple[Grade, ...]:
        return drawn_grades(self.config.seed, index)

    def views(self, batch: Batch) -> Mapping[str, Tensor]:
        return {}

    def save(self, step: int, folder: Path, *, half: bool = False) -> None:
        """In float32 always: it is small."""
        config = self.config
        tensors = {key: value.detach().cpu().clone() for key, value in self.network.state_dict().items()}
        info = AdapterInfo(0, 0, "", ESTIMATOR, self.steps_before + step, config.licence)
        save_adapter(Adapter(ESTIMATOR, tensors, info), folder)
