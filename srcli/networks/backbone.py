"""The frozen part of a restorer: autoencoder, UNet, prompt embeddings and the latent maths that goes with them.

A base is a folder in diffusers' layout: `unet/`, `vae/`, `scheduler/`, and either `text_encoder/` with `tokenizer/` or, for
models without text, `prompt_embeddings.safetensors` with an embedding for each known prompt. A UNet that works on patches of
pixels may have a `tail/` (see `srcli.networks.tail`).
"""

from __future__ import annotations

import copy
import json
import logging
import textwrap
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter, functional

from srcli.disk import first_line, write_whole
from srcli.errors import ModelError
from srcli.networks.adapters import Adapter, check_fit, merged
from srcli.networks.device import cast, laid_out
from srcli.networks.filling import BASE_HINT, empty, fill, fill_alone, frozen, read_json, reading
from srcli.networks.tail import PixelTail, attach_tail
from srcli.networks.transformer import Joined
from srcli.networks.unet import FixedPromptUNet
from srcli.networks.vae import OLD_NAMES, Vae, vae_parts
from srcli.protocol.restoring import Part, Parts
from srcli.store.layout import variant_of
from srcli.store.prompt_cache import keep_embedding, read_embedding
from srcli.store.weights import load_tensors

Pass = TypeVar("Pass", bound=Hashable)

_LOGGER = logging.getLogger("srcli")
NAMED_PROMPTS_FILE = "prompt_embeddings.safetensors"
NULL_PROMPT = "null"
"""The name under which a model without a text encoder keeps the embedding of the empty prompt."""


class Autoencoder(Protocol):
    """What turns pictures into latents and back. Latents are scaled as the UNet wants them."""

    factor: int
    """Pixels a latent cell, in both axes; picture sides must be multiples of it."""
    channels: int
    """Channels of the latent."""
    patch: int
    """Pixels a side that a cell holds in its channels, as `pixel_unshuffle` lays them; 1 where it holds none."""
    network: nn.Module
    """What holds the weights, for `.to`; may hold none."""

    def encode(self, picture: Tensor) -> Tensor:
        """(N, 3, H, W), RGB, in [-1, 1] -> latent (N, channels, H / factor, W / factor)."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """Latent (N, channels, h, w) -> (N, 3, h * factor, w * factor), RGB, about [-1, 1], not clamped."""
        ...

    def parts(self) -> Parts:
        """The same for inference, in parts that can be computed in tiles; `network` must be on its device and in its dtype."""
        ...


class PatchAutoencoder:
    """A lossless "autoencoder": each patch of pixels becomes the channels of one cell (pixel-unshuffle), and back.

    Args:
        patch_size: pixels of a patch's side.
        scaling_factor: latents are pixels in [-1, 1] times this, so that their standard deviation is near 1.
    """

    def __init__(self, patch_size: int = 4, scaling_factor: float = 2.0) -> None:
        self.factor = self.patch = patch_size
        self.channels = 3 * patch_size**2
        self.scaling_factor = scaling_factor
        self.network: nn.Module = nn.Identity()

    def encode(self, picture: Tensor) -> Tensor:
        return functional.pixel_unshuffle(picture, self.factor) * self.scaling_factor

    def decode(self, latent: Tensor) -> Tensor:
        return functional.pixel_shuffle(latent / self.scaling_factor, self.factor)

    def parts(self) -> Parts:
        def encode(picture: Tensor, *, exact: bool = False) -> Tensor:
            return self.encode(picture)

        def decode(latent: Tensor, *, exact: bool = False) -> Tensor:
            return self.decode(latent)

        cell_bytes = 3 * 4 * self.channels  # float32 in, scaled, and out
        encoder = Part(encode, self.channels, self.factor, 1, cell_bytes=cell_bytes)
        return Parts((encoder,), (Part(decode, 3, 1, self.factor, cell_bytes=cell_bytes),))

    def save_config(self, folder: Path) -> None:
        """Write `config.json` into `folder`, as diffusers does for its own autoencoders."""
        config: dict[str, Any] = {
            "_class_name": type(self).__name__,
            "patch_size": self.factor,
            "scaling_factor": self.scaling_factor,
        }
        write_whole(folder / "config.json", f"{json.dumps(config, indent=2)}\n".encode())


class KLAutoencoder:
    """Stable Diffusion's autoencoder; encodes to the mode of the posterior, so that nothing is random.

    Args:
        network: in any dtype; pictures and latents are converted to it, and to float32 back.
    """

    patch = 1

    def __init__(self, network: Vae) -> None:
        self.network: nn.Module = network
        self._vae = network
        self.factor = 2 ** (len(network.widths) - 1)
        self.channels = network.latent_channels

    def encode(self, picture: Tensor) -> Tensor:
        return _run_all(self.parts().encoder, picture)

    def decode(self, latent: Tensor) -> Tensor:
        return _run_all(self.parts().decoder, latent)

    def parts(self) -> Parts:
        return vae_parts(self._vae)


def _run_all(parts: Sequence[Part], x: Tensor) -> Tensor:
    for part in parts:
        x = part.run(x)
    return x


def load_unet(base: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The base's `UNet2DConditionModel` of diffusers, for training; with its tail if it has one, on the CPU, frozen.

    Raises:
        ModelError: the folder holds no usable UNet, or a tail that does not suit its autoencoder.
    """
    import diffusers.utils.logging
    from diffusers import UNet2DConditionModel

    _quiet(diffusers.utils.logging)
    with reading(base, "unet"):
        variant = variant_of(base / "unet")
        unet = UNet2DConditionModel.from_pretrained(
            base, subfolder="unet", use_safetensors=True, torch_dtype=dtype, variant=variant
        )
    unet.eval().requires_grad_(False)
    if (tail := empty_tail(base)) is not None:
        fill_alone(tail, base, "tail", dtype)
        attach_tail(unet, tail)
    return unet


def load_passes(
    base: Path, passes: Mapping[Pass, Sequence[Adapter]], dtype: torch.dtype, embedding: Tensor, timesteps: Iterable[int]
) -> dict[Pass, FixedPromptUNet]:
    """The base's UNet for inference, once for each pass with the pass's adapters in it; on the CPU, in `dtype`, frozen.

    The passes share the weights that no adapter changes.

    Args:
        base: the base's folder.
        passes: and the adapters of each.
        dtype: of the weights; what adapters change and what is constant is computed in float32 before.
        embedding: of the prompt, (1, tokens, width), float32.
        timesteps: those that will be asked for.

    Raises:
        ModelError: the folder holds no usable UNet, or a tail that does not suit its autoencoder; an adapter does not fit.
    """
    if not passes:
        return {}
    unet = empty(FixedPromptUNet, base, "unet")
    tail = unet.tail = empty_tail(base)
    for adapter in {adapter.name: adapter for adapters in passes.values() for adapter in adapters}.values():
        check_fit(unet, adapter)
    unet.tail, exact = None, unet.folded()
    unets = {key: copy.deepcopy(unet) for key in passes}

    give = _merging(list(passes.values()), dtype, exact)
    fill(list(unets.values()), base, "unet", give)
    if tail is not None:
        tails = [copy.deepcopy(tail) for _ in unets]
        fill(tails, base, "tail", lambda key, tensor: give(f"tail.{key}", tensor))
        for unet, unet.tail in zip(unets.values(), tails, strict=True):
            unet.tail.settle()
    joined: Joined = {}
    for unet in unets.values():
        unet.settle(embedding, timesteps, joined)
        cast(unet, dtype)
    return unets


def _merging(
    passes: Sequence[Sequence[Adapter]], dtype: torch.dtype, exact: Collection[str]
) -> Callable[[str, Tensor], list[Parameter]]:
    """What makes each pass's parameter of a stored one, see `fill`: one for all of those whose adapters change it alike."""

    def give(key: str, tensor: Tensor) -> list[Parameter]:
        made: dict[tuple[str, ...], Parameter] = {}
        changes = [tuple(adapter.name for adapter in adapters if adapter.changes(key)) for adapters in passes]
        for names, adapters in zip(changes, passes, strict=True):
            if names not in made:
                weight = merged(key, tensor, adapters)
                made[names] = frozen(weight if key in exact else laid_out(weight, dtype))
        return [made[names] for names in changes]

    return give


def load_autoencoder(base: Path, dtype: torch.dtype = torch.float32) -> Autoencoder:
    """The base's autoencoder, in `dtype`, on the CPU, frozen.

    Raises:
        ModelError: the folder holds none, or one of an unknown class.
    """
    config = read_json(base / "vae" / "config.json")
    kind = config.get("_class_name")
    if kind == PatchAutoencoder.__name__:
        return PatchAutoencoder(int(config["patch_size"]), float(config["scaling_factor"]))
    if kind == "AutoencoderKL":
        vae = empty(Vae, base, "vae")
        fill_alone(vae, base, "vae", dtype, OLD_NAMES)
        return KLAutoencoder(vae)
    raise ModelError(
        f"`{base / 'vae'}` holds an autoencoder of the unknown class `{kind}`",
        "srcli knows `AutoencoderKL` and `PatchAutoencoder`",
    )


def prompt_embedding(base: Path, prompt: str) -> Tensor:
    """The embedding of one prompt: (1, tokens, width), float32, on the CPU.

    With a text encoder any prompt will do; without one, the names in `prompt_embeddings.safetensors` and the empty prompt. What
    the text encoder computes is kept (see `prompt_cache`), so that it is loaded once for a prompt.

    Raises:
        ModelError: the base has neither, or the prompt has no embedding.
    """
    encoder = PromptEncoder(base, torch.device("cpu"))
    embedding = encoder([prompt])
    if encoder.loaded:
        keep_embedding(base, prompt, embedding[0])
    return embedding


def keep_prompts(base: Path, prompts: Sequence[str]) -> None:
    """Compute and keep the embeddings of those prompts that are not kept yet; loads the text encoder at most once.

    Raises:
        ModelError: the base has no usable text encoder, nor embeddings of its own.
    """
    encoder = PromptEncoder(base, torch.device("cpu"))
    for prompt in () if encoder.named else dict.fromkeys(prompts):
        if read_embedding(base, prompt) is None:
            keep_embedding(base, prompt, encoder([prompt])[0])


class PromptEncoder:
    """Prompts to embeddings; each prompt is computed once.

    Args:
        base: the base's folder. With a text encoder any prompt will do; without one, the names in
            `prompt_embeddings.safetensors` and the empty prompt.
        device: of the encoder and the embeddings.
        cut: what is longer than the encoder takes loses its end, which is told once, instead of being refused.
    """

    KEPT = 4096
    """Embeddings that are remembered."""

    def __init__(self, base: Path, device: torch.device, *, cut: bool = False) -> None:
        self._base, self._device, self._cut = base, device, cut
        self._text: tuple[Any, Any] | None = None
        self._known: dict[str, Tensor] = {}
        self._told_of_cut = False
        self.named = (base / NAMED_PROMPTS_FILE).is_file()

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """(N, tokens, width), float32.

        Raises:
            ModelError: the base has neither encoder nor embeddings, or a prompt has no embedding or is too long.
        """
        new = sorted({prompt for prompt in prompts if prompt not in self._known})
        if not self.named:
            kept = {prompt: read_embedding(self._base, prompt) for prompt in new}
            self._known.update({prompt: value.to(self._device) for prompt, value in kept.items() if value is not None})
            new = [prompt for prompt, value in kept.items() if value is None]
        if new:
            embeddings = self._look_up(new) if self.named else self._encode(new)
            self._known.update(zip(new, embeddings.to(self._device), strict=True))
        result = torch.stack([self._known[prompt] for prompt in prompts])
        while len(self._known) > self.KEPT:
            self._known.pop(next(iter(self._known)))
        return result

    @property
    def loaded(self) -> bool:
        """Whether the text encoder is in memory."""
        return self._text is not None

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

    def _tell_too_long(self, text: str, count: int, most: int) -> None:
        """Tokens count with the two that mark beginning and end. Raises: ModelError: unless what is too long is cut."""
        shown = textwrap.shorten(text, 40, placeholder=" …")
        message = f"the prompt `{shown}` has {count - 2} tokens, and the text encoder takes {most - 2}"
        if not self._cut:
            raise ModelError(message, "shorten it, where it stands in the model's row")
        if not self._told_of_cut:
            _LOGGER.warning("%s: its end is left out, and that of others that are as long", message)
        self._told_of_cut = True

    @torch.no_grad()
    def _encode(self, texts: Sequence[str]) -> Tensor:
        if self._text is None:
            self._text = _load_text_encoder(self._base, self._device)
        tokenizer, encoder = self._text
        length = tokenizer.model_max_length
        for text, own in zip(texts, tokenizer(list(texts)).input_ids, strict=True):
            if len(own) > length:
                self._tell_too_long(text, len(own), length)
        tokens = tokenizer(list(texts), max_length=length, padding="max_length", truncation=True, return_tensors="pt").input_ids
        # one by one on a CPU, where batches gain nothing: an embedding then does not depend on what else was asked for
        parts = tokens.split(1 if self._device.type == "cpu" else 16)
        return torch.cat([encoder(part.to(self._device))[0].float() for part in parts])


def load_alphas(base: Path) -> Tensor:
    """ᾱ of the base's noise schedule: (steps,), float32, falling from near 1.

    Raises:
        ModelError: the base has no usable scheduler.
    """
    import diffusers.utils.logging
    from diffusers import DDPMScheduler

    _quiet(diffusers.utils.logging)
    try:
        scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"`{base}` has no usable scheduler: {first_line(error)}", BASE_HINT) from error
    if scheduler.config.prediction_type != "epsilon":
        message = (
            f"`{base}` predicts `{scheduler.config.prediction_type}`, but score distillation needs a base that predicts the noise"
        )
        raise ModelError(message, "take a base such as SD 2.1-base (not SD 2.1 of 768 pixels), or train with `--csd 0`")
    alphas: Tensor = scheduler.alphas_cumprod
    return alphas.float()


def _load_text_encoder(base: Path, device: torch.device) -> tuple[Any, Any]:
    import transformers.utils.logging
    from transformers import CLIPTextModel, CLIPTokenizer

    _quiet(transformers.utils.logging)
    folder = base / "text_encoder"
    try:
        tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
        encoder = CLIPTextModel.from_pretrained(folder, use_safetensors=True, variant=variant_of(folder))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"`{base}` has no usable text encoder: {first_line(error)}", BASE_HINT) from error
    return tokenizer, encoder.to(device, torch.float32)


def _quiet(library: Any) -> None:
    library.set_verbosity_error()
    library.disable_progress_bar()


def empty_tail(base: Path) -> PixelTail | None:
    """Raises: ModelError: the base's latents are not the patches that its tail takes them for."""
    if not (base / "tail").is_dir():
        return None
    tail = empty(PixelTail.of_config, base, "tail")
    vae, patch, scale = read_json(base / "vae" / "config.json"), tail.patch_size, tail.scaling_factor
    if vae != vae | {"_class_name": PatchAutoencoder.__name__, "patch_size": patch, "scaling_factor": scale}:
        message = f"the `tail` of `{base}` is for patches of {patch} px, scaled by {scale:g}"
        raise ModelError(message, "the base's `vae` has to be a `PatchAutoencoder` of those")
    return tail
