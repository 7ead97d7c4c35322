"""Memory and time of a training step at the full size of Stable Diffusion 2.1, ours against the straightforward way.

    python benchmarks/training.py --folder /tmp/full-size --batch 1 2

Networks have random weights (speed and memory do not depend on the values). Each case runs in a process of its own, which
trains the semantic stage (squared error and score distillation, LPIPS off) for two steps. Prints the time of the second and the
process's peak memory (on a GPU: that torch had allocated there). Takes about five minutes a batch on two cores with bf16.

    plain   as the reference code computes: weights in float32 under autocast, a second UNet as teacher, one graph from the UNet
            through the decoder to the loss for the whole batch
    ours    `srcli train-semantic` as it is: frozen weights in the run's precision, the UNet without its adapters as teacher, the
            decoder differentiated a picture at a time
    saving  ours with `--gradient-checkpointing`
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from full_size import make_model
from measuring import alone, device_gb, make_photos, timed

if TYPE_CHECKING:
    import torch

    from srcli.config.training import TrainConfig
    from srcli.training.data.crops import Batch
    from srcli.training.setup import Setup

CASES = ("plain", "ours", "saving")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="crops a step (%(default)s)")
    parser.add_argument("--crop", type=int, default=512, help="side of the crops, in pixels (%(default)s)")
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES, help="see above (%(default)s)")
    parser.add_argument("--device", default="auto", help="as of `srcli train-semantic` (%(default)s)")
    parser.add_argument("--folder", type=Path, help="keep the random networks here; see full_size.py")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        registry = alone(make_model, args.folder or Path(temporary))
        photos = make_photos(Path(temporary) / "photos", 1, (args.crop, args.crop))
        for batch in args.batch:
            compare(registry, photos, batch, args)


def compare(registry: Path, photos: Path, batch: int, args: argparse.Namespace) -> None:
    results: dict[str, tuple[float, float]] = {}
    for case in args.cases:
        try:
            results[case] = alone(run_case, case, registry, photos, batch, args)
        except (RuntimeError, MemoryError) as error:  # such as too little memory, or a process that was ended for it
            print(f"batch {batch} {case}: failed: {error}", flush=True)
            continue
        seconds, gigabytes = results[case]
        line = f"batch {batch} {case}: {gigabytes:.1f} GB, {seconds:.1f} s a step"
        if "plain" in results:
            duration, memory = (one / other for one, other in zip(results[case], results["plain"], strict=True))
            line += f"; {memory:.2f} of plain's memory, {duration:.2f} of its time"
        print(line, flush=True)


def run_case(case: str, registry: Path, photos: Path, batch: int, args: argparse.Namespace) -> tuple[float, float]:
    """Two steps in this process: seconds of the second, and the peak memory in gigabytes."""
    from srcli.rows.lookup import find_model
    from srcli.store.weights import base_folder
    from srcli.training.data.crops import finish
    from srcli.training.setup import Setup

    base = base_folder(find_model("random", registry))
    setup = Setup(make_config(case, registry, photos, batch, args), base)
    device = setup.accelerator.device
    backward = plain(setup, base) if case == "plain" else ours(setup)

    def step(number: int) -> None:
        backward(finish([setup.crops[number * batch + index] for index in range(batch)], device))
        setup.optimiser.step()
        setup.optimiser.zero_grad()

    seconds = [timed(partial(step, number))[0] for number in range(2)]
    return seconds[1], device_gb(device.type)


def make_config(case: str, registry: Path, photos: Path, batch: int, args: argparse.Namespace) -> TrainConfig:
    from srcli.config.recipe_file import build_recipe
    from srcli.config.training import TrainConfig
    from srcli.opening import complete
    from srcli.rows.lookup import find_model
    from srcli.store.weights import adapter_path

    spec = find_model("random", registry)
    recipe = build_recipe(spec.family, "semantic", [{"batch": batch, "crop": args.crop, "steps": 2, "losses": {"lpips": 0.0}}])
    return TrainConfig(
        spec.family, "semantic", (str(photos),), photos / "run", recipe, told={**spec.own, **complete(spec, {})},
        adapters={"pixel": adapter_path(spec, "pixel")}, val="none", workers=0, device=args.device,
        gradient_checkpointing=case == "saving",
    )  # fmt: skip


def ours(setup: Setup) -> Callable[[Batch], None]:
    """As `srcli.training.loop.Run` takes a step."""

    def backward(batch: Batch) -> None:
        z_sr = setup.trainee.forward(setup.trainee.prepare(batch))
        gradient, _, _ = setup.objective.gradient(z_sr, batch, 0)
        setup.accelerator.backward((z_sr * gradient).sum())

    return backward


def plain(setup: Setup, base: Path) -> Callable[[Batch], None]:
    """The same losses as one graph, with a teacher of its own and float32 weights."""
    import torch

    from srcli.families.pisasr.csd import csd, draw_timesteps_and_noise
    from srcli.networks.backbone import PromptEncoder, load_alphas, load_unet

    trainee, device = setup.trainee, setup.accelerator.device
    dtype = next(trainee.frozen[0].parameters()).dtype
    for network in (trainee.network, *trainee.frozen):
        network.to(torch.float32)
    teacher = load_unet(base).to(device, dtype)
    embed, alphas = PromptEncoder(base, device), load_alphas(base).to(device)

    def ask(noisy: torch.Tensor, timestep: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        with trainee.autocast():
            answer: torch.Tensor = teacher(noisy, timestep, encoder_hidden_states=embedding).sample
        return answer.float()

    def backward(batch: Batch) -> None:
        z_sr = trainee.forward(trainee.prepare(batch))
        timestep, noise = draw_timesteps_and_noise(batch.indices, z_sr.shape[1:], device=device)
        positive, negative = (embed([name] * len(z_sr)) for name in ("positive", "negative"))
        loss = (trainee.decode(z_sr) - batch.hq).square().mean()
        (loss + csd(z_sr, ask, positive, negative, timestep, noise, alphas, 7.5)).backward()

    return backward


if __name__ == "__main__":
    main()
