"""SD 2.1-base and PiSA-SR's two adapters at full size with random weights: speed and memory do not depend on the values.

    python benchmarks/full_size.py /tmp/full-size            # what the other benchmarks take as `--folder`, or make themselves
    python benchmarks/full_size.py /tmp/thin --divisor 8     # the same code with an eighth of the channels: for a trial of them

Writes the networks and `models.toml` with the row `random`, unless they are there, and prints that file's path. Takes a minute or
two and 2 GB of disk at full size (the adapters are made beside 4 GB of memory), seconds with an eighth of the channels.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from srcli.engine.mix import MixingEngine
    from srcli.opening import Work
    from srcli.protocol.restoring import Settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the networks are kept")
    parser.add_argument("--divisor", type=int, default=1, choices=(1, 2, 4, 8, 16, 32), help="channels over this (%(default)s)")
    args = parser.parse_args()
    print(make_model(args.folder, args.divisor))


def make_base(folder: Path, divisor: int = 1) -> None:
    """SD 2.1-base with random weights, in float16, and with embeddings instead of a text encoder; channels over `divisor`."""
    import torch
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
    import torch

    from srcli.families.pisasr import TARGETS
    from srcli.networks.adapters import AdapterInfo
    from srcli.networks.attached import attach, extract
    from srcli.networks.backbone import load_unet
    from srcli.networks.saved_adapters import save_adapter

    unet = load_unet(base)
    for parameter in attach(unet, stage, 4, 8, TARGETS):
        torch.nn.init.normal_(parameter, std=0.01)
    return save_adapter(extract(unet, stage, AdapterInfo(4, 8, stage=stage)), folder / stage)


def make_model(folder: Path, divisor: int = 1) -> Path:
    """Base, adapters and a registry with the row `random` and PiSA-SR's defaults, unless they are there; returns the registry."""
    from srcli.store.weights import sha256_of

    folder = folder.resolve()
    registry = folder / "models.toml"
    if registry.is_file():
        return registry
    make_base(folder / "base", divisor)
    rows = ["[models.random]", 'family = "pisasr"', "native_scale = 4", f'base = {{ path = "{folder / "base"}" }}']
    rows += ["tile = 768", "overlap = 256", "min_side = 128", 'prompts = { positive = "positive", negative = "negative" }']
    for stage in ("pixel", "semantic"):
        file = make_adapter(folder / "base", folder, stage)
        rows.append(f'adapters.{stage} = {{ path = "{file}", sha256 = "{sha256_of(file)}" }}')
    registry.write_text("\n".join(rows) + "\n")
    return registry


def open_random(registry: Path, work: Work, dials: Sequence[tuple[float, float]]) -> MixingEngine:
    """The engine of the row `random`, at the first of several pairs of dials."""
    from srcli.opening import choose_model, open_engine

    return open_engine(choose_model("random", registry, {}, {}), work, [at(*pair) for pair in dials])


def at(pixel: float, semantic: float) -> Settings:
    """The settings of a pair of PiSA-SR's dials."""
    return {"lambda_pixel": pixel, "lambda_semantic": semantic, "timestep": 1}


if __name__ == "__main__":
    main()
