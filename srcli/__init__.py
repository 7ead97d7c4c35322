"""srcli: upscale photos in batches with one-step diffusion super-resolution.

From Python, `load` gives a model that is called with pictures. Nothing heavy is imported before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from srcli.errors import ImageError, ModelError, OutOfMemoryError, SrcliError, UsageError

__version__ = "0.1.0"
__all__ = ["ImageError", "ModelError", "OutOfMemoryError", "SrcliError", "Upscaler", "UsageError", "load"]

if TYPE_CHECKING:
    from srcli.python import Upscaler, load
else:

    def __getattr__(name: str) -> Any:
        if name not in ("Upscaler", "load"):
            raise AttributeError(f"module `srcli` has no attribute `{name}`")
        from srcli import python

        return getattr(python, name)
