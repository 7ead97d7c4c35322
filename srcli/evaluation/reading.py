"""Files to what metrics compare: 8-bit RGB."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from srcli.errors import ImageError
from srcli.images.codec import Picture, decode, encode
from srcli.images.resize import target_size

U8 = npt.NDArray[np.uint8]

log = logging.getLogger("srcli")


class Reader:
    """Reads pictures as metrics want them; says once, not for each file, what it had to change."""

    def __init__(self) -> None:
        self._noted: set[str] = set()

    def read(self, path: Path) -> U8:
        """Decode a picture to 8-bit RGB, upright, values as stored (no colour profile is applied).

        16 bits are rounded to the nearest of 256 levels, gray becomes three equal channels, of several frames the first
        counts. Alpha is left out where the picture is opaque.

        Returns:
            (H, W, 3), RGB, uint8.

        Raises:
            ImageError: it cannot be decoded, or is transparent somewhere.
        """
        picture = decode(path)
        if not picture.opaque:
            raise ImageError(
                f"`{path}` is transparent in places, and no metric says what is behind it",
                "lay the pictures and their references on one colour first",
            )
        if picture.bit_depth > 8 and "16 bits" not in self._noted:
            self._noted.add("16 bits")
            log.warning("`%s` has 16 bits: such pictures are rounded to 8, which all metrics are defined on", path)
        return picture.rgb_u8

    def read_ahead(self, paths: Iterable[Path]) -> Generator[U8 | ImageError, None, None]:
        """Each of `paths` in order, or why it cannot be read; one is decoded while the last is being looked at."""
        with ThreadPoolExecutor(1, "srcli-read") as pool:
            upcoming: Future[U8 | ImageError] | None = None
            for path in paths:
                ready, upcoming = upcoming, pool.submit(self._outcome, path)
                if ready is not None:
                    yield ready.result()
            if upcoming is not None:
                yield upcoming.result()

    def _outcome(self, path: Path) -> U8 | ImageError:
        try:
            return self.read(path)
        except ImageError as fault:
            return fault
        except Exception as fault:  # of a decoder, or no memory: the other pictures go on
            log.debug("unexpected fault with `%s`", path, exc_info=fault)
            reason = f"`{path}` cannot be read: unexpected {type(fault).__name__}: {fault}"
            return ImageError(reason, "run with `--debug` and report this")


def write_enlarged(source: Path, target: Path, filter_name: str, scale: float) -> None:
    """Enlarge a picture by a plain filter, on 8-bit RGB as the papers' bicubic rows are, and write it as PNG.

    Args:
        source: what `Reader.read` can read.
        target: the file to write.
        filter_name: of `BASELINES`.
        scale: output sides over input sides.

    Raises:
        ImageError: it cannot be read or written.
    """
    pixels = Reader().read(source)
    size = target_size(pixels.shape[1], pixels.shape[0], scale=scale)
    enlarged = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling[filter_name.upper()]))
    encode(Picture(enlarged), target, "png", 100)
