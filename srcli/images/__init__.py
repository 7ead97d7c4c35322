"""Finding, decoding, resizing, colouring and encoding pictures."""

import logging

for _name in ("PIL", "tifffile"):  # they log what they also raise, and without a handler Python would print it
    logging.getLogger(_name).addHandler(logging.NullHandler())
