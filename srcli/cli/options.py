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
    typer.Option("--models-file", help="A models.toml laid over all others.", rich_help_panel=MODEL, metavar="FILE"),
]
Device = Annotated[
    str,
    typer.Option(help="Place to compute: auto, cpu, mps, cuda, or cuda:1 for one GPU.", rich_help_panel=WORK, metavar="DEVICE"),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="Precision of the networks: auto, fp32, fp16, bf16. auto takes bf16 where the hardware multiplies it faster.",
        rich_help_panel=WORK,
        metavar="DTYPE",
    ),
]
