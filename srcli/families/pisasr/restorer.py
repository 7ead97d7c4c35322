"""PiSA-SR's restorer: passes of one UNet with the adapters merged into it, mixed by the dials."""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from srcli.families.pisasr import PIXEL, SEMANTIC
from srcli.memory import free_bytes
from srcli.networks.backbone import Autoencoder, load_autoencoder, load_passes, prompt_embedding
from srcli.networks.device import cast, in_float32, layout_for
from srcli.networks.saved_adapters import load_adapter, warn_of_another_beside, warn_of_strange_base
from srcli.networks.unet import FixedPromptUNet
from srcli.protocol.restoring import LoadOptions, Mixture, Parent, Part, Picture, Settings
from srcli.rows.spec import ModelSpec
from srcli.store.weights import adapter_path, base_folder

Names = tuple[str, ...]
"""Of the adapters that are merged for a pass."""


def pass_weights(lambda_pixel: float, lambda_semantic: float, *, has_semantic: bool = True) -> dict[Names, float]:
    """Which passes of the UNet the scales need, and each one's weight in the residual.

    Eq. 8 is λ_pix·ε_pix + λ_sem·(ε_PiSA - ε_pix) = (λ_pix - λ_sem)·ε_pix + λ_sem·ε_PiSA, with ε_pix the pixel adapter's
    answer and ε_PiSA that of both; a pass of weight zero is not run.

    Returns:
        weights by the names of the adapters merged for that pass; empty if both scales are zero.

    >>> pass_weights(1, 1)
    {('pixel', 'semantic'): 1}
    """
    if not has_semantic:
        return {(PIXEL,): lambda_pixel} if lambda_pixel else {}
    weights = {(PIXEL,): lambda_pixel - lambda_semantic, (PIXEL, SEMANTIC): lambda_semantic}
    return {adapters: weight for adapters, weight in weights.items() if weight}


class PisaRestorer:
    """z_sr = z_lq - ε(z_lq) at a fixed timestep (eqs. 4 and 8).

    Args:
        spec: the model's row.
        options: device, dtype and all settings that will be asked for.
        autoencoder: on the CPU, in the options' dtype.
        networks: a UNet with merged adapters for each pass that the options need, on the CPU, in the options' dtype.
    """

    enlargement = "bicubic"
    answers_pixels = any_settings = False
    parents: Mapping[Hashable, Parent] = {}

    def __init__(
        self,
        spec: ModelSpec,
        options: LoadOptions,
        autoencoder: Autoencoder,
        networks: Mapping[Names, FixedPromptUNet],
    ) -> None:
        self.name = spec.name
        self.device, self.dtype = options.device, options.dtype
        self.native_scale = self.input_scale = spec.native_scale
        self.min_side, self.margin, self.patch = spec.min_side, spec.margin, autoencoder.patch
        self.tile, self.overlap, self.tiling, self.color_fix = spec.tile, spec.overlap, spec.tiling, spec.color_fix
        self.factor = autoencoder.factor
        self.channels = self.answer_channels = autoencoder.channels
        cast(autoencoder.network.to(options.device), options.dtype)
        self._parts = autoencoder.parts()
        self.decoder = self._parts.decoder
        self._unets = Resident(networks, options.device)
        widest = max((unet.width for unet in networks.values()), default=64)
        self.cell_bytes = 64 * widest * options.dtype.itemsize

    def encoder(self, encoding: Hashable = None) -> Sequence[Part]:
        return self._parts.encoder

    def predict_pass(self, key: Hashable, latent: Tensor, *, exact: bool = False) -> Tensor:
        names, timestep = typing.cast("tuple[Names, int]", key)
        unet = self._unets[names]
        with in_float32(unet) if exact else contextlib.nullcontext():
            answer: Tensor = unet(latent.to(unet.dtype, memory_format=layout_for(unet.dtype)), timestep)
        return answer.to(latent.dtype)

    def apply(self, latent: Tensor, prediction: Tensor) -> Tensor:
        return torch.sub(latent, prediction, out=prediction)

    def mix(self, settings: Settings, picture: Picture) -> Mixture:
        """Passes are (adapters, timestep), whatever the picture."""
        timestep = int(settings["timestep"])
        return Mixture({(names, timestep): weight for names, weight in _weights(settings).items()})


class Resident:
    """The UNets of the passes, all on the device where they fit; else one at a time, fetched when another is asked for.

    Args:
        networks: on the CPU.
        device: where they are to work.
    """

    RESERVE = 2 << 30
    """Bytes of a device that are left for the work itself."""

    def __init__(self, networks: Mapping[Names, FixedPromptUNet], device: torch.device) -> None:
        self._networks, self._device = dict(networks), device
        tensors = {id(t): t.nbytes for unet in networks.values() for t in (*unet.parameters(), *unet.buffers())}
        needed = sum(tensors.values())  # some are of several passes
        self._together = device.type == "cpu" or len(networks) < 2 or needed + self.RESERVE <= free_bytes(device)
        self._here: Names | None = None
        if self._together:
            for unet in self._networks.values():
                unet.to(device)

    def __getitem__(self, names: Names) -> FixedPromptUNet:
        if not self._together and names != self._here:
            if self._here is not None:
                self._networks[self._here].to("cpu")
            self._networks[names].to(self._device)
            self._here = names
        return self._networks[names]


def load(spec: ModelSpec, options: LoadOptions) -> PisaRestorer:
    """Build the restorer of a row: base, adapters merged in float32 for each pass that the scales need, then cast.

    Raises:
        ModelError: files are missing, damaged or do not fit together.
    """
    base = base_folder(spec)
    adapters = {name: load_adapter(adapter_path(spec, name), name) for name in spec.adapters}
    for adapter in adapters.values():
        warn_of_strange_base(adapter, spec.base.names)
    if SEMANTIC in adapters and PIXEL in adapters:
        warn_of_another_beside(adapters[SEMANTIC], PIXEL, adapter_path(spec, PIXEL))
    passes = dict.fromkeys(names for each in options.settings for names in _weights(each))
    timesteps = {int(each["timestep"]) for each in options.settings}
    embedding = prompt_embedding(base, str(spec.own["prompt"]))
    networks = load_passes(
        base, {names: [adapters[name] for name in names] for names in passes}, options.dtype, embedding, timesteps
    )
    return PisaRestorer(spec, options, load_autoencoder(base, options.dtype), networks)


def _weights(settings: Settings) -> dict[Names, float]:
    semantic = settings.get("lambda_semantic")
    return pass_weights(settings["lambda_pixel"], semantic or 0.0, has_semantic=semantic is not None)
