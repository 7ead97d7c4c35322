"""The settings of each command, checked whole: every fault is told at once, before any work.

This is the last place where a command-line flag exists. Modules of this package import no heavy library; `training` and
`degradation` need pydantic, so they are imported by their own names.
"""

from srcli.config.upscale import UpscaleConfig

__all__ = ["UpscaleConfig"]
