"""`srcli train-semantic`: a semantic adapter on top of a pixel adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from srcli.cli import training_options as o
from srcli.cli.options import MODEL, Device, Dtype, ModelsFile


def train_semantic(
    data: o.Data = None,
    output: o.Output = None,
    pixel: Annotated[
        Path | None,
        typer.Option(
            "--pixel",
            help="The pixel adapter: output of `srcli train-pixel`, a checkpoint of it, or the file. It stays as it is.",
            metavar="DIR",
            show_default=False,
            rich_help_panel=MODEL,
        ),
    ] = None,
    model: o.Model = "tiny",
    base: o.Base = None,
    start_from: o.StartFrom = None,
    models_file: ModelsFile = None,
    recipe: o.RecipeFile = None,
    show_recipe: o.ShowRecipe = False,
    steps: o.Steps = None,
    batch: o.BatchSize = None,
    accumulate: o.Accumulate = None,
    crop: o.Crop = None,
    rank: o.Rank = None,
    alpha: o.Alpha = None,
    targets: o.Targets = None,
    learning_rate: o.LearningRate = None,
    schedule: o.Schedule = None,
    warmup: o.Warmup = None,
    clip_norm: o.ClipNorm = None,
    ema: o.Ema = None,
    orthogonal: o.Orthogonal = None,
    seed: o.Seed = 0,
    l2: o.L2 = None,
    l1: o.L1 = None,
    psnr: o.PsnrWeight = None,
    ssim: o.SsimWeight = None,
    lpips: o.Lpips = None,
    csd: o.CsdWeight = None,
    gan: o.GanWeight = None,
    matching: o.MatchingWeight = None,
    frequency: o.FrequencyWeight = None,
    grid: o.GridWeight = None,
    guidance_scale: o.GuidanceScale = None,
    step_range: o.StepRange = None,
    null_prompt_ratio: o.NullPromptRatio = None,
    prompt: o.Prompt = None,
    negative_prompt: o.NegativePrompt = None,
    captions: o.Captions = "",
    device: Device = "auto",
    dtype: Dtype = "auto",
    workers: o.Workers = 1,
    gradient_checkpointing: o.GradientCheckpointing = False,
    decode_chunk: o.DecodeChunk = 0,
    resume: o.Resume = False,
    save_every: o.SaveEvery = 500,
    keep: o.Keep = 3,
    licence: o.Licence = "",
    val: o.Val = "",
    val_images: o.ValImages = 8,
    val_every: o.ValEvery = 500,
    log_every: o.LogEvery = 50,
    preview: o.Preview = 0,
) -> None:
    """Train a semantic adapter on a frozen pixel adapter: PiSA-SR's second stage.

    Squared error, LPIPS and score distillation by the base (all weights are
    options). Without LPIPS weights, train with `--lpips 0` and the adversarial
    or the frequency loss.

    Example: srcli train-semantic --data ~/photos --pixel runs/pixel -o runs/semantic
    """
    o.run_training("semantic", locals())
