"""PiSA-SR: one step, two adapters, two dials.

Source: Sun et al., "Pixel-level and Semantic-level Adjustable Super-resolution: A Dual-LoRA Approach", CVPR 2025.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from srcli.models.adapters import Adapter, load_adapter, merge
from srcli.models.backbone import Autoencoder, in_float32, load_autoencoder, load_unet, prompt_embedding
from srcli.models.base import Dial, LoadOptions, Mixture, Settings
from srcli.models.spec import ModelSpec
from srcli.models.weights import adapter_path, base_folder

PIXEL, SEMANTIC = "pixel", "semantic"
Names = tuple[str, ...]
"""Of the adapters that are merged for a pass."""
_AUTOENCODER_TILE_PX = 1536


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
    """z_sr = z_lq - ε(z_lq) at a fixed timestep (eqs. 4 and 8); implements `srcli.models.base.Adjustable`.

    Args:
        spec: the model's row.
        options: device, dtype and the two scales, or all settings that will be asked for.
        autoencoder: float32, on the CPU.
        networks: a UNet with merged adapters for each pass that the options need, float32, on the CPU.
        embedding: of the prompt, (1, tokens, width).
        notes: see `Restorer.notes`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        options: LoadOptions,
        autoencoder: Autoencoder,
        networks: Mapping[Names, Any],
        embedding: Tensor,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.name = spec.name
        self.device, self.dtype = options.device, options.dtype
        self.native_scale, self.min_side = spec.native_scale, spec.min_side
        self.tile, self.overlap, self.color_fix = spec.tile, spec.overlap, spec.color_fix
        self.factor, self.channels = autoencoder.factor, autoencoder.channels
        self.notes = notes
        self.dials = _dials(spec)
        learned = any(True for _ in autoencoder.network.parameters())
        self.autoencoder_tile = _AUTOENCODER_TILE_PX if learned else None
        self._has_semantic = SEMANTIC in spec.adapters
        self._timestep = spec.timestep
        self._autoencoder = autoencoder
        autoencoder.network.to(options.device, options.dtype)
        self._unets = {names: unet.to(options.device, options.dtype) for names, unet in networks.items()}
        weights = _weights(_asked(options)[0], has_semantic=self._has_semantic)
        self._networks = [(self._unets[names], weight) for names, weight in weights.items()]
        self._embedding = embedding.to(options.device)
        widest = max((unet.config.block_out_channels[0] for unet in networks.values()), default=64)
        self.cell_bytes = 64 * widest * options.dtype.itemsize

    def encode(self, picture: Tensor, *, exact: bool = False) -> Tensor:
        if exact:
            with in_float32(self._autoencoder.network):
                return self._autoencoder.encode(picture)
        return self._autoencoder.encode(picture)

    def predict(self, latent: Tensor, *, exact: bool = False) -> Tensor:
        """The residual λ_pix·ε_pix + λ_sem·(ε_PiSA - ε_pix), summed in float32."""
        residual = torch.zeros_like(latent)
        for unet, weight in self._networks:
            residual.add_(self._pass(unet, latent, self._timestep, exact), alpha=weight)
        return residual

    def apply(self, latent: Tensor, prediction: Tensor) -> Tensor:
        return latent - prediction

    def decode(self, latent: Tensor, *, exact: bool = False) -> Tensor:
        if exact:
            with in_float32(self._autoencoder.network):
                return self._autoencoder.decode(latent)
        return self._autoencoder.decode(latent)

    def mix(self, settings: Settings) -> Mixture:
        """Passes are (adapters, timestep)."""
        timestep = int(settings.get("timestep", self._timestep))
        weights = _weights(settings, has_semantic=self._has_semantic)
        return Mixture({(names, timestep): weight for names, weight in weights.items()})

    def encode_as(self, encoding: Hashable, picture: Tensor, *, exact: bool = False) -> Tensor:
        return self.encode(picture, exact=exact)

    def predict_pass(self, key: Hashable, latent: Tensor, *, exact: bool = False) -> Tensor:
        names, timestep = cast("tuple[Names, int]", key)
        return self._pass(self._unets[names], latent, timestep, exact)

    def _pass(self, unet: Any, latent: Tensor, timestep: int, exact: bool) -> Tensor:
        with in_float32(unet) if exact else contextlib.nullcontext():
            embedding = self._embedding.to(unet.dtype).expand(len(latent), -1, -1)
            answer: Tensor = unet(latent.to(unet.dtype), timestep, encoder_hidden_states=embedding).sample
        return answer.to(latent.dtype)


def load(spec: ModelSpec, options: LoadOptions) -> PisaRestorer:
    """Build the restorer of a row: base, adapters merged in float32 for each pass that the scales need, then cast.

    Raises:
        ModelError: files are missing, damaged or do not fit together.
    """
    base = base_folder(spec)
    adapters = {name: load_adapter(adapter_path(spec, name), name) for name in spec.adapters}
    notes = []
    if SEMANTIC not in adapters:
        notes.append(f"the model `{spec.name}` has no semantic adapter: `--lambda-semantic` has no effect")
    settings = _asked(options)
    passes = dict.fromkeys(names for each in settings for names in _weights(each, has_semantic=SEMANTIC in adapters))
    networks = {names: _merged(base, [adapters[name] for name in names]) for names in passes}
    embedding = prompt_embedding(base, spec.prompt)
    return PisaRestorer(spec, options, load_autoencoder(base), networks, embedding, tuple(notes))


def _dials(spec: ModelSpec) -> tuple[Dial, ...]:
    pixel = Dial("lambda_pixel", "λ_pix", "weight of pixel fidelity", 1.0)
    semantic = Dial("lambda_semantic", "λ_sem", "weight of semantic detail", 1.0)
    timestep = Dial("timestep", "t", "diffusion timestep that the UNet is told", spec.timestep, 0, 999, whole=True)
    return (pixel, semantic, timestep) if SEMANTIC in spec.adapters else (pixel, timestep)


def _asked(options: LoadOptions) -> tuple[Settings, ...]:
    return options.settings or ({"lambda_pixel": options.lambda_pixel, "lambda_semantic": options.lambda_semantic},)


def _weights(settings: Settings, *, has_semantic: bool) -> dict[Names, float]:
    pixel, semantic = (settings.get(name, 1.0) for name in ("lambda_pixel", "lambda_semantic"))
    return pass_weights(pixel, semantic, has_semantic=has_semantic)


def _merged(base: Any, adapters: list[Adapter]) -> Any:
    unet = load_unet(base)
    merge(unet, adapters)
    return unet
