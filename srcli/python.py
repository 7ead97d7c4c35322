"""srcli from Python: a model is loaded once and called with pictures that are in memory.

    import srcli

    up = srcli.load("light", lambda_semantic=0.5)
    larger = up(picture)

It goes the way of `srcli upscale`, with the same names of settings, the same errors, and the same pixels, bit for bit.
"""

from __future__ import annotations

import gc
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from srcli.config import UpscaleConfig
from srcli.config.upscale import DEFAULT_MODEL
from srcli.errors import ImageError
from srcli.opening import check_dials, complete, model_of, open_engine, output_size
from srcli.protocol.restoring import Settings

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import Image

    from srcli.engine.mix import MixingEngine
    from srcli.images.canvas import Canvas
    from srcli.images.codec import Picture
    from srcli.images.levels import Levels

Pixels = TypeVar("Pixels", "Image.Image", "npt.NDArray[Any]")
"""A picture of Pillow, or an array."""


def load(
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    *,
    models_file: str | os.PathLike[str] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    tile: int | None = None,
    overlap: int | None = None,
    batch: int | None = None,
    color_fix: str | None = None,
    **dials_and_adapters: float | str | os.PathLike[str],
) -> Upscaler:
    """Load a model; each setting is the option of `srcli upscale` with that name.

    Args:
        model: a name from `srcli models list`, or whatever else `--model` takes, such as the folder of a training run.
        models_file: a models.toml laid over all others.
        device: where to compute: `auto`, `cpu`, `mps`, `cuda`, `cuda:1`.
        dtype: precision of the networks: `auto`, `fp32`, `fp16`, `bf16`. Pictures are of any type whatever this is.
        tile: side of a tile in output pixels.
        overlap: of tiles, in output pixels.
        batch: tiles at once.
        color_fix: `adain`, `wavelet` or `none`; the model's own if not given.
        **dials_and_adapters: numbers for the model's dials, as `lambda_semantic=0.5`, and paths of adapters in place of its
            own, as `pixel="runs/x"`.

    Raises:
        UsageError: settings that cannot be, or that this model has not.
        ModelError: an unknown model, or files that are missing or damaged.
    """
    adapters = {name: Path(value) for name, value in dials_and_adapters.items() if isinstance(value, (str, os.PathLike))}
    config = UpscaleConfig(
        inputs=("a picture",),
        output=Path(),
        model=os.fspath(model),
        models_file=None if models_file is None else Path(models_file),
        adapters=adapters,
        dials={name: value for name, value in dials_and_adapters.items() if not isinstance(value, (str, os.PathLike))},
        tile=tile,
        overlap=overlap,
        batch=batch,
        device=device,
        dtype=dtype,
        color_fix=color_fix,
    )
    return Upscaler(config)


class Upscaler:
    """A loaded model: call it with pictures. Made by `load`; calls from several threads wait for each other.

    Attributes:
        model: its name.
        dials: where they stand in calls that say nothing else; what is found for each picture is not among them.
    """

    def __init__(self, config: UpscaleConfig) -> None:
        self._config, self._spec = config, model_of(config)
        self.model, self.dials = self._spec.name, complete(self._spec, config.dials)
        self._lock = threading.Lock()
        self._loaded: tuple[Settings, ...] = ()
        self._engine: MixingEngine | None = self._open(self.dials)

    def __repr__(self) -> str:
        return f"<srcli.Upscaler {self.model}: {', '.join(f'{name} {value:g}' for name, value in self.dials.items())}>"

    def __call__(
        self,
        picture: Pixels,
        *,
        scale: float | None = None,
        width: int | None = None,
        height: int | None = None,
        long_side: int | None = None,
        **dials: float,
    ) -> Pixels:
        """Upscale a picture.

        Args:
            picture: a picture of Pillow; or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), gray, RGB or RGBA, of uint8,
                uint16, or floats in [0, 1], which are worked on at 16 bits.
            scale: output sides over input sides.
            width: of the output in pixels; with `height`, the largest size that fits.
            height: of the output in pixels.
            long_side: of the output in pixels. Where no size is given it is that of `srcli upscale`.
            **dials: laid over those of `load`, for this call. Where the networks for them are not there, they are loaded now.

        Returns:
            the same kind of picture: an array of the same dtype and number of axes; Pillow's mode, but that palettes and
            other colours than RGB become RGB. Alpha is kept, and Pillow's `info`: the pixels are not turned by its EXIF.

        Raises:
            UsageError: a size or dials that cannot be.
            ImageError: no picture, or one that cannot be restored.
            OutOfMemoryError: not even the smallest tile fits.
        """
        sized = replace(self._config, scale=scale, width=width, height=height, long_side=long_side)
        check_dials(self._spec, dials)
        source = _read(picture)
        size = output_size(sized, self._spec).of(source.width, source.height)
        return cast("Pixels", _like(picture, self._restored(source, size, {**self.dials, **dials})))

    def _restored(self, source: Picture, size: tuple[int, int], settings: Settings) -> Picture:
        from srcli.engine.framing import finish, prepare_canvas
        from srcli.images.color import reads_once

        with self._lock:
            engine = self._engine or self._open(settings)
            net = engine.restorer
            canvas = prepare_canvas(source, net.native_scale, net.min_side, net.enlargement)
            if not self._can(engine, settings, canvas):
                del engine, net
                engine = self._open(settings)
            engine.settings = settings
            fix = self._config.color_fix or self._spec.color_fix
            if not reads_once(fix):
                return finish(source, engine.restore([canvas])[0], canvas, size, fix)
            (mixture,) = engine.mix([canvas])
            return engine.restored(canvas, mixture, lambda rows: finish(source, rows, canvas, size, fix))

    def _can(self, engine: MixingEngine, settings: Settings, canvas: Canvas) -> bool:
        """Whether the settings need only such work on the picture as the engine was loaded for."""
        if engine.restorer.any_settings or settings in self._loaded:
            return True
        mixtures = []
        for engine.settings in (*self._loaded, settings):
            mixtures += engine.mix([canvas])
        *known, asked = mixtures
        passes = {key for mixture in known for key in mixture.weights}
        return asked.encoding in {mixture.encoding for mixture in known} and passes.issuperset(asked.weights)

    def _open(self, settings: Settings) -> MixingEngine:
        """Load the model for these settings and those of `load`, and nothing else that a call has asked for."""
        self._engine = None
        gc.collect()  # there may be no room for both
        self._loaded = (settings, self.dials)
        self._engine = open_engine(self._spec, self._config, self._loaded)
        return self._engine


# Between a user's pictures and ours ----------------------------------------------------------------------------------


def _read(picture: Any) -> Picture:
    """Raises: ImageError: it is no picture that can be restored."""
    import numpy as np
    from PIL import Image

    from srcli.images.codec import Picture
    from srcli.images.reader import levels_of

    if isinstance(picture, Image.Image):
        levels, profile = levels_of(picture)
        return Picture(levels, icc_profile=profile)
    if isinstance(picture, np.ndarray):
        return Picture(_levels(picture))
    hint = "open a file with `PIL.Image.open`; a tensor has `.numpy()`"
    raise ImageError(f"a picture of Pillow or a numpy array is needed, not `{type(picture).__name__}`", hint)


def _levels(array: npt.NDArray[Any]) -> Levels:
    """(H, W, C), uint8 or uint16."""
    import numpy as np

    from srcli.images.levels import to_levels

    values = array[..., np.newaxis] if array.ndim == 2 else array
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4) or not values.size:
        hint = "it is to be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), the channels last"
        raise ImageError(f"an array of shape {array.shape} is no picture", hint)
    if values.dtype.kind == "f":
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):
            message = f"an array of floats is to be from 0 to 1, and this one is from {low:.6g} to {high:.6g}"
            raise ImageError(message, "scale or clip it, or give uint8 or uint16")
        return to_levels(values.astype(np.float32), 16)
    if values.dtype.kind != "u" or values.dtype.itemsize > 2:
        raise ImageError(f"an array of {values.dtype} is no picture", "it is to be of uint8, uint16, or floats from 0 to 1")
    return np.ascontiguousarray(values, f"u{values.dtype.itemsize}")


def _like(given: Any, result: Picture) -> Any:
    """The result as what was given."""
    import numpy as np
    from PIL import Image

    from srcli.images.levels import to_floats

    levels = result.levels
    if isinstance(given, np.ndarray):
        values = to_floats(levels) if given.dtype.kind == "f" else levels
        return values.reshape(*levels.shape[:2], *given.shape[2:]).astype(given.dtype, copy=False)
    image = Image.fromarray(levels if levels.shape[2] > 1 else levels[..., 0])
    image.info = {key: value for key, value in given.info.items() if key not in ("transparency", "icc_profile")}
    if result.icc_profile is not None:
        image.info["icc_profile"] = result.icc_profile
    return image
