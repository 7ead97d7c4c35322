"""A network that describes photos in words."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from srcli.console import counted
from srcli.disk import first_line
from srcli.errors import ModelError
from srcli.images.codec import decode
from srcli.images.visible import visible_rgb_u8

log = logging.getLogger("srcli")

BATCH = 8
"""Photos that the model sees at once."""
LONGEST_SIDE_PX = 1024
"""What it is shown at most; the usual ones look at 384."""
CAPTIONERS = "take an image-to-text model such as `Salesforce/blip-image-captioning-base`"


def captioned(photos: list[Path], name: str, device: torch.device) -> Iterator[tuple[list[Path], list[str]]]:
    """The photos in batches, with their captions."""
    caption = _captioner(name, device)
    on_screen = sys.stderr.isatty() and log.isEnabledFor(logging.INFO)
    with (
        ThreadPoolExecutor(4) as pool,
        tqdm(total=len(photos), unit="photo", desc="captions", disable=not on_screen, dynamic_ncols=True) as bar,
    ):
        for start in range(0, len(photos), BATCH):
            batch = photos[start : start + BATCH]
            pictures = list(pool.map(_picture, batch))
            try:
                texts = caption(pictures)
            except torch.OutOfMemoryError:
                raise
            except Exception as fault:  # a model that wants more than a picture fails in its own way
                raise ModelError(f"`{name}` cannot caption photos: {first_line(fault)}", CAPTIONERS) from fault
            yield batch, [one_line(text) for text in texts]
            bar.update(len(batch))


def _captioner(name: str, device: torch.device) -> Callable[[list[Image.Image]], list[str]]:
    """Captions of the pictures of a batch, by beam search: the same ones each time."""
    processor, model = _load_model(name)
    model.to(device)

    @torch.inference_mode()
    def caption(pictures: list[Image.Image]) -> list[str]:
        inputs = processor(images=pictures, return_tensors="pt").to(device, model.dtype)
        tokens = model.generate(**inputs, max_new_tokens=40, num_beams=3, do_sample=False)
        texts: list[str] = processor.batch_decode(tokens, skip_special_tokens=True)
        return texts

    return caption


def _load_model(name: str) -> tuple[Any, Any]:
    """Processor and network of an image-to-text model; code that its repository may hold is not run."""
    import transformers
    import transformers.utils.logging

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    kind = getattr(transformers, "AutoModelForImageTextToText", None) or transformers.AutoModelForVision2Seq
    try:
        model, about = kind.from_pretrained(name, trust_remote_code=False, output_loading_info=True)
        processor = transformers.AutoProcessor.from_pretrained(name, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, AttributeError) as fault:  # of a model for something else
        raise ModelError(f"`{name}` cannot caption photos: {first_line(fault)}", CAPTIONERS) from fault
    except Exception as fault:  # which HTTP client the hub's library raises from depends on its version
        hint = "check the name; without a network copy the hub's cache (`HF_HOME`), or give the model's folder as `model:DIR`"
        raise ModelError(f"cannot load the captioning model `{name}`: {first_line(fault)}", hint) from fault
    if about["missing_keys"]:
        lacking = counted(len(about["missing_keys"]), "weight")
        log.warning("`%s` lacks %s, in whose place is chance: look at its captions", name, lacking)
    return processor, model.eval()


def _picture(photo: Path) -> Image.Image:
    """RGB, 8 bits, upright, at most `LONGEST_SIDE_PX`."""
    picture = Image.fromarray(visible_rgb_u8(decode(photo)))
    picture.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX), Image.Resampling.BICUBIC)
    return picture


def one_line(text: str) -> str:
    """The text with every run of white space as one space."""
    return " ".join(text.split())
