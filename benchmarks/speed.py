"""PiSA-SR at full size: ours against the straightforward pipeline, timed in one run on one machine.

    python benchmarks/speed.py --folder /tmp/full-size                       # 128 -> 512, one picture and eight
    python benchmarks/speed.py --folder /tmp/full-size --sizes 512 --cases plain ours adjustable
    python benchmarks/speed.py --folder /tmp/full-size --photos ~/photos     # a folder, end to end, through `srcli upscale`
    python benchmarks/speed.py --folder /tmp/full-size --profile             # where the time goes, with FLOPs counted

Networks have random weights. Each case runs in a process of its own and reports the fastest of its runs after the warm-up, and
the most memory that the process had (on a GPU: that torch had allocated there), loading included.

    plain       diffusers' modules as the reference code calls them: encoder, UNet in tiles of 96 cells one by one, decoder;
                float32 on a CPU, float16 on a GPU (no colour fix, no file)
    ours        `srcli upscale` as it is, both dials at 1: one pass
    adjustable  the dials at (0.8, 1.2): two passes
    compiled    ours with `--compile`
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from full_size import make_model

CASES = ("plain", "ours", "adjustable")
_TILE, _OVERLAP = 96, 32
"""Of PiSA-SR's latent tiles."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep the random networks here")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128], help="sides of the inputs, in pixels")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="pictures at once; larger inputs go one by one")
    parser.add_argument("--cases", nargs="+", default=CASES, choices=(*CASES, "compiled"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=1, help="runs before those that count")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--photos", type=Path, help="upscale this folder instead, and compare wall time with the model's")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        registry = make_model(folder)
        if args.one:
            print(json.dumps(run_case(args.one, registry, args.sizes[0], args.batches[0], args)))
        elif args.profile:
            profile(registry, args)
        elif args.photos:
            end_to_end(registry, args.photos, args)
        else:
            compare(folder, args)


def compare(folder: Path, args: Any) -> None:
    for side in args.sizes:
        for batch in args.batches if side <= 128 else [1]:
            results: dict[str, float] = {}
            for case in args.cases:
                words = [
                    "--one",
                    case,
                    "--sizes",
                    str(side),
                    "--batches",
                    str(batch),
                    "--runs",
                    str(args.runs),
                    "--warm-up",
                    str(args.warm_up),
                ]
                words += ["--device", args.device, "--dtype", args.dtype, "--folder", str(folder)]
                done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
                results[case], peak = json.loads(done.stdout.splitlines()[-1])
                line = f"{side} -> {4 * side}, batch {batch}, {case}: {results[case] / batch:.3f} s a picture, {peak:.1f} GB"
                if "plain" in results:
                    line += f"; {results['plain'] / results[case]:.2f} times as fast as plain"
                if "ours" in results and case != "ours":
                    line += f"; {results[case] / results['ours']:.2f} of ours' time"
                print(line, flush=True)


def run_case(case: str, registry: Path, side: int, batch: int, args: Any) -> tuple[float, float]:
    """Seconds for `batch` pictures of side x side pixels, and the process's peak memory in gigabytes."""
    work, device = (plain if case == "plain" else ours)(case, registry, 4 * side, batch, args)
    seconds = []
    with torch.inference_mode():
        for _ in range(args.runs + args.warm_up):
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    if device.type == "cuda":
        return min(seconds[args.warm_up :]), torch.cuda.max_memory_allocated() / 1e9
    return min(seconds[args.warm_up :]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def ours(case: str, registry: Path, side: int, batch: int, args: Any) -> tuple[Callable[[], object], torch.device]:
    engine = open_engine(case, registry, batch, args)
    pictures = [torch.rand(3, side, side) * 2 - 1 for _ in range(batch)]
    return lambda: engine.restore(pictures), engine.restorer.device


def open_engine(case: str, registry: Path, batch: int | None, args: Any) -> Any:
    from srcli.config import UpscaleConfig
    from srcli.opening import open_stream

    dials = (0.8, 1.2) if case == "adjustable" else (1.0, 1.0)
    config = UpscaleConfig(
        inputs=(str(registry),), output=Path("unused"), model="random", models_file=registry, lambda_pixel=dials[0],
        lambda_semantic=dials[1], device=args.device, dtype=args.dtype, batch=batch, compile=case == "compiled",
    )  # fmt: skip
    return open_stream(config).engine


def plain(case: str, registry: Path, side: int, batch: int, args: Any) -> tuple[Callable[[], object], torch.device]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import load_file

    from srcli.networks.adapters import load_adapter, merge
    from srcli.networks.device import choose_device

    device = choose_device(args.device)
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    base = registry.parent / "base"
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet", torch_dtype=torch.float32)
    files = {stage: registry.parent / stage / "adapter_model.safetensors" for stage in ("pixel", "semantic")}
    merge(unet, [load_adapter(file, stage) for stage, file in files.items()])
    unet = unet.to(device, dtype).eval()
    vae = AutoencoderKL.from_pretrained(base, subfolder="vae", torch_dtype=dtype).to(device).eval()
    prompt = load_file(base / "prompt_embeddings.safetensors")["null"][None].to(device, dtype)
    pictures = torch.rand(batch, 3, side, side) * 2 - 1

    def work() -> torch.Tensor:
        latent = vae.encode(pictures.to(device, dtype)).latent_dist.mode() * vae.config.scaling_factor
        restored = latent - in_tiles(
            lambda part: unet(part, 1, encoder_hidden_states=prompt.expand(len(part), -1, -1)).sample, latent
        )
        return vae.decode(restored / vae.config.scaling_factor).sample.float().clamp(-1, 1).cpu()

    return work, device


def in_tiles(call: Callable[[torch.Tensor], torch.Tensor], latent: torch.Tensor) -> torch.Tensor:
    """The method's Gaussian tiles, one at a time."""
    from srcli.engine.blend import Blend
    from srcli.engine.tiles import make_grid

    grid = make_grid(*latent.shape[2:], _TILE, _OVERLAP)
    if len(grid.tiles) == 1:
        return call(latent)
    blend = Blend(grid, *latent.shape[1:])
    for tile in grid.tiles:
        part = latent[:, :, tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]
        blend.add(tile, call(part)[0])
    return blend.plane[None].to(latent.device, latent.dtype)


def end_to_end(registry: Path, photos: Path, args: Any) -> None:
    """Wall time of a folder over the model's own, both without loading."""
    from srcli.config import UpscaleConfig
    from srcli.images.files import plan_jobs
    from srcli.opening import open_stream

    with tempfile.TemporaryDirectory() as out:
        config = UpscaleConfig(
            inputs=(str(photos),), output=Path(out), model="random", models_file=registry, device=args.device, dtype=args.dtype
        )
        stream = open_stream(config)
        jobs = plan_jobs(config.inputs, config.output)
        start = time.perf_counter()
        done = [outcome for outcome in stream.run(jobs) if outcome.status == "done"]
        wall = time.perf_counter() - start
    megapixels = sum(outcome.output_size[0] * outcome.output_size[1] for outcome in done if outcome.output_size) / 1e6
    clock = stream.clock
    print(f"{len(done)} pictures, {megapixels:.1f} megapixels in {wall:.1f} s; the model {clock.model:.1f} s")
    print(f"waiting for input {clock.waiting_for_input:.2f} s, for output {clock.waiting_for_output:.2f} s")
    print(f"wall time over the model's own: {wall / clock.model:.3f}")


def profile(registry: Path, args: Any) -> None:
    """Seconds and floating-point operations of each step of one picture of 512 x 512 output pixels."""
    from torch.utils.flop_counter import FlopCounterMode

    engine = open_engine("ours", registry, args.batches[0], args)
    net = engine.restorer
    batch = args.batches[0]
    (key,) = net.mixture.weights
    x = torch.rand(batch, 3, 512, 512, device=net.device) * 2 - 1
    total = 0.0
    rows = []
    with torch.inference_mode():
        steps = [("encoder, wide", net.encoder()[0].run), ("encoder, deep", net.encoder()[1].run)]
        steps += [("UNet", lambda z: net.predict_pass(key, z))]
        steps += [("decoder, deep", net.decoder[0].run), ("decoder, wide", net.decoder[1].run)]
        for name, run in steps:
            with FlopCounterMode(display=False) as counter:
                result = run(x)
            seconds = min(_timed(lambda run=run, x=x: run(x), net.device) for _ in range(args.runs))
            rows.append((name, seconds, counter.get_total_flops()))
            total += seconds
            x = result
    for name, seconds, flops in rows:
        rate = flops / seconds / 1e12
        print(f"{name:14} {seconds / batch:8.4f} s {seconds / total:5.1%} {flops / batch / 1e12:6.3f} TFLOP {rate:7.2f} TFLOP/s")
    flops = sum(row[2] for row in rows)
    print(f"{'all':14} {total / batch:8.4f} s        {flops / batch / 1e12:6.3f} TFLOP {flops / total / 1e12:7.2f} TFLOP/s")


def _timed(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
