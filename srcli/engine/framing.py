"""One picture before and after the network: the canvas that it is given, and the integers that are written.

Both are made where and when they are needed, part by part, so that beside the network's own result nothing of its size is there.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from srcli.engine.forward import whole_rows
from srcli.images.canvas import Canvas
from srcli.images.codec import Header, Picture, depth_for, keeps_alpha
from srcli.images.color import fix_color
from srcli.images.levels import Levels
from srcli.images.rows import Rows, collect, on_white, resized, rows_of
from srcli.images.visible import visible_colors


def prepare_canvas(picture: Picture, native_scale: int, min_side: int, enlargement: str, painted: Levels | None = None) -> Canvas:
    """The input as a model wants it; see `Canvas.framed`.

    Fully transparent pixels have the colour of the nearest that can be seen.

    Args:
        picture: the input.
        native_scale: of the model, as are `min_side` and `enlargement`.
        min_side: input pixels.
        enlargement: `bicubic` or `bilinear`.
        painted: (H, W, 1), its map, if it has one.
    """
    canvas = Canvas(visible_colors(picture)).framed(native_scale, min_side, enlargement)
    if painted is None:
        return canvas
    return replace(canvas, painted=Canvas(painted).framed(1, min_side, "bilinear").values)


def finish(
    picture: Picture, sr: torch.Tensor | Rows, canvas: Canvas, output_size: tuple[int, int], color_fix: str, format: str = "png"
) -> Picture:
    """The picture to write: colours of the input, exact size, the input's own alpha and metadata.

    It is computed in bands of rows: beside `sr` and the result, memory does not grow with its height.

    Args:
        picture: the input.
        sr: (3, H, W), RGB, any float dtype in [-1, 1], on the CPU; or its rows.
        canvas: what the colours are taken from, of the size of `sr`.
        output_size: (width, height).
        color_fix: `adain`, `wavelet` or `none`.
        format: a key of `OUTPUT_FORMATS`: what it cannot hold is not made (8 bits, or laid on white); `png` leaves nothing out.
    """
    restored = whole_rows(sr) if isinstance(sr, torch.Tensor) else sr
    return _collected(picture, fix_color(color_fix, restored, canvas.rows), output_size, format)


def enlarge_plainly(picture: Picture, canvas: Canvas, output_size: tuple[int, int]) -> Picture:
    """What `finish` makes of a model that changes nothing: the input itself, as large as the output.

    Args:
        picture: the input.
        canvas: it, enlarged.
        output_size: (width, height).
    """
    return _collected(picture, canvas.rows, output_size, "png")


def _collected(picture: Picture, color: Rows, output_size: tuple[int, int], format: str) -> Picture:
    """In exact size, with the input's own alpha and metadata, as integers that the format can hold."""
    size = (output_size[1], output_size[0])
    color = resized(color, size)
    alpha = None if picture.alpha_levels is None else resized(rows_of(picture.alpha_levels), size)
    if alpha is not None and not keeps_alpha(format):
        color, alpha = on_white(color, alpha), None
    return replace(picture, levels=collect(color, alpha, gray=picture.gray, depth=depth_for(format, picture.bit_depth)))


def picture_bytes(header: Header) -> int:
    """About the memory that a picture takes while it is read: its pixels, with alpha, and the decoder's own copy."""
    return 2 * 4 * (header.bit_depth // 8) * header.width * header.height


def result_bytes(picture: Picture, held_pixels: int, output_size: tuple[int, int], format: str) -> tuple[int, int]:
    """About the memory that a result takes until it is finished, and then until it is written.

    Until it is finished: the network's floats, of as many pixels as are held at a time, and the integers to write. Then these
    integers, a copy of them where they are stored turned, and the encoder's own copy.
    """
    pixels = output_size[0] * output_size[1]
    levels = pixels * picture.levels.shape[2] * (depth_for(format, picture.bit_depth) // 8)
    turned = levels if picture.orientation != 1 and format != "png" else 0
    return 12 * held_pixels + levels, levels + turned + 4 * pixels
