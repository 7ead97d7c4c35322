"""A semantic adapter that takes a pixel adapter back: a start for training where the base itself looks best.

    python scripts/undo_adapter.py runs/pixel -o runs/start
    srcli train-semantic --pixel runs/pixel --start-from runs/start …

At (1, 1) the model is its base again, and training goes on from there; between λ_sem 0 and 1 it goes from one to the other.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pixel", type=Path, help="the pixel adapter, or the folder of its run")
    parser.add_argument("-o", "--output", type=Path, required=True, help="gets semantic/")
    args = parser.parse_args()
    from srcli.networks.adapters import Adapter
    from srcli.networks.saved_adapters import load_adapter, save_adapter
    from srcli.store.adapter_files import find_adapter

    adapter = load_adapter(find_adapter(args.pixel, "pixel"), "pixel")
    tensors = {key: -value if key.endswith("lora_B.weight") else value for key, value in adapter.tensors.items()}
    start = Adapter("semantic", tensors, replace(adapter.info, stage="semantic", steps=0))
    print(save_adapter(start, args.output / "semantic"))


if __name__ == "__main__":
    main()
