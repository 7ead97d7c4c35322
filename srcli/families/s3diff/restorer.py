"""S3Diff's restorer: the scores of a picture make the weights of encoder and UNet, once for all of its tiles."""

from __future__ import annotations

import contextlib
import copy
import typing
import weakref
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from srcli.errors import ModelError
from srcli.families.s3diff import ESTIMATOR, SEMANTIC
from srcli.families.s3diff.estimator import SCORES, Estimator, estimate
from srcli.families.s3diff.modulation import UNET, VAE, Modulation
from srcli.families.s3diff.schedule import signal_share
from srcli.memory import free_bytes
from srcli.networks.adapters import Adapter, check_fit, merged
from srcli.networks.backbone import Autoencoder, load_autoencoder, prompt_embedding
from srcli.networks.device import cast, in_float32, layout_for
from srcli.networks.remade import RemadeUNet
from srcli.networks.saved_adapters import load_adapter, warn_of_strange_base
from srcli.networks.unet import FixedPromptUNet
from srcli.protocol.restoring import LoadOptions, Mixture, Parent, Part, Picture, Settings
from srcli.rows.spec import ModelSpec
from srcli.store.layout import variant_of, weight_files
from srcli.store.weights import adapter_path, base_folder

POSITIVE, NEGATIVE = "positive", "negative"
Scores = tuple[float, float]
"""Blur and noise: an encoding. With the prompt before them, a pass."""
RESERVE = 2 << 30
"""Bytes of a device that are left for the work itself."""


def pass_weights(guidance_scale: float) -> dict[str, float]:
    """Which prompts guidance needs, and their weights: negative + w · (positive - negative), eq. 5; one of weight 0 is not run.

    >>> pass_weights(1)
    {'positive': 1}
    """
    weights = {POSITIVE: guidance_scale, NEGATIVE: 1 - guidance_scale}
    return {prompt: weight for prompt, weight in weights.items() if weight}


class S3DiffRestorer:
    """z_sr = (z_lq - sqrt(1 - ᾱ)·ε) / sqrt(ᾱ) at the row's timestep, with ε of one prompt or two (eq. 5).

    Args:
        spec: the model's row.
        options: device and dtype.
        autoencoder: on the CPU.
        modulation: what makes the weights of encoder and UNet.
        unet: of the base.
        embeddings: of the prompts that the options need, where the UNet is.
        estimator: of the scores; None where these are all given.
        alpha: ᾱ of the row's timestep.

    Raises:
        ModelError: the adapter does not fit the encoder.
    """

    answers_pixels = any_settings = False
    parents: Mapping[Hashable, Parent] = {}

    def __init__(
        self,
        spec: ModelSpec,
        options: LoadOptions,
        autoencoder: Autoencoder,
        modulation: Modulation,
        unet: RemadeUNet,
        embeddings: Mapping[str, Tensor],
        estimator: Estimator | None,
        alpha: float,
    ) -> None:
        self.name, self.enlargement = spec.name, str(spec.own["enlargement"])
        self.device, self.dtype = options.device, dtype_for(options)
        self.native_scale = self.input_scale = spec.native_scale
        self.min_side, self.margin, self.patch = spec.min_side, spec.margin, autoencoder.patch
        self.tile, self.overlap, self.tiling, self.color_fix = spec.tile, spec.overlap, spec.tiling, spec.color_fix
        self.factor = autoencoder.factor
        self.channels = self.answer_channels = autoencoder.channels
        self._modulation = modulation
        self._encoder = Remerged(autoencoder.network, modulation.vae, options.device)
        cast(autoencoder.network.to(options.device), self.dtype)
        self._parts = autoencoder.parts()
        self.decoder = self._parts.decoder
        self._encoded: Scores | None = None
        self._unet, self._embeddings = unet, embeddings
        self._predicting: Scores | None = None
        self._unets: dict[str, FixedPromptUNet] = {}
        self._estimator = None if estimator is None else estimator.to(options.device)
        self._known: weakref.WeakKeyDictionary[Picture, Scores] = weakref.WeakKeyDictionary()
        self._timestep = int(spec.own["timestep"])
        self._signal, self._noise = alpha**0.5, (1 - alpha) ** 0.5
        self.cell_bytes = 64 * unet.width * self.dtype.itemsize

    def encoder(self, encoding: Hashable = None) -> Sequence[Part]:
        """The parts' weights are those of `encoding` until another one is asked for."""
        if encoding is not None and encoding != self._encoded:
            self._encoded = typing.cast(Scores, encoding)
            self._encoder.take(self._modulation.of(VAE, self._encoded))
        return self._parts.encoder

    def mix(self, settings: Settings, picture: Picture) -> Mixture:
        """The scores are a part of all keys; those that the settings lack are estimated from the raw input."""
        lacking = [score for score in SCORES if score not in settings]
        found = dict(zip(SCORES, self._scores(picture), strict=True)) if lacking else {}
        scores = tuple({**found, **settings}[score] for score in SCORES)
        weights: dict[Hashable, float] = {(p, *scores): w for p, w in pass_weights(settings["guidance_scale"]).items()}
        return Mixture(weights, encoding=scores, facts={score: found[score] for score in lacking})

    def predict_pass(self, key: Hashable, latent: Tensor, *, exact: bool = False) -> Tensor:
        prompt, *scores = typing.cast("tuple[str, float, float]", key)
        unet = self._unet_for(prompt, (scores[0], scores[1]))
        with in_float32(unet) if exact else contextlib.nullcontext():
            answer: Tensor = unet(latent.to(unet.dtype, memory_format=layout_for(unet.dtype)), self._timestep)
        return answer.to(latent.dtype)

    def apply(self, latent: Tensor, prediction: Tensor) -> Tensor:
        return prediction.mul_(-self._noise).add_(latent).div_(self._signal)

    def _scores(self, picture: Picture) -> Scores:
        assert self._estimator is not None  # `load` has one where settings lack scores
        if picture not in self._known:
            self._known[picture] = estimate(self._estimator, picture.at(1), self.device)
        return self._known[picture]

    def _unet_for(self, prompt: str, scores: Scores) -> FixedPromptUNet:
        if scores != self._predicting:
            self._unets, self._predicting = {}, None  # first, as memory may not hold two
            made = self._unet.made(self._modulation.of(UNET, scores), list(self._embeddings.values()), self._timestep)
            if self._unet.device != self.device:  # a copy, since they share weights with the base's own
                made = [unet.to(self.device) for unet in copy.deepcopy(made)]
            self._unets = dict(zip(self._embeddings, made, strict=True))
            self._predicting = scores
        return self._unets[prompt]


class Remerged:
    """A network whose weights are those of another adapter each time: W + Δ in their own place.

    Args:
        network: with nothing attached; it may be moved and cast later.
        adapter: one of those that will be merged, all of which have the same layers.
        device: where it will work.

    Raises:
        ModelError: the adapter does not fit the network.
    """

    def __init__(self, network: nn.Module, adapter: Adapter, device: torch.device) -> None:
        check_fit(network, adapter)
        self._network = network
        changed = ((key, parameter) for key, parameter in network.named_parameters() if adapter.changes(key))
        self._own = {key: parameter.detach().to(device, torch.float32, copy=True) for key, parameter in changed}

    @torch.no_grad()
    def take(self, adapter: Adapter) -> None:
        """Give the network an adapter."""
        for key, own in self._own.items():
            self._network.get_parameter(key).data.copy_(merged(key, own, [adapter]))


def load(spec: ModelSpec, options: LoadOptions) -> S3DiffRestorer:
    """Build the restorer of a row.

    Raises:
        ModelError: files are missing, damaged or do not fit together, or scores are to be estimated and there is no estimator.
    """
    base = base_folder(spec)
    estimator = _estimator(spec) if any(score not in each for each in options.settings for score in SCORES) else None
    adapter = load_adapter(adapter_path(spec, SEMANTIC), SEMANTIC)
    warn_of_strange_base(adapter, spec.base.names)
    dtype, home = dtype_for(options), _home(base, options)
    modulation = Modulation(adapter, home)
    unet = RemadeUNet(base, dtype, home, modulation.unet)
    prompts = dict.fromkeys(prompt for each in options.settings for prompt in pass_weights(each["guidance_scale"]))
    embeddings = {prompt: prompt_embedding(base, str(spec.own[f"prompts.{prompt}"])).to(home) for prompt in prompts}
    autoencoder = load_autoencoder(base, dtype)
    alpha = signal_share(base, int(spec.own["timestep"]))
    return S3DiffRestorer(spec, options, autoencoder, modulation, unet, embeddings, estimator, alpha)


def dtype_for(options: LoadOptions) -> torch.dtype:
    """The options' dtype; unless the user asks for bfloat16, float16 in its place, or float32 on a CPU.

    An error of the network's answer comes into the result 14.6 times as large (1 / sqrt(ᾱ)), and bfloat16 has 8 bits.
    """
    if options.dtype != torch.bfloat16 or options.dtype_asked:
        return options.dtype
    return torch.float32 if options.device.type == "cpu" else torch.float16


def _home(base: Path, options: LoadOptions) -> torch.device:
    """Where the base's own UNet is kept and merged: on the device if that has room for it beside the merged one."""
    numbers = sum(file.stat().st_size for file in weight_files(base / "unet")) // (2 if variant_of(base / "unet") else 4)
    needed = 2 * numbers * dtype_for(options).itemsize + RESERVE
    return options.device if needed <= free_bytes(options.device) else torch.device("cpu")


def _estimator(spec: ModelSpec) -> Estimator:
    if ESTIMATOR not in spec.adapters:
        message = f"the model `{spec.name}` cannot tell how degraded a picture is, since it has no estimator"
        raise ModelError(message, "give `--blur` and `--noise`, each from 0 to 1; or an estimator as `--estimator`")
    return Estimator.of_tensors(load_adapter(adapter_path(spec, ESTIMATOR), ESTIMATOR).tensors)
