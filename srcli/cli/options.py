"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MODEL = "Model"
SIZE = "Size"
WORK = "Memory and speed"
FILES = "Files"
REPORT = "Reporting"

ModelsFile = Annotated[
    Path | None,
    typer.Option(
        "--models-file",
        help="A models.toml that is laid over the packaged one and your own.",
        rich_help_panel=MODEL,
        metavar="FILE",
    ),
]
Device = Annotated[
    str,
    typer.Option(help="Where to compute: auto, cpu, mps, cuda, or one GPU as cuda:1.", rich_help_panel=WORK, metavar="DEVICE"),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="Precision of the networks: auto, fp32, fp16, bf16. auto takes bf16 where the hardware multiplies it faster.",
        rich_help_panel=WORK,
        metavar="DTYPE",
    ),
]
