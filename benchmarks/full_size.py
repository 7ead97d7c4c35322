"""SD 2.1-base and PiSA-SR's two adapters at full size with random weights: speed and memory do not depend on the values."""

from __future__ import annotations

from pathlib import Path

import torch


def make_base(folder: Path, divisor: int = 1) -> None:
    """SD 2.1-base with random weights, in float16, and with embeddings instead of a text encoder; channels over `divisor`."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from safetensors.torch import save_file

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64,
        cross_attention_dim=1024,
        block_out_channels=tuple(320 * times // divisor for times in (1, 2, 4, 4)),
        attention_head_dim=(5, 10, 20, 20),
        norm_num_groups=32 // divisor,
        use_linear_projection=True,
    )
    unet.half().save_pretrained(folder / "unet")
    del unet
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=tuple(width // divisor for width in (128, 256, 512, 512)),
        norm_num_groups=32 // divisor,
        layers_per_block=2,
        latent_channels=4,
    )
    vae.half().save_pretrained(folder / "vae")
    DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    save_file(
        {name: torch.randn(77, 1024) for name in ("null", "positive", "negative")}, folder / "prompt_embeddings.safetensors"
    )
    (folder / "model_index.json").write_text("{}")


def make_adapter(base: Path, folder: Path, stage: str) -> Path:
    """A fresh adapter of PiSA-SR's rank 4; returns its file."""
    from srcli.networks.adapters import AdapterInfo, attach, extract, save_adapter
    from srcli.networks.backbone import load_unet

    unet = load_unet(base)
    for parameter in attach(unet, stage, 4, 8):
        torch.nn.init.normal_(parameter, std=0.01)
    return save_adapter(extract(unet, stage, AdapterInfo(4, 8, "random", stage)), folder / stage)


def make_model(folder: Path, divisor: int = 1) -> Path:
    """Base, adapters and a registry with the row `random` and PiSA-SR's defaults, unless they are there; returns the registry."""
    from srcli.store.weights import sha256_of

    registry = folder / "models.toml"
    if registry.is_file():
        return registry
    make_base(folder / "base", divisor)
    rows = ["[models.random]", 'family = "pisasr"', "native_scale = 4", f'base = {{ path = "{folder.resolve() / "base"}" }}']
    rows += ["timestep = 1", "tile = 768", "overlap = 256", "min_side = 128"]
    for stage in ("pixel", "semantic"):
        file = make_adapter(folder / "base", folder, stage).resolve()
        rows.append(f'adapters.{stage} = {{ path = "{file}", sha256 = "{sha256_of(file)}" }}')
    registry.write_text("\n".join(rows) + "\n")
    return registry
