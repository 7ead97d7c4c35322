"""PiSA-SR at full size: ours against the straightforward pipeline, timed in one run on one machine.

    python benchmarks/speed.py --folder /tmp/full-size                       # 128 -> 512, one picture and eight
    python benchmarks/speed.py --folder /tmp/full-size --sizes 512 --cases plain ours adjustable
    python benchmarks/speed.py --folder /tmp/full-size --profile             # where the time goes, with FLOPs counted

Networks have random weights. Each case runs in a process of its own. Prints the fastest of its runs after the warm-up, and the
most memory that the process had (on a GPU: that torch had allocated there), loading included. Takes about half an hour on two
cores, minutes on a GPU. For a folder end to end see folder.py.

    plain       diffusers' modules as the reference code calls them: encoder, UNet in tiles of 96 cells one by one, decoder;
                float32 on a CPU, float16 on a GPU (no colour fix, no file)
    ours        `srcli upscale` as it is, both dials at 1: one pass
    adjustable  the dials at (0.8, 1.2): two passes
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from full_size import make_model, open_random
from measuring import alone, device_gb, timed

if TYPE_CHECKING:
    import torch

    from srcli.engine.mix import MixingEngine

CASES = ("plain", "ours", "adjustable")
_TILE, _OVERLAP = 96, 32
"""Of PiSA-SR's latent tiles."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep the random networks here; see full_size.py")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128], help="sides of the inputs, in pixels (%(default)s)")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 8], help="pictures at once; inputs above 128 go one by one (%(default)s)"
    )
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES, help="see above (%(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="that count (%(default)s)")
    parser.add_argument("--warm-up", type=int, default=1, help="runs before those that count (%(default)s)")
    parser.add_argument("--device", default="auto", help="as of `srcli upscale` (%(default)s)")
    parser.add_argument("--dtype", default="auto", help="precision, as of `srcli upscale` (%(default)s)")
    parser.add_argument("--profile", action="store_true", help="time each step of one 512x512 output instead")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        registry = alone(make_model, args.folder or Path(temporary))
        if args.profile:
            profile(registry, args)
        else:
            compare(registry, args)


def compare(registry: Path, args: argparse.Namespace) -> None:
    for side in args.sizes:
        for batch in args.batches if side <= 128 else [1]:
            results: dict[str, float] = {}
            for case in args.cases:
                results[case], peak = alone(run_case, case, registry, side, batch, args)
                line = f"{side} -> {4 * side}, batch {batch}, {case}: {results[case] / batch:.3f} s a picture, {peak:.1f} GB"
                if "plain" in results:
                    line += f"; {results['plain'] / results[case]:.2f} times as fast as plain"
                if "ours" in results and case != "ours":
                    line += f"; {results[case] / results['ours']:.2f} of ours' time"
                print(line, flush=True)


def run_case(case: str, registry: Path, side: int, batch: int, args: argparse.Namespace) -> tuple[float, float]:
    """Seconds for `batch` pictures of side x side pixels, and the process's peak memory in gigabytes."""
    import torch

    from srcli.networks.device import choose_device

    pictures = torch.rand(batch, 3, 4 * side, 4 * side) * 2 - 1
    device = choose_device(args.device)
    if case == "plain":
        work = plain(registry.parent, pictures, device)
    else:
        engine = open_case(case, registry, batch, args)

        def work() -> object:
            return engine.restore(list(pictures))

    with torch.inference_mode():
        seconds = [timed(work)[0] for _ in range(args.runs + args.warm_up)]
    return min(seconds[args.warm_up :]), device_gb(device.type)


def open_case(case: str, registry: Path, batch: int, args: argparse.Namespace) -> MixingEngine:
    from srcli.config import UpscaleConfig

    config = UpscaleConfig((".",), Path(), batch=batch, device=args.device, dtype=args.dtype)
    dials = (0.8, 1.2) if case == "adjustable" else (1.0, 1.0)
    return open_random(registry, config, [dials])


def plain(folder: Path, pictures: torch.Tensor, device: torch.device) -> Callable[[], object]:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import load_file

    from srcli.networks.adapters import merge
    from srcli.networks.saved_adapters import load_adapter

    dtype = torch.float32 if device.type == "cpu" else torch.float16
    base = folder / "base"
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet", torch_dtype=torch.float32)
    merge(unet, [load_adapter(folder / stage / "adapter_model.safetensors", stage) for stage in ("pixel", "semantic")])
    unet = unet.to(device, dtype).eval()
    vae = AutoencoderKL.from_pretrained(base, subfolder="vae", torch_dtype=dtype).to(device).eval()
    prompt = load_file(base / "prompt_embeddings.safetensors")["null"][None].to(device, dtype)

    def predict(part: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = unet(part, 1, encoder_hidden_states=prompt.expand(len(part), -1, -1)).sample
        return answer

    def work() -> object:
        latent = vae.encode(pictures.to(device, dtype)).latent_dist.mode() * vae.config.scaling_factor
        restored = latent - in_tiles(predict, latent)
        return vae.decode(restored / vae.config.scaling_factor).sample.float().clamp(-1, 1).cpu()

    return work


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


def profile(registry: Path, args: argparse.Namespace) -> None:
    """Seconds and floating-point operations of each step of one picture of 512 x 512 output pixels."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    batch = args.batches[0]
    engine = open_case("ours", registry, batch, args)
    net = engine.restorer
    x = torch.rand(batch, 3, 512, 512, device=net.device) * 2 - 1
    (mixture,) = engine.mix([x[0]])
    (key,) = mixture.weights
    steps = [(f"encoder, {part}", step.run) for part, step in zip(("wide", "deep"), net.encoder(mixture.encoding), strict=True)]
    steps += [("UNet", lambda z: net.predict_pass(key, z))]
    steps += [(f"decoder, {part}", step.run) for part, step in zip(("deep", "wide"), net.decoder, strict=True)]
    rows = []
    with torch.inference_mode():
        for name, run in steps:
            with FlopCounterMode(display=False) as counter:
                result = run(x)
            seconds = min(timed(partial(run, x))[0] for _ in range(args.runs))
            rows.append((name, seconds / batch, counter.get_total_flops() / batch / 1e12))
            x = result
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    for name, seconds, teraflop in rows:
        share, rate = seconds / rows[-1][1], teraflop / seconds
        print(f"{name:14} {seconds:8.4f} s {share:6.1%} {teraflop:6.3f} TFLOP {rate:7.2f} TFLOP/s")


if __name__ == "__main__":
    main()
