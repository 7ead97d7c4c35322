"""The frozen part of a restorer: autoencoder, UNet, prompt embeddings and the latent maths that goes with them.

A base is a folder in diffusers' layout: `unet/`, `vae/`, `scheduler/`, and either `text_encoder/` with `tokenizer/` or, for
models without text, `prompt_embeddings.safetensors` with an embedding for each known prompt.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from srcli.errors import ModelError
from srcli.models.weights import load_tensors

NAMED_PROMPTS_FILE = "prompt_embeddings.safetensors"
NULL_PROMPT = "null"
"""The name under which a model without a text encoder keeps the embedding of the empty prompt."""


class Autoencoder(Protocol):
    """What turns pictures into latents and back. Latents are scaled as the UNet wants them."""

    factor: int
    """Pixels a latent cell, in both axes; picture sides must be multiples of it."""
    channels: int
    """Channels of the latent."""
    network: nn.Module
    """What holds the weights, for `.to`; may hold none."""

    def encode(self, picture: Tensor) -> Tensor:
        """(N, 3, H, W), RGB, in [-1, 1] -> latent (N, channels, H / factor, W / factor)."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """Latent (N, channels, h, w) -> (N, 3, h * factor, w * factor), RGB, about [-1, 1], not clamped."""
        ...


class PatchAutoencoder:
    """A lossless "autoencoder": each patch of pixels becomes the channels of one cell (pixel-unshuffle), and back.

    Args:
        patch_size: pixels of a patch's side.
        scaling_factor: latents are pixels in [-1, 1] times this, so that their standard deviation is near 1.
    """

    def __init__(self, patch_size: int = 4, scaling_factor: float = 2.0) -> None:
        self.factor = patch_size
        self.channels = 3 * patch_size**2
        self.scaling_factor = scaling_factor
        self.network: nn.Module = nn.Identity()

    def encode(self, picture: Tensor) -> Tensor:
        return functional.pixel_unshuffle(picture, self.factor) * self.scaling_factor

    def decode(self, latent: Tensor) -> Tensor:
        return functional.pixel_shuffle(latent / self.scaling_factor, self.factor)

    def save_config(self, folder: Path) -> None:
        """Write `config.json` into `folder`, as diffusers does for its own autoencoders."""
        folder.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {
            "_class_name": type(self).__name__,
            "patch_size": self.factor,
            "scaling_factor": self.scaling_factor,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


class KLAutoencoder:
    """diffusers' `AutoencoderKL`; encodes to the mode of the posterior, so that nothing is random.

    Args:
        network: the autoencoder, in any dtype; pictures and latents are converted to it and back.
    """

    def __init__(self, network: Any) -> None:
        self.network: nn.Module = network
        self._vae = network
        self.factor = 2 ** (len(network.config.block_out_channels) - 1)
        self.channels = int(network.config.latent_channels)
        self.scaling_factor = float(network.config.scaling_factor)

    def encode(self, picture: Tensor) -> Tensor:
        mode: Tensor = self._vae.encode(picture.to(self._vae.dtype)).latent_dist.mode()
        return mode.to(picture.dtype) * self.scaling_factor

    def decode(self, latent: Tensor) -> Tensor:
        picture: Tensor = self._vae.decode((latent / self.scaling_factor).to(self._vae.dtype)).sample
        return picture.to(latent.dtype)


def load_unet(base: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The base's `UNet2DConditionModel`, in `dtype`, on the CPU, frozen.

    Raises:
        ModelError: the folder holds no usable UNet.
    """
    _quiet_libraries()
    from diffusers import UNet2DConditionModel

    return _load_part(UNet2DConditionModel, base, "unet", dtype)


def load_autoencoder(base: Path, dtype: torch.dtype = torch.float32) -> Autoencoder:
    """The base's autoencoder, in `dtype`, on the CPU, frozen.

    Raises:
        ModelError: the folder holds none, or one of an unknown class.
    """
    config = _read_json(base / "vae" / "config.json")
    kind = config.get("_class_name")
    if kind == PatchAutoencoder.__name__:
        return PatchAutoencoder(int(config["patch_size"]), float(config["scaling_factor"]))
    if kind == "AutoencoderKL":
        _quiet_libraries()
        from diffusers import AutoencoderKL

        return KLAutoencoder(_load_part(AutoencoderKL, base, "vae", dtype))
    raise ModelError(
        f"`{base / 'vae'}` holds an autoencoder of the unknown class `{kind}`",
        "srcli knows `AutoencoderKL` and `PatchAutoencoder`",
    )


def prompt_embedding(base: Path, prompt: str) -> Tensor:
    """The embedding of one prompt: (1, tokens, width), float32, on the CPU.

    With a text encoder any prompt will do; without one, the names in `prompt_embeddings.safetensors` and the empty prompt.

    Raises:
        ModelError: the base has neither, or the prompt has no embedding.
    """
    return PromptEncoder(base, torch.device("cpu"))([prompt])


class PromptEncoder:
    """Prompts to embeddings; each prompt is computed once.

    Args:
        base: the base's folder. With a text encoder any prompt will do; without one, the names in
            `prompt_embeddings.safetensors` and the empty prompt.
        device: of the encoder and the embeddings.
    """

    KEPT = 4096
    """Embeddings that are remembered."""

    def __init__(self, base: Path, device: torch.device) -> None:
        self._base, self._device = base, device
        self._text: tuple[Any, Any] | None = None
        self._known: dict[str, Tensor] = {}
        self.named = (base / NAMED_PROMPTS_FILE).is_file()

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """(N, tokens, width), float32.

        Raises:
            ModelError: the base has neither encoder nor embeddings, or a prompt has no embedding.
        """
        new = sorted({prompt for prompt in prompts if prompt not in self._known})
        if new:
            embeddings = self._look_up(new) if self.named else self._encode(new)
            self._known.update(zip(new, embeddings.to(self._device), strict=True))
        result = torch.stack([self._known[prompt] for prompt in prompts])
        while len(self._known) > self.KEPT:
            self._known.pop(next(iter(self._known)))
        return result

    def release(self) -> None:
        """Drop the text encoder; known prompts stay, a new one loads it again."""
        self._text = None

    def _look_up(self, names: Sequence[str]) -> Tensor:
        tensors, _ = load_tensors(self._base / NAMED_PROMPTS_FILE)
        for name in names:
            if (name or NULL_PROMPT) not in tensors:
                known = ", ".join(f"`{key}`" for key in sorted(tensors))
                message = f"`{self._base.name}` has no text encoder and knows no prompt `{name}`"
                raise ModelError(message, f"its prompts: {known}")
        return torch.stack([tensors[name or NULL_PROMPT].float() for name in names])

    @torch.no_grad()
    def _encode(self, texts: Sequence[str]) -> Tensor:
        if self._text is None:
            self._text = _load_text_encoder(self._base, self._device)
        tokenizer, encoder = self._text
        length = tokenizer.model_max_length
        tokens = tokenizer(list(texts), max_length=length, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return torch.cat([encoder(part.to(self._device))[0].float() for part in tokens.split(16)])


def load_alphas(base: Path) -> Tensor:
    """ᾱ of the base's noise schedule: (steps,), float32, falling from near 1.

    Raises:
        ModelError: the base has no usable scheduler.
    """
    _quiet_libraries()
    from diffusers import DDPMScheduler

    try:
        scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"`{base}` has no usable scheduler: {_first_line(error)}", _BASE_HINT) from error
    if scheduler.config.prediction_type != "epsilon":
        message = (
            f"`{base}` predicts `{scheduler.config.prediction_type}`, but score distillation needs a base that predicts the noise"
        )
        raise ModelError(message, "take a base such as SD 2.1-base (not SD 2.1 of 768 pixels), or train with `--csd 0`")
    alphas: Tensor = scheduler.alphas_cumprod
    return alphas.float()


def _load_text_encoder(base: Path, device: torch.device) -> tuple[Any, Any]:
    _quiet_libraries()
    from transformers import CLIPTextModel, CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
        encoder = CLIPTextModel.from_pretrained(base / "text_encoder", use_safetensors=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"`{base}` has no usable text encoder: {_first_line(error)}", _BASE_HINT) from error
    return tokenizer, encoder.to(device)


@contextlib.contextmanager
def in_float32(*modules: nn.Module) -> Iterator[None]:
    """Modules computed in float32 for a while; half-precision weights come back bit for bit."""
    before = [next((p.dtype for p in module.parameters()), torch.float32) for module in modules]
    try:
        for module in modules:
            module.to(torch.float32)
        yield
    finally:
        for module, dtype in zip(modules, before, strict=True):
            module.to(dtype)


def _quiet_libraries() -> None:
    """Keep the libraries' notes and progress bars off the screen; what matters of them comes as our own errors."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


_BASE_HINT = "a base is a folder in diffusers' layout with `unet`, `vae`, `text_encoder` and `tokenizer`"


def _load_part(kind: Any, base: Path, part: str, dtype: torch.dtype) -> Any:
    try:
        network = kind.from_pretrained(base, subfolder=part, use_safetensors=True, torch_dtype=dtype)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"`{base}` has no usable `{part}`: {_first_line(error)}", _BASE_HINT) from error
    return network.eval().requires_grad_(False)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read `{path}`: {_first_line(error)}", _BASE_HINT) from error
    if not isinstance(content, dict):
        raise ModelError(f"`{path}` is not a JSON object", _BASE_HINT)
    return content


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
