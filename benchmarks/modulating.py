"""What `benchmarks/s3diff.py` measures; apart, so that its help needs no torch."""

from __future__ import annotations

import argparse
import gc
import json
import re
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srcli.families.s3diff.modulation import CONDITIONER, FREQUENCIES, UNET, WIDTH, Conditioner, Modulation, block_of
from srcli.networks.adapters import Adapter, AdapterInfo
from srcli.networks.device import cast, layout_for
from srcli.networks.remade import RemadeUNet
from srcli.networks.unet import FixedPromptUNet

SMALL = {
    "block_out_channels": [64, 128, 256, 256],
    "layers_per_block": 1,
    "cross_attention_dim": 64,
    "attention_head_dim": [2, 4, 8, 8],
}
FULL = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20]}
TARGETS = re.compile(r".*(to_[qkv]|to_out\.0|conv\d*|conv_shortcut|conv_out|proj_in|proj_out|proj|net\.2)")
SCORES = (0.3, 0.6)


def make_base(folder: Path, config: dict[str, Any], dtype: torch.dtype) -> Path:
    """A UNet of random weights in diffusers' layout."""
    from safetensors.torch import save_file

    config = {"_class_name": "UNet2DConditionModel", "use_linear_projection": True, **config}
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    unet = FixedPromptUNet(config)
    save_file(
        {k: v.detach().to(dtype).contiguous() for k, v in unet.named_parameters()},
        folder / "unet" / "diffusion_pytorch_model.safetensors",
    )
    return folder


def make_adapter(base: Path, rank: int) -> Adapter:
    """Random LoRA on what S3Diff adapts, with its conditioner."""
    with torch.device("meta"):
        unet = FixedPromptUNet(json.loads((base / "unet" / "config.json").read_text()))
    tensors: dict[str, Tensor] = {FREQUENCIES: torch.randn(WIDTH)}
    for name, module in unet.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and TARGETS.fullmatch(name):
            outer, inner, *kernel = module.weight.shape
            tensors[f"{UNET}.{name}.lora_A.weight"] = torch.randn(rank, inner, *kernel) / rank
            tensors[f"{UNET}.{name}.lora_B.weight"] = torch.randn(outer, rank, *[1] * len(kernel)) * 1e-3
    conditioner = Conditioner(10, rank)
    tensors |= {f"{UNET}{CONDITIONER}.{key}": value.detach() for key, value in conditioner.named_parameters()}
    return Adapter("semantic", tensors, AdapterInfo(rank, 8.0))


def modulate(unet: FixedPromptUNet, modulation: Modulation, dtype: torch.dtype) -> None:
    """The other way: the bare network, with B · (Mᵀ · (A · x)) beside each layer at run time."""
    matrices = modulation.matrices(UNET, torch.tensor([SCORES]))[0]
    scale = modulation.unet.info.alpha / modulation.unet.info.rank
    layers = dict(unet.named_modules())
    for name in modulation.unet.modules:
        if name not in layers:  # keys and values of the prompt are constants, queries are joined with what the layer makes
            continue
        layer, matrix = layers[name], matrices[block_of(UNET, name)].to(unet.conv_in.weight.device, dtype)
        down, up = (modulation.unet.tensors[f"{name}.lora_{half}.weight"].to(dtype) for half in "AB")

        def beside(module: Any, inputs: Any, output: Tensor, down: Any = down, up: Any = up, matrix: Any = matrix) -> Tensor:
            (x,) = inputs
            if isinstance(module, nn.Conv2d):
                seen = nn.functional.conv2d(x, down, None, module.stride, module.padding)
                seen = torch.einsum("nkhw,kj->njhw", seen, matrix)
                return output + nn.functional.conv2d(seen, up) * scale
            return output + nn.functional.linear(nn.functional.linear(x, down) @ matrix, up) * scale

        layer.register_forward_hook(beside)


def seconds(work: Callable[[], Any], device: torch.device, times: int) -> float:
    """The shortest of several; on a CPU of the processor's time, which other programs do not lengthen."""
    clock, best = time.process_time if device.type == "cpu" else time.perf_counter, float("inf")
    for _ in range(times + 1):  # the first is for warming up
        start = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, clock() - start)
    return best


@torch.inference_mode()
def measure(args: argparse.Namespace) -> None:
    """By the options of `benchmarks/s3diff.py`; prints what it finds."""
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    config = FULL if args.full else SMALL
    with tempfile.TemporaryDirectory() as work:
        base = make_base(Path(work), config, torch.float16 if dtype != torch.float32 else torch.float32)
        gc.collect()
        adapter = make_adapter(base, 32)
        modulation = Modulation(adapter, device)
        template = RemadeUNet(base, dtype, device, modulation.unet)
        numbers = sum(p.numel() for p in template._unet.parameters())
        print(f"{numbers / 1e6:.0f} M weights, {args.dtype} on {device}, latent {args.cells}x{args.cells}")
        prompt = torch.randn(1, 77, config["cross_attention_dim"], device=device)
        latent = torch.randn(1, 4, args.cells, args.cells, device=device).to(dtype, memory_format=layout_for(dtype))
        merge = seconds(lambda: template.made(modulation.of(UNET, SCORES), [prompt, prompt], 999), device, args.times)
        print(f"merging, for both prompts: {merge:.3f} s")
        made = template.made(modulation.of(UNET, SCORES), [prompt, prompt], 999)
        one = seconds(lambda: made[0](latent, 999), device, args.times)
        two = seconds(lambda: [unet(latent, 999) for unet in made], device, args.times)
        print(f"one pass, merged: {one:.3f} s; two: {two:.3f} s, {two / one:.2f} times as long")
        made.clear()
        gc.collect()
        bare = template.made(Adapter("none", {}, adapter.info), [prompt], 999)[0]
        modulate(cast(bare, dtype), modulation, dtype)
        beside = seconds(lambda: bare(latent, 999), device, args.times)
        print(
            f"one pass, modulated at run time (without queries, keys, values): {beside:.3f} s, {beside / one:.2f} times as long"
        )
        print(f"merging pays from {merge / max(beside - one, 1e-9):.1f} passes of this size a picture")
    if device.type == "cuda":
        print(f"peak memory of the device: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")
