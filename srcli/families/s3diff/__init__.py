"""S3Diff: one step, with weights that an estimate of the picture's degradation makes, and classifier-free guidance.

Source: Zhang et al., "Degradation-Guided One-Step Image Super-Resolution with Diffusion Priors", 2024.
"""

from __future__ import annotations

from srcli.protocol import Dial, Family, Import, RowKey, Slot

SEMANTIC, ESTIMATOR = "semantic", "estimator"

POSITIVE = "A high-resolution, 8K, ultra-realistic image with sharp focus, vibrant colors, and natural lighting."
NEGATIVE = "oil painting, cartoon, blur, dirty, messy, low quality, deformation, low resolution, oversmooth"
"""The prompts of the authors' code; their paper quotes another positive one."""

FAMILY = Family(
    title="S3Diff",
    dials=(
        Dial("guidance_scale", "w", "guidance by the prompts: 1 is the most faithful, and one pass", 1.07, 0, usual=(0.9, 1.3)),
        Dial(
            "blur", "d_blur", "how blurred the input is said to be: the more, the more is sharpened", None, 0, 1, finder=ESTIMATOR
        ),
        Dial(
            "noise", "d_noise", "how noisy the input is said to be: the more, the more is smoothed", None, 0, 1, finder=ESTIMATOR
        ),
    ),
    adapters=(
        Slot(SEMANTIC, "the adapter of encoder and UNet, whose weights the two scores of a picture make"),
        Slot(ESTIMATOR, "the estimator of these scores; not needed where `--blur` and `--noise` are given", required=False),
    ),
    keys=(
        RowKey("prompts.positive", "what guidance leads to", POSITIVE, prompt=True),
        RowKey("prompts.negative", "what guidance leads away from", NEGATIVE, prompt=True),
        RowKey("enlargement", "how the input is enlarged before it is encoded", "bilinear", choices=("bilinear", "bicubic")),
    ),
    defaults={"color_fix": "wavelet"},
    imports=Import(
        files=("s3diff.pkl", "de_net.pth"),
        about="S3Diff's own checkpoints, s3diff.pkl and de_net.pth together; their base is SD-Turbo.",
        base_files=("unet/config.json", "vae/config.json"),
        row={
            "description": "S3Diff, imported",
            "native_scale": 4,
            "prompts": {"positive": POSITIVE, "negative": NEGATIVE},
            "enlargement": "bilinear",
            "tile": 768,
            "overlap": 256,
            "min_side": 0,
            "color_fix": "wavelet",
        },
    ),
)
