"""`srcli train-pixel`: a pixel adapter from photos."""

from __future__ import annotations

from srcli.cli import training_options as o
from srcli.cli.options import Device, Dtype, ModelsFile


def train_pixel(
    data: o.Data = None,
    output: o.Output = None,
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
    seed: o.Seed = 0,
    l2: o.L2 = None,
    l1: o.L1 = None,
    psnr: o.PsnrWeight = None,
    ssim: o.SsimWeight = None,
    lpips: o.Lpips = None,
    gan: o.GanWeight = None,
    matching: o.MatchingWeight = None,
    frequency: o.FrequencyWeight = None,
    grid: o.GridWeight = None,
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
    """Train a pixel adapter: PiSA-SR's first stage.

    Photos are degraded as Real-ESRGAN does; the adapter learns to undo it.
    SIGTERM and Ctrl-C save a checkpoint; `--resume` goes on from it. Works
    under `accelerate launch` on several GPUs and nodes.

    Example: srcli train-pixel --data ~/photos -o runs/pixel --steps 2000
    """
    o.run_training("pixel", locals())
