"""The settings of each command, checked whole: every fault is told at once, before any work.

This is the last place where a command-line flag exists. Modules of this package import no heavy library; `training` and
`degradation` need pydantic, so they are imported by their own names.
"""

from srcli.config._checks import DTYPE_NAMES
from srcli.config.upscale import COLOR_FIX_NAMES, FORMAT_NAMES, MAX_SCALE, UpscaleConfig

__all__ = ["COLOR_FIX_NAMES", "DTYPE_NAMES", "FORMAT_NAMES", "MAX_SCALE", "UpscaleConfig"]
