"""A pair of models against its parents: time, memory, and passes of a sweep.

    python benchmarks/pair.py                        # the row `photo`
    python benchmarks/pair.py --model one+other --outputs 1 4

Time is the median of rounds, in which the parents and the pair restore the same picture in turn. Memory is of processes of their
own, each with one model and one picture.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from measuring import alone, host_gb, timed

ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="photo", help="as of `srcli upscale` (%(default)s)")
    parser.add_argument("--outputs", type=float, nargs="+", default=[1.0], help="megapixels (%(default)s)")
    parser.add_argument("--device", default="auto", help="as of `srcli upscale` (%(default)s)")
    parser.add_argument("--dtype", default="auto", help="as of `srcli upscale` (%(default)s)")
    args = parser.parse_args()
    for megapixels in args.outputs:
        print(alone(speed, args.model, args.device, args.dtype, megapixels), flush=True)
        both, pixel, semantic = (
            alone(peak, args.model, args.device, args.dtype, megapixels, which) for which in (None, "pixel", "semantic")
        )
        shares = f"{both / (pixel + semantic):.2f} of their sum, {both / max(pixel, semantic):.2f} of the larger"
        print(f"{megapixels:g} MP, host memory: {both:.2f} GB beside {pixel:.2f} and {semantic:.2f}: {shares}", flush=True)


def engines(model: str, device: str, dtype: str, only: str | None = None):  # type: ignore[no-untyped-def]
    """Name -> engine, of the pair and its parents, or of one of them."""
    from srcli.config import UpscaleConfig
    from srcli.opening import model_of, open_engine

    config = UpscaleConfig(("-",), Path(), model=model, device=device, dtype=dtype)
    spec = model_of(config)
    specs = {"pair": spec, **spec.parents}
    wanted = specs if only is None else {only: specs[only]}
    return {name: open_engine(each, config, [each.settings]) for name, each in wanted.items()}


def picture(megapixels: float, scale: int):  # type: ignore[no-untyped-def]
    import numpy as np

    from srcli.images.canvas import Canvas

    side = round((megapixels * 1e6) ** 0.5 / scale)
    return Canvas(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8), scale)


def speed(model: str, device: str, dtype: str, megapixels: float) -> str:
    loaded = engines(model, device, dtype)
    canvases = {name: picture(megapixels, engine.restorer.native_scale) for name, engine in loaded.items()}

    def seconds(name: str) -> float:
        return timed(lambda: loaded[name].restore([canvases[name]]))[0]

    rounds = [{name: seconds(name) for name in loaded} for _ in range(ROUNDS + 1)][1:]  # the first pays for set-up
    ratio = statistics.median(each["pair"] / (each["pixel"] + each["semantic"]) for each in rounds)
    means = ", ".join(f"{name} {statistics.median(each[name] for each in rounds):.2f} s" for name in loaded)
    return f"{model}, {megapixels:g} MP: {means}; the pair takes {ratio:.3f} of its parents' sum"


def peak(model: str, device: str, dtype: str, megapixels: float, which: str | None) -> float:
    (engine,) = engines(model, device, dtype, which or "pair").values()
    engine.restore([picture(megapixels, engine.restorer.native_scale)])
    return host_gb()


if __name__ == "__main__":
    main()
