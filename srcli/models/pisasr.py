"""PiSA-SR: one step, two adapters, two dials.

Source: Sun et al., "Pixel-level and Semantic-level Adjustable Super-resolution: A Dual-LoRA Approach", CVPR 2025.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from srcli.models.adapters import Adapter, load_adapter, merge
from srcli.models.backbone import Autoencoder, in_float32, load_autoencoder, load_unet, prompt_embedding
from srcli.models.base import LoadOptions
from srcli.models.spec import ModelSpec
from srcli.models.weights import adapter_path, base_folder

PIXEL, SEMANTIC = "pixel", "semantic"
_AUTOENCODER_TILE_PX = 1536


def pass_weights(lambda_pixel: float, lambda_semantic: float, *, has_semantic: bool = True) -> dict[tuple[str, ...], float]:
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
    """z_sr = z_lq - ε(z_lq) at a fixed timestep (eqs. 4 and 8); implements `srcli.models.base.Restorer`.

    Args:
        spec: the model's row.
        options: device, dtype and the two scales.
        autoencoder: float32, on the CPU.
        networks: a UNet with merged adapters and its weight for each pass, float32, on the CPU.
        embedding: of the prompt, (1, tokens, width).
        notes: see `Restorer.notes`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        options: LoadOptions,
        autoencoder: Autoencoder,
        networks: list[tuple[Any, float]],
        embedding: Tensor,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.name = spec.name
        self.device, self.dtype = options.device, options.dtype
        self.native_scale, self.min_side = spec.native_scale, spec.min_side
        self.tile, self.overlap, self.color_fix = spec.tile, spec.overlap, spec.color_fix
        self.factor, self.channels = autoencoder.factor, autoencoder.channels
        self.notes = notes
        learned = any(True for _ in autoencoder.network.parameters())
        self.autoencoder_tile = _AUTOENCODER_TILE_PX if learned else None
        self._timestep = spec.timestep
        self._autoencoder = autoencoder
        autoencoder.network.to(options.device, options.dtype)
        self._networks = [(unet.to(options.device, options.dtype), weight) for unet, weight in networks]
        self._embedding = embedding.to(options.device)
        widest = max((unet.config.block_out_channels[0] for unet, _ in networks), default=64)
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
            if exact:
                with in_float32(unet):
                    answer = self._pass(unet, latent)
            else:
                answer = self._pass(unet, latent)
            residual.add_(answer, alpha=weight)
        return residual

    def apply(self, latent: Tensor, prediction: Tensor) -> Tensor:
        return latent - prediction

    def decode(self, latent: Tensor, *, exact: bool = False) -> Tensor:
        if exact:
            with in_float32(self._autoencoder.network):
                return self._autoencoder.decode(latent)
        return self._autoencoder.decode(latent)

    def _pass(self, unet: Any, latent: Tensor) -> Tensor:
        embedding = self._embedding.to(unet.dtype).expand(len(latent), -1, -1)
        answer: Tensor = unet(latent.to(unet.dtype), self._timestep, encoder_hidden_states=embedding).sample
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
    weights = pass_weights(options.lambda_pixel, options.lambda_semantic, has_semantic=SEMANTIC in adapters)
    networks = [(_merged(base, [adapters[name] for name in names]), weight) for names, weight in weights.items()]
    embedding = prompt_embedding(base, spec.prompt)
    return PisaRestorer(spec, options, load_autoencoder(base), networks, embedding, tuple(notes))


def _merged(base: Any, adapters: list[Adapter]) -> Any:
    unet = load_unet(base)
    merge(unet, adapters)
    return unet
