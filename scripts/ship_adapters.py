"""Adapters of a run as they ship with srcli: in halves, with the base's name in the package, the semantic one on that pixel one.

    python scripts/ship_adapters.py runs/pixel runs/semantic srcli/builtin/light

Prints the sums that belong into models.toml.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pixel", type=Path, help="the run of the pixel adapter")
    parser.add_argument("semantic", type=Path, help="that of the semantic one")
    parser.add_argument("model", type=Path, help="the built-in model's folder, which holds its base")
    args = parser.parse_args()
    import torch

    from srcli.networks.saved_adapters import load_adapter, save_adapter
    from srcli.store.adapter_files import find_adapter
    from srcli.store.weights import sha256_of

    base = args.model.name + "/network.safetensors" * (args.model / "network.safetensors").is_file()
    below = ""
    for stage, run in (("pixel", args.pixel), ("semantic", args.semantic)):
        adapter = load_adapter(find_adapter(run, stage), stage)
        info = replace(adapter.info, base=base, on_sha256=below)
        path = save_adapter(replace(adapter, info=info), args.model / stage, torch.float16)
        for file in path.parent.iterdir():
            file.chmod(0o644)
        below = sha256_of(path)
        print(below, path)


if __name__ == "__main__":
    main()
