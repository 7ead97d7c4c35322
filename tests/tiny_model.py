"""A model that is made in a second: a real UNet of 0.1 M random parameters in `tiny`'s layout, and its row."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file

from srcli.families.pisasr import TARGETS
from srcli.networks.adapters import AdapterInfo
from srcli.networks.attached import attach, extract
from srcli.networks.backbone import PatchAutoencoder, load_unet
from srcli.networks.saved_adapters import save_adapter
from srcli.store.weights import sha256_of

WIDTH = 8


def make_base(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=48,
        out_channels=48,
        block_out_channels=(16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    unet.to(dtype).save_pretrained(folder / "unet")
    PatchAutoencoder().save_config(folder / "vae")
    DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    prompts = {name: torch.randn(2, WIDTH) for name in ("positive", "negative", "null")}
    save_file(prompts, folder / "prompt_embeddings.safetensors")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "SrcliPatchDiffusion"}))
    return folder


def make_model(folder: Path, *, semantic: bool = False) -> Path:
    """A base, adapters with small random weights, and `models.toml` with the row `small`; returns the latter."""
    base = make_base(folder / "base")
    rows = [
        "[models.small]",
        'family = "pisasr"',
        'description = "a test"',
        "native_scale = 4",
        'base = { path = "base" }',
    ]
    rows += ['licence = "CC0-1.0"', "tile = 128", "overlap = 32"]
    for name in ("pixel", "semantic")[: 1 + semantic]:
        unet = load_unet(base)
        with torch.no_grad():
            for parameter in attach(unet, name, 2, 2, TARGETS):
                parameter.normal_(0, 0.02)
        path = save_adapter(extract(unet, name, AdapterInfo(2, 2, "base", name)), folder / name)
        rows.append(f'adapters.{name} = {{ path = "{name}/{path.name}", sha256 = "{sha256_of(path)}" }}')
    file = folder / "models.toml"
    file.write_text("\n".join(rows) + "\n")
    return file
