"""Pretrain the base of the built-in model `light`: a small network learns the pictures of a large one.

    python scripts/make_crops.py ../shared/photos/train bank --count 1500 --mild 0.7
    srcli upscale bank/lq -o bank/teacher --model realesrgan-x4plus --format png
    python scripts/pretrain_light.py bank/teacher,lq=bank/lq -o network.safetensors --recipe scripts/builtin/light.toml

Starts: `compact`, the light network of Real-ESRGAN for drawings, deepened; `blocks`, Real-ESRGAN x4plus cut to its first blocks;
`chance`, the former's architecture with chance weights. The loss is ℓ1 to the large network's picture and a distance of features
(EfficientNet-Lite0). The schedule follows the clock where `--minutes`
says so. Prints the losses every 50 steps, and saves the average of the weights in halves, as a file that spandrel recognises.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretraining import follow, parsed, set_rate

if TYPE_CHECKING:
    from torch import nn


def make_network(start: str, blocks: int) -> nn.Module:
    """The network to train, in the layout of its architecture's usual files."""
    if start == "chance":
        return compact()
    return first_blocks(blocks) if start == "blocks" else deepened()


def compact() -> Any:
    """A Compact of twice animevideov3's depth, with chance weights."""
    from srcli.families.network.compact import Compact

    return Compact(convolutions=34)


def deepened() -> nn.Module:
    """Real-ESRGAN animevideov3, twice as deep by layers that change nothing yet: the same pictures."""
    import torch
    from torch import nn

    network, known = compact(), usual("realesr-animevideov3").body
    pairs = [known[i : i + 2] for i in range(0, len(known) - 1, 2)]  # a convolution and its PReLU
    with torch.no_grad():
        for number, (convolution, slopes) in enumerate(pairs):
            place = 0 if number == 0 else 4 * number - 2  # the first one takes pictures, and stands alone
            network.body[place].load_state_dict(convolution.state_dict())
            network.body[place + 1].load_state_dict(slopes.state_dict())
            if number:
                nn.init.dirac_(network.body[place + 2].weight)
                nn.init.zeros_(network.body[place + 2].bias)
                nn.init.ones_(network.body[place + 3].weight)
        network.body[-1].load_state_dict(known[-1].state_dict())
    return network


def first_blocks(count: int) -> nn.Module:
    """Real-ESRGAN x4plus with its first blocks alone."""
    from torch import nn

    network = usual("realesrgan-x4plus")
    body = network.model[1].sub
    network.model[1].sub = nn.Sequential(*list(body)[:count], body[-1])
    return network


def usual(model: str) -> Any:
    """The network of a row."""
    from srcli.families.network.file import take
    from srcli.rows.lookup import find_model
    from srcli.store.weights import base_file

    return take(base_file(find_model(model))).model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="sources of pairs as `--data` of `srcli train-pixel`: TEACHER,lq=LQ")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the network's file")
    parser.add_argument("--start", choices=("compact", "blocks", "chance"), default="compact", help="(%(default)s)")
    parser.add_argument("--blocks", type=int, default=5, help="of x4plus that are kept (%(default)s)")
    parser.add_argument("--from", dest="before", type=Path, help="begin with the weights of this file, of the same start")
    parser.add_argument("--features", type=float, default=0.1, help="weight of the distance of features beside ℓ1 (%(default)s)")
    pretrain(parsed(parser, steps=3000, batch=8, crop=192))


def pretrain(args: argparse.Namespace) -> None:
    """Make the network, from the pairs to its file."""
    import torch
    from safetensors.torch import load_file

    from srcli.memory import keep_large_blocks
    from srcli.networks.device import bf16_pays
    from srcli.networks.features import efficientnet_lite, feature_distance
    from srcli.training.data.crops import CropSettings, StepOrder, TrainingCrops, finish, make_loader
    from srcli.training.data.sources import find_sources

    keep_large_blocks()
    torch.manual_seed(args.seed)
    cpu = torch.device("cpu")
    sources, _ = find_sources(args.data, args.crop, 4, raw=True)
    data = TrainingCrops(sources, CropSettings(args.crop, seed=args.seed, raw=True))
    loader = make_loader(data, StepOrder(0, args.steps, args.batch), workers=1, pinned=False)
    network = make_network(args.start, args.blocks).float().train().requires_grad_(True).to(memory_format=torch.channels_last)
    if args.before:
        network.load_state_dict(load_file(args.before))
    weights = list(network.parameters())
    average = [weight.detach().clone() for weight in weights]
    optimiser = torch.optim.AdamW(weights, lr=args.lr, weight_decay=0, betas=(0.9, 0.99))
    judge = efficientnet_lite("efficientnet-lite0", cpu, "`--features`") if args.features else None

    start, done, mean = time.monotonic(), 0, [0.0, 0.0]
    for step, samples in enumerate(loader):
        batch = finish(samples, cpu)
        progress = max(step / args.steps, (time.monotonic() - start) / (60 * args.minutes))
        if progress >= 1:
            break
        set_rate(optimiser, args.lr, step, 100, progress)
        lq, hq = (batch.lq + 1) / 2, (batch.hq + 1) / 2
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16_pays(cpu)):
            sr = network(lq.contiguous(memory_format=torch.channels_last)).float()
        losses = [(sr - hq).abs().mean()]
        if judge is not None:
            losses.append(feature_distance(judge, sr, hq).mean())
        (losses[0] + args.features * sum(losses[1:])).backward()
        torch.nn.utils.clip_grad_norm_(weights, 0.5)
        optimiser.step()
        optimiser.zero_grad()
        follow(average, weights, step, 0.998)
        done = step + 1
        for place, loss in enumerate(losses):
            mean[place] = loss.item() if step == 0 else mean[place] * 0.98 + loss.item() * 0.02
        if step % 50 == 0:
            pace = (time.monotonic() - start) / done
            print(f"step {step} l1 {mean[0]:.4f} features {mean[1]:.4f} {pace:.3f} s/step", flush=True)
        if step % 500 == 499:
            write(args.output, network, average, done)
    write(args.output, network, average, done)
    print(f"saved `{args.output}` after {done} steps, {(time.monotonic() - start) / 60:.0f} min")


def write(path: Path, network: nn.Module, average: list, steps: int) -> None:
    """The averaged weights, in halves."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    names = [name for name, _ in network.named_parameters()]
    tensors = {name: value.half().contiguous() for name, value in zip(names, average, strict=True)}
    save_file(tensors, path, {"pretraining_steps": str(steps)})


if __name__ == "__main__":
    main()
