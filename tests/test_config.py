"""Names that stand in several rooms, because the arrows keep the rooms apart, must stay the same."""

from __future__ import annotations

from srcli import config
from srcli.images import color, files, resize
from srcli.rows import spec


def test_every_room_knows_the_same_colour_fixes_formats_and_largest_scale() -> None:
    assert tuple(config.COLOR_FIX_NAMES) == tuple(color.COLOR_FIXES) == tuple(spec.COLOR_FIXES)
    assert set(config.FORMAT_NAMES) == set(files.OUTPUT_FORMATS)
    assert config.MAX_SCALE == resize.MAX_FACTOR
