"""Is it true? Ways of adapting a network to real photos: adapters against training all of it, a part of it, and from nothing.

    python benchmarks/adapting.py --data PHOTOS --pairs PAIRS -o OUT --network craft_x4.pth --network realesr-animevideov3

Calls srcli's own commands: `train-pixel` for each way, `upscale` of PAIRS/lq with each, `eval` against PAIRS/hq. The abstract of
AdaptSR (arXiv 2503.07748) says that adapters do as well as or better than training all weights, with 92 % fewer trained numbers.

    bare      the network as it is
    auto      ranks by importance, with as many numbers as `uniform`
    uniform   the same rank everywhere (--rank; of CRAFT, 8 trains 72 % fewer numbers, 2 trains 93 % fewer)
    full      all weights
    last      the last layers' weights alone, about as many as the adapters have (--last)
    nothing   all weights, from random ones

All ways train for the same steps (--steps) or minutes (--minutes: a short trial tells each one's steps), on photos damaged by
srcli's degradation, of which a half is mild and sharpened as by cameras (--recipe for another). PAIRS is for testing only.
Repeat the command to go on: what is done is not done again. Writes OUT/table.tsv, OUT/table.md and OUT/plot.png.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

RECIPE = "degradation = { mild_probability = 0.5, mild_sharpening = 1.0 }\n"
LAST = {"CRAFT": r"layers\.3\..*|conv_after_body|upsample\..*", "RealESRGAN Compact": r"body\.(30|32|34)"}
WAYS: dict[str, tuple[str, ...]] = {
    "auto": ("--rank", "auto"),
    "uniform": (),
    "full": ("--rank", "full"),
    "last": ("--rank", "full"),
    "nothing": ("--rank", "full"),
}
RATES = {"auto": 5e-4, "uniform": 5e-4, "full": 1e-4, "last": 2e-4, "nothing": 5e-4}
METRICS = ("psnr", "ssim", "features")
TRIAL = (2, 8)
"""Steps of the trial that tells the pace: those before the first are not counted."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", action="append", required=True, help="a network as of `--model`; repeatable")
    parser.add_argument("--data", required=True, help="photos to train on")
    parser.add_argument("--pairs", type=Path, required=True, help="a folder with `lq` and `hq`, for testing")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for all of it")
    parser.add_argument("--steps", type=int, default=2000, help="of each way (%(default)s)")
    parser.add_argument("--minutes", type=float, help="of each way's steps, in place of --steps")
    parser.add_argument("--rank", type=int, default=8, help="of `uniform`, and what `auto` may train (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="crops a step (%(default)s)")
    parser.add_argument("--crop", type=int, default=192, help="side of the crops in pixels (%(default)s)")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="see above (all)")
    parser.add_argument("--lr", action="append", default=[], metavar="WAY=RATE", help=f"another learning rate; {RATES}")
    parser.add_argument("--last", action="append", default=[], metavar="ARCHITECTURE=REGEX", help=f"other layers; {LAST}")
    parser.add_argument("--recipe", type=Path, help="a recipe for all ways, in place of the script's damage")
    parser.add_argument("--device", default="auto", help="as of srcli (%(default)s)")
    parser.add_argument("--dtype", default="auto", help="of training, as of srcli (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare crops (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the training (%(default)s)")
    args = parser.parse_args()
    rates, last = (given | dict(each.split("=", 1) for each in more) for given, more in ((RATES, args.lr), (LAST, args.last)))
    begin(args, rates, last)
    rows = [row for name in args.network for row in compare(Network.of(name, args, last), args, rates)]
    write(rows, args)


def begin(args: argparse.Namespace, *more: Any) -> None:
    """Note what all of it is done with; what was begun otherwise is not gone on with."""
    args.output.mkdir(parents=True, exist_ok=True)
    recipe = args.output / "recipe.toml"
    told = {key: str(value) for key, value in sorted(vars(args).items()) if key not in ("network", "ways", "workers", "output")}
    told |= {"text": args.recipe.read_text() if args.recipe else RECIPE, "more": repr(more)}
    file = args.output / "settings.json"
    if file.exists() and json.loads(file.read_text()) != told:
        sys.exit(f"`{args.output}` was begun with other settings, {file}: give another --output")
    file.write_text(json.dumps(told, indent=2))
    recipe.write_text(told["text"])


@dataclass(frozen=True)
class Network:
    """A network, and a folder for what is made of it."""

    model: str
    title: str
    numbers: int
    budget: int
    """Numbers that the adapter of the same rank everywhere trains."""
    last: str
    folder: Path

    @classmethod
    def of(cls, model: str, args: argparse.Namespace, last: dict[str, str]) -> Network:
        from srcli.families.network.file import read
        from srcli.families.network.layers import layers_of
        from srcli.rows.lookup import find_model
        from srcli.store.weights import base_file

        network = read(base_file(find_model(model, None)))
        title = network.architecture
        folder = args.output / Path(model).stem
        folder.mkdir(exist_ok=True)
        budget = sum(min(args.rank, layer.largest) * layer.cost for layer in layers_of(network.model))
        if not (folder / "nothing.safetensors").exists():
            write_random(network.model, folder / "nothing.safetensors")
        numbers = sum(parameter.numel() for parameter in network.model.parameters())
        return cls(model, title, numbers, budget, last.get(title, ""), folder)

    def for_way(self, way: str) -> str:
        return str(self.folder / "nothing.safetensors") if way == "nothing" else self.model


def write_random(model: nn.Module, file: Path) -> None:
    """The network with first weights as torch draws them, in place of its own; tables that no layer has are drawn small."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    with torch.no_grad():
        layers = [module for module in model.modules() if hasattr(module, "reset_parameters")]
        drawn = {id(parameter) for layer in layers for parameter in layer.parameters(recurse=False)}
        for parameter in model.parameters():
            if id(parameter) not in drawn and parameter.ndim > 1:
                parameter.normal_(std=0.02)
        for layer in layers:
            layer.reset_parameters()
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)


# The ways ------------------------------------------------------------------------------------------------------------


def compare(network: Network, args: argparse.Namespace, rates: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each way, with the metrics."""
    rows = [{"way": "bicubic"}, {"way": "bare"}]
    upscale(network.folder / "bare", args, "--model", network.model)
    for way in args.ways:
        if way == "last" and not network.last:
            print(f"{network.title}: `last` is left out: say which layers these are, `--last '{network.title}=REGEX'`")
            continue
        rows.append({"way": way, **trained(network, way, args, rates[way])})
        run = network.folder / way / "run"
        upscale(network.folder / way, args, "--model", network.for_way(way), "--pixel", run / "pixel")
    folders = [f"{row['way']}={network.folder / row['way'] / 'pictures'}" for row in rows[1:]]
    where = ("--hq", args.pairs / "hq", "--lq", args.pairs / "lq", "--baseline", "bicubic", "--scale", 4)
    measured = json.loads(
        srcli("eval", *folders, *where, "--metrics", ",".join(METRICS), "--device", args.device, "--json").stdout
    )["methods"]
    return [{"network": network.title, "of": network.numbers, **row, **measured[row["way"]]} for row in rows]


def upscale(folder: Path, args: argparse.Namespace, *model: object) -> None:
    folder.mkdir(exist_ok=True)
    srcli("upscale", args.pairs / "lq", "-o", folder / "pictures", *model, "--device", args.device)


def trained(network: Network, way: str, args: argparse.Namespace, rate: object) -> dict[str, Any]:
    """Train one way, or go on with it: trained numbers, steps, minutes."""
    folder = network.folder / way
    folder.mkdir(exist_ok=True)
    done = folder / "trained.json"
    if done.exists():
        return dict(json.loads(done.read_text()))
    options = [*WAYS[way], "--model", network.for_way(way), "--data", args.data, "--recipe", args.output / "recipe.toml"]
    options += ["--batch", args.batch, "--crop", args.crop, "--lr", rate, "--seed", args.seed, "--workers", args.workers]
    options += ["--device", args.device, "--dtype", args.dtype, "--val", "none"]
    more = {"last": ("--targets", network.last), "uniform": ("--rank", args.rank), "auto": ("--budget", network.budget)}
    options += more.get(way, ())
    steps = args.steps if args.minutes is None else steps_in(args.minutes, folder, options)
    clock = folder / "seconds.json"
    before = json.loads(clock.read_text()) if clock.exists() else 0.0
    start = time.perf_counter()
    try:
        told = srcli("train-pixel", *options, "--steps", steps, "-o", folder / "run", "--resume").stderr
    finally:
        clock.write_text(json.dumps(before + time.perf_counter() - start))
    found = re.search(r"training (\d+) numbers", " ".join(told.split()))
    assert found is not None, told
    row = {"trained": int(found[1]), "steps": steps, "minutes": json.loads(clock.read_text()) / 60}
    done.write_text(json.dumps(row))
    return row


def steps_in(minutes: float, folder: Path, options: list[object]) -> int:
    """How many steps a way makes in so many minutes, by a trial; the same when it is asked again."""
    file = folder / "steps.json"
    if not file.exists():
        first, last = TRIAL
        told = srcli("train-pixel", *options, "--steps", last, "-o", folder / "trial", "--resume", "--log-every", 1).stderr
        paces = re.findall(r"step (\d+) of \d+: .*?; ([\d.]+) s a step", " ".join(told.split()))
        seconds = {int(step): int(step) * float(pace) for step, pace in paces}
        file.write_text(json.dumps(max(1, round(60 * minutes * (last - first) / (seconds[last] - seconds[first])))))
    return int(json.loads(file.read_text()))


def srcli(*words: object) -> subprocess.CompletedProcess[str]:
    """A command; what it tells is shown when it is over, and kept."""
    command = [sys.executable, "-m", "srcli", *map(str, words)]
    print("$ srcli", " ".join(command[3:]), flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stderr}\nexit code {done.returncode}")
    return done


# The result ----------------------------------------------------------------------------------------------------------


def write(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    head = ["network", "way", "trained", "share", "steps", "minutes", *METRICS]
    lines = [head, *([cell(row, name) for name in head] for row in rows)]
    (args.output / "table.tsv").write_text("".join("\t".join(line) + "\n" for line in lines))
    lines.insert(1, ["---"] * len(head))
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    equal = f"{args.steps} steps each" if args.minutes is None else f"{args.minutes:g} minutes each"
    about = f"{equal}, batch {args.batch}, crop {args.crop}, `{args.data}`; measured on `{args.pairs}`"
    text = f"{table}\n{about}.\n\n{verdict(rows)}"
    (args.output / "table.md").write_text(text)
    plot(rows, args.output / "plot.png")
    print(f"\n{text}")


def cell(row: dict[str, Any], name: str) -> str:
    if name == "share":
        return f"{100 * row['trained'] / row['of']:.1f} %" if "trained" in row else ""
    digits = {"minutes": 1, "psnr": 2, "ssim": 4, "features": 4}.get(name)
    value = row.get(name, "")
    return f"{value:.{digits}f}" if digits is not None and value != "" else str(value)


def verdict(rows: list[dict[str, Any]]) -> str:
    """What the abstract claims, beside what is seen."""
    ways = {(row["network"], row["way"]): row for row in rows}
    sentences = []
    for (network, way), row in ways.items():
        whole = ways.get((network, "full"))
        if way in ("auto", "uniform") and whole is not None:
            fewer = 100 - 100 * row["trained"] / whole["trained"]
            gaps = ", ".join(f"{name} {row[name] - whole[name]:+.{3 if name == 'psnr' else 4}f}" for name in METRICS)
            sentences.append(f"- {network}, {way}: {fewer:.0f} % fewer trained numbers than all weights; {gaps}.\n")
    return "Claimed: 92 % fewer, at equal or better quality. Seen, against all weights:\n\n" + "".join(sentences)


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    colours = dict(zip(dict.fromkeys(row["network"] for row in rows), ("#4c78a8", "#f58518", "#54a24b", "#e45756"), strict=False))
    for axes, metric in zip(figure.subplots(1, len(METRICS)), METRICS, strict=True):
        for row in rows:
            colour = colours[row["network"]]
            if "trained" in row:
                axes.scatter(row["trained"], row[metric], color=colour)
                axes.annotate(row["way"], (row["trained"], row[metric]), textcoords="offset points", xytext=(4, 4), fontsize=8)
            else:
                label = f"{row['network']}, {row['way']}" if row["way"] == "bare" else None
                axes.axhline(row[metric], color=colour, linestyle="--" if row["way"] == "bare" else ":", linewidth=1, label=label)
        axes.set(xscale="log", xlabel="trained numbers", ylabel=metric)
        axes.xaxis.set_minor_formatter("")
        axes.margins(x=0.2)
        axes.legend(fontsize=7)
    figure.suptitle("Quality against trained numbers; dotted: bicubic; of `features`, less is better", fontsize=9)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
