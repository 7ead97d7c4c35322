"""Pretrain the base of the built-in model `tiny`: a small pixel-patch diffusion model of photos.

    python scripts/pretrain_tiny.py ../shared/photos/train -o runs/tiny-base --recipe scripts/builtin/tiny.toml

The UNet learns to predict the noise (DDPM, Ho et al. 2020, eq. 14) in 4x4-patchified photos. It sees clean crops under the
`positive` embedding, degraded ones under the `negative` embedding, and both under `null`: the three stand in for the
prompts of a text encoder, and make guidance and score distillation mean something. The result is a folder in diffusers' layout
that `srcli train-pixel --base` takes. Prints the loss every 50 steps. Takes half an hour by the recipe, on two
cores with avx512_bf16.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pretraining import follow, parsed, set_rate

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DConditionModel

    from srcli.networks.backbone import PatchAutoencoder
    from srcli.networks.tail import PixelTail
    from srcli.training.data.crops import Batch

PROMPTS = ("positive", "negative", "null")
TOKENS, WIDTH = 4, 64
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def make_unet(channels: tuple[int, ...] = (80, 96, 128)) -> UNet2DConditionModel:
    from diffusers import UNet2DConditionModel

    inner = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=48,
        out_channels=48,
        block_out_channels=channels,
        down_block_types=("DownBlock2D",) * inner + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * inner,
        layers_per_block=2,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_tail(vae: PatchAutoencoder, seed: int) -> PixelTail:
    """A tail that does nothing; what its first layers see is left to chance and to the adapters."""
    import torch

    from srcli.networks.tail import PixelTail

    torch.manual_seed(seed)
    return PixelTail(vae.factor, vae.scaling_factor)


def draw_batch(batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (N, 3, H, W) and the index of each one's prompt (N,): six in ten clean, a quarter of all under `null`."""
    import torch

    clean = torch.rand(len(batch.hq), generator=generator) < 0.6
    unconditional = torch.rand(len(clean), generator=generator) < 0.25
    pictures = torch.where(clean[:, None, None, None], batch.hq, batch.lq)
    prompts = torch.where(unconditional, 2, torch.where(clean, 0, 1))
    return pictures, prompts


def save(
    folder: Path, unet: UNet2DConditionModel, tail: PixelTail, prompts: torch.Tensor, vae: PatchAutoencoder, steps: int
) -> None:
    from diffusers import DDPMScheduler
    from safetensors.torch import save_file

    unet.half().save_pretrained(folder / "unet")
    tail.half().save(folder / "tail")
    vae.save_config(folder / "vae")
    DDPMScheduler(**BETAS).save_pretrained(folder / "scheduler")
    tensors = {name: prompts[i].half().contiguous() for i, name in enumerate(PROMPTS)}
    save_file(tensors, folder / "prompt_embeddings.safetensors", {"pretraining_steps": str(steps)})
    index = {"_class_name": "SrcliPatchDiffusion", "unet": ["diffusers", "UNet2DConditionModel"], "tail": ["srcli", "PixelTail"]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="a folder of sharp photos")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the base's folder")
    pretrain(parsed(parser, steps=3500, batch=16, crop=128))


def pretrain(args: argparse.Namespace) -> None:
    """Make the base, from the photos to its folder."""
    import torch
    from diffusers import DDPMScheduler

    from srcli.memory import keep_large_blocks
    from srcli.networks.backbone import PatchAutoencoder
    from srcli.networks.device import bf16_pays
    from srcli.training.data.crops import CropSettings, StepOrder, TrainingCrops, finish, make_loader
    from srcli.training.data.sources import find_sources

    keep_large_blocks()
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    sources, _ = find_sources([str(args.photos)], args.crop, scale=4)
    data = TrainingCrops(sources, CropSettings(args.crop, seed=args.seed))
    loader = make_loader(data, StepOrder(0, args.steps, args.batch), workers=1, pinned=False)
    vae = PatchAutoencoder()
    unet = make_unet().to(memory_format=torch.channels_last)
    prompts = torch.nn.Parameter(torch.randn(len(PROMPTS), TOKENS, WIDTH))
    weights = [*unet.parameters(), prompts]
    average = [weight.detach().clone() for weight in weights]
    optimiser = torch.optim.AdamW(weights, lr=args.lr, weight_decay=1e-2)
    alphas = DDPMScheduler(**BETAS).alphas_cumprod

    start, mean, done = time.monotonic(), 0.0, 0
    for step, samples in enumerate(loader):
        batch = finish(samples, torch.device("cpu"))
        progress = max(step / args.steps, (time.monotonic() - start) / (60 * args.minutes))
        if progress >= 1:
            break
        set_rate(optimiser, args.lr, step, 200, progress)
        pictures, names = draw_batch(batch, generator)
        # low noise levels matter most to a restorer that works at t = 1: density falls with t
        t = (1000 * torch.rand(len(pictures), generator=generator) ** 1.5).long()
        noise = torch.randn(len(pictures), vae.channels, args.crop // 4, args.crop // 4, generator=generator)
        alpha = alphas[t][:, None, None, None]
        noisy = alpha.sqrt() * vae.encode(pictures) + (1 - alpha).sqrt() * noise
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16_pays(torch.device("cpu"))):
            noisy = noisy.to(memory_format=torch.channels_last)
            predicted = unet(noisy, t, encoder_hidden_states=prompts[names]).sample
        loss = (predicted.float() - noise).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        follow(average, weights, step, 0.999)
        done = step + 1
        mean = loss.item() if step == 0 else mean * 0.98 + loss.item() * 0.02
        if step % 50 == 0:
            print(f"step {step} loss {mean:.4f} {(time.monotonic() - start) / done:.3f} s/step", flush=True)

    with torch.no_grad():
        for weight, kept in zip(weights, average, strict=True):
            weight.copy_(kept)
    save(args.output, unet, make_tail(vae, args.seed), prompts.detach(), vae, done)
    print(f"saved `{args.output}` after {done} steps, {(time.monotonic() - start) / 60:.0f} min")


if __name__ == "__main__":
    main()
