"""Real-ESRGAN's networks in ncnn's format: a `.param` file that lists the layers, and beside it a `.bin` of their weights.

Both of its kinds of network are read: a chain of convolutions with a PReLU between each two (spandrel's Compact), and RRDBNet,
which has no PReLU (spandrel's ESRGAN). The order of the layers gives the weights their names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from srcli.errors import ModelError

_MAGIC = "7767517"
_HALF = 0x01306B47
"""The tag of weights in float16; 0 is float32."""
_FRAME = ("conv_first", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last")
"""RRDBNet's convolutions outside of its blocks, which stand between the first two."""
_HINT = "srcli reads Real-ESRGAN's own networks in this format; for others take the `.pth` or `.safetensors` file"


@dataclass(frozen=True)
class _Layer:
    """A line of the `.param` file."""

    kind: str
    numbers: dict[str, int]
    """Its parameters that are whole numbers, by their keys: 0 = channels, 1 = kernel, 5 = whether it has biases, 6 = weights."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of a convolution's weights: (out, in, k, k)."""
        out, kernel = self.numbers["0"], self.numbers["1"]
        return out, self.numbers["6"] // (out * kernel**2), kernel, kernel


def read_ncnn(path: Path) -> dict[str, Tensor]:
    """The weights of a network, float32, by the names that spandrel knows them by.

    Args:
        path: the `.bin` file; its `.param` file lies beside it.

    Raises:
        ModelError: a file is missing or damaged, or the network is none of Real-ESRGAN's.
    """
    try:
        lines = path.with_suffix(".param").read_text(encoding="ascii").split("\n")
        layers = [_read_layer(line) for line in lines[2:] if line.strip()]
        if lines[0].strip() != _MAGIC or any(min(layer.shape) < 1 for layer in layers if layer.kind == "Convolution"):
            raise ValueError
        data = np.memmap(path, np.uint8, "r")
    except OSError as fault:
        raise ModelError(f"cannot read `{fault.filename or path}`: {fault.strerror}", _HINT) from fault
    except (ValueError, KeyError, ZeroDivisionError, UnicodeDecodeError) as fault:
        raise ModelError(f"`{path}` and the `.param` file beside it are no network in ncnn's format", _HINT) from fault
    return _named(path, _Reader(path, data).weights(layers))


def _read_layer(line: str) -> _Layer:
    kind, _, inputs, outputs, *rest = line.split()
    pairs = [pair.split("=", 1) for pair in rest[int(inputs) + int(outputs) :]]
    return _Layer(kind, {key: int(value) for key, value in pairs if value.lstrip("-").isdigit()})


class _Reader:
    """Takes weights from the bytes of a `.bin` file, one after another."""

    def __init__(self, path: Path, data: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
        self._path, self._data, self._at = path, data, 0

    def weights(self, layers: list[_Layer]) -> list[tuple[Tensor, ...]]:
        """For each convolution weights and biases, for each PReLU its slopes; the file has to end with the last."""
        found: list[tuple[Tensor, ...]] = []
        for layer in layers:
            if layer.kind == "Convolution":
                weight = self._tagged(layer.numbers["6"]).view(layer.shape)
                found.append((weight, self._take(layer.shape[0], "<f4")) if layer.numbers.get("5") else (weight,))
            elif layer.kind == "PReLU":
                found.append((self._take(layer.numbers["0"], "<f4"),))
        if self._at != len(self._data):
            raise self._damaged()
        return found

    def _tagged(self, count: int) -> Tensor:
        tag = int(self._bytes(4).view("<u4")[0])
        if tag not in (0, _HALF):
            raise self._damaged()
        values = self._take(count, "<f2" if tag else "<f4")
        self._at += -self._at % 4
        return values

    def _take(self, count: int, kind: str) -> Tensor:
        values = self._bytes(count * np.dtype(kind).itemsize).view(kind)
        return torch.from_numpy(values.astype(np.float32))

    def _bytes(self, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        if self._at + count > len(self._data):
            raise self._damaged()
        self._at += count
        return np.array(self._data[self._at - count : self._at])

    def _damaged(self) -> ModelError:
        hint = "the two files must belong together: get both anew"
        return ModelError(f"`{self._path}` is not what the `.param` file beside it describes, or damaged", hint)


def _named(path: Path, weights: list[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    if any(each[0].ndim == 1 for each in weights):
        names = [f"body.{index}" for index in range(len(weights))]
    else:
        blocks, rest = divmod(len(weights) - len(_FRAME), 15)
        if blocks < 1 or rest:
            raise ModelError(f"`{path}` is a network of {len(weights)} convolutions, which is none of Real-ESRGAN's", _HINT)
        dense = [f"body.{block}.rdb{part}.conv{index}" for block in range(blocks) for part in (1, 2, 3) for index in range(1, 6)]
        names = [_FRAME[0], *dense, *_FRAME[1:]]
    return {
        f"{name}.{kind}": tensor
        for name, tensors in zip(names, weights, strict=True)
        for kind, tensor in zip(("weight", "bias"), tensors, strict=False)
    }
