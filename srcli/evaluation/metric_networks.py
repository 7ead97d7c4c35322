"""Metrics that are networks: torchmetrics for those with a reference, pyiqa for those without; `features` is our own.

Their libraries download weights when they are built. Here that happens only where it is allowed; otherwise what is missing is
an error that names the command. Pickles are read in torch's safe mode.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import constants as hub
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from torch import Tensor

from srcli.disk import first_line
from srcli.errors import ImageError, ModelError

U8 = npt.NDArray[np.uint8]
Score = Callable[[U8, U8 | None], float]

IQA_NAMES = {"niqe": "niqe", "musiq": "musiq", "maniqa": "maniqa-pipal", "clipiqa": "clipiqa"}
"""Our name -> pyiqa's."""

_FID_FEATURES = 2048
_EVAL_EXTRA = "pip install 'srcli[eval]'"
_IQA_EXTRA = "pip install 'srcli[iqa]'"
_LPIPS_VGG_FETCH = "srcli models fetch lpips-vgg"


def lpips_alex(device: torch.device, allow_download: bool = False) -> Score:
    """LPIPS 0.1 with AlexNet (Zhang et al., 2018), which PiSA-SR, S3Diff and OSEDiff report.

    Raises:
        ModelError: torchvision or the weights are missing.
    """

    def build() -> Any:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)

    _need("lpips", _EVAL_EXTRA, "torchmetrics", "torchvision")
    metric = _built("lpips", build, allow_download, "AlexNet, 233 MiB, BSD-3-Clause").to(device)

    def score(sr: U8, hq: U8 | None) -> float:
        value = float(metric(*_tensors(device, sr, hq)))
        metric.reset()
        return value

    return _guarded("lpips", score)


def lpips_vgg(device: torch.device, allow_download: bool = False) -> Score:
    """LPIPS 0.1 with VGG16: the network that `srcli train-semantic` trains with.

    Raises:
        ModelError: torchvision or the weights are missing.
    """
    from srcli.networks.perceptual import lpips_network

    _need("lpips-vgg", _EVAL_EXTRA, "torchmetrics", "torchvision")
    _need_vgg("lpips-vgg", allow_download)
    try:
        network = lpips_network(device)
    except ModelError as fault:  # its hint is for training
        raise ModelError(fault.message, _LPIPS_VGG_FETCH) from fault

    def score(sr: U8, hq: U8 | None) -> float:
        sr_tensor, hq_tensor = _tensors(device, sr, hq)
        return float(network(sr_tensor * 2 - 1, hq_tensor * 2 - 1))

    return _guarded("lpips-vgg", score)


def dists(device: torch.device, allow_download: bool = False) -> Score:
    """DISTS (Ding et al., 2020) at full size.

    Raises:
        ModelError: torchvision or the weights (those of VGG16) are missing.
    """

    def build() -> Any:
        # torchmetrics' own `Metric` and function build this network, weights and all, again for every picture.
        from torchmetrics.functional.image.dists import DISTSNetwork

        return DISTSNetwork().eval()

    _need("dists", _EVAL_EXTRA, "torchmetrics", "torchvision")
    _need_vgg("dists", allow_download)
    network = _built("dists", build, allow_download, "VGG16").to(device)
    return _guarded("dists", lambda sr, hq: float(network(*_tensors(device, sr, hq))))


def features(device: torch.device) -> Score:
    """Distance of an ImageNet network's answers: `srcli.networks.features`, of EfficientNet-Lite1, which nothing trains with.

    Raises:
        ModelError: the package that holds the weights is missing.
    """
    from srcli.networks.features import distance_in_strips, efficientnet_lite

    network = efficientnet_lite("efficientnet-lite1", device, "`features`")

    def score(sr: U8, hq: U8 | None) -> float:
        sr_tensor, hq_tensor = _tensors(device, sr, hq)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # on CUDA, else, convolutions keep 10 bits of a number
            return float(distance_in_strips(network, sr_tensor, hq_tensor))

    return _guarded("features", score)


def iqa(name: str, device: torch.device, allow_download: bool = False) -> Score:
    """A metric without reference, by pyiqa (PolyForm-Noncommercial-1.0.0), under pyiqa's defaults.

    Args:
        name: a key of `IQA_NAMES`.
        device: where it is computed.
        allow_download: fetch weights that are not there.

    Raises:
        ModelError: pyiqa or the weights are missing.
    """
    _need(name, f"{_IQA_EXTRA} (noncommercial use only: PolyForm-Noncommercial-1.0.0)", "pyiqa")
    create = lambda: importlib.import_module("pyiqa").create_metric(IQA_NAMES[name], device=device)  # noqa: E731
    network = _built(name, create, allow_download, f"pyiqa's `{IQA_NAMES[name]}`, noncommercial use only")
    return _guarded(name, lambda sr, hq: float(network(_tensors(device, sr)[0])))


class FidNetwork:
    """Inception v3 with the weights of the first FID (Heusel et al., 2017), through torchmetrics and torch-fidelity.

    Pictures are resized to 299 x 299 by antialiased bilinear interpolation; clean-fid, which pyiqa and with it the papers
    call, resizes bicubically, so expect small differences from their values. FID depends on the number of pictures.

    Args:
        inception: (N, 3, H, W), uint8 -> (N, width), float32.
        device: where it is computed.
        width: number of features.
    """

    def __init__(self, inception: Callable[[Tensor], Tensor], device: torch.device, width: int = _FID_FEATURES) -> None:
        self._inception = inception
        self._device = device
        self.width = width

    @classmethod
    def open(cls, device: torch.device, allow_download: bool = False) -> FidNetwork:
        """Load the network.

        Raises:
            ModelError: torch-fidelity or the weights are missing.
        """

        def build() -> Any:
            from torchmetrics.image.fid import FrechetInceptionDistance

            return FrechetInceptionDistance(feature=_FID_FEATURES).inception

        _need("fid", _EVAL_EXTRA, "torchmetrics", "torch_fidelity")
        return cls(_built("fid", build, allow_download, "Inception v3, 91 MiB, Apache-2.0").to(device), device)

    @torch.inference_mode()
    def features(self, picture: U8) -> Tensor:
        """What FID compares.

        Args:
            picture: (H, W, 3), RGB, uint8.

        Returns:
            (1, width), float32, on the CPU.
        """
        pixels = torch.tensor(picture).permute(2, 0, 1)[None]
        return self._inception(pixels.to(self._device)).float().cpu()


class FidSum:
    """FID of one method from features; its memory does not grow with the number of pictures.

    Args:
        width: number of features.
    """

    def __init__(self, width: int = _FID_FEATURES) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        self._metric: Any = FrechetInceptionDistance(feature=_Features(width))

    def add(self, sr: Tensor, hq: Tensor) -> None:
        """Count a picture and its reference, each as of `FidNetwork.features`."""
        self._metric.update(sr, real=False)
        self._metric.update(hq, real=True)

    def value(self) -> float:
        """The distance; NaN for fewer than two pictures."""
        if int(self._metric.real_features_num_samples) < 2:
            return float("nan")
        return float(self._metric.compute())


class _Features(torch.nn.Module):
    """In the place of Inception where its output is at hand already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def _tensors(device: torch.device, *pictures: U8 | None) -> list[Tensor]:
    """(H, W, 3), uint8 -> (1, 3, H, W), float32 in [0, 1]."""
    tensors = []
    for picture in pictures:
        assert picture is not None
        pixels = torch.tensor(picture, device=device)
        tensors.append(pixels.permute(2, 0, 1)[None].float() / 255)
    return tensors


def _guarded(name: str, score: Score) -> Score:
    """What the library raises for a picture it cannot judge becomes that picture's error."""

    def guarded(sr: U8, hq: U8 | None) -> float:
        try:
            with torch.inference_mode(), contextlib.redirect_stdout(io.StringIO()):
                return score(sr, hq)
        except (RuntimeError, ValueError, AssertionError, MemoryError) as fault:
            size = f"{sr.shape[1]} x {sr.shape[0]} px"
            hint = "it may be too small for this metric, or too large for the memory"
            raise ImageError(f"`{name}` cannot be computed for {size}: {first_line(fault)}", hint) from fault

    return guarded


# Packages and weights ------------------------------------------------------------------------------------------------


def _need(metric: str, command: str, *packages: str) -> None:
    missing = [f"`{package.replace('_', '-')}`" for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ModelError(f"`{metric}` needs {' and '.join(missing)}, not installed here", command)


def _need_vgg(metric: str, allow_download: bool) -> None:
    from srcli.networks.perceptual import fetch_vgg_weights, vgg_weights_path

    if allow_download:
        fetch_vgg_weights()
    elif not vgg_weights_path().is_file():
        raise ModelError(f"the weights of `{metric}` are missing: `{vgg_weights_path()}`", _LPIPS_VGG_FETCH)


def _built(name: str, build: Callable[[], Any], allow_download: bool, about: str) -> Any:
    """What `build` makes, as a network that does not learn; the global random numbers stay as they were."""
    with _loading(allow_download) as refused:
        try:
            with torch.random.fork_rng(devices=[]):
                network = build()
        except Exception as fault:  # whatever another's library raises
            if refused or _not_in_the_hubs_cache(fault):
                raise ModelError(
                    f"the weights of `{name}` are missing ({about})", f"srcli eval --fetch --metrics {name}"
                ) from fault
            hint = "check the network" if allow_download else "try versions of its packages that fit together"
            raise ModelError(f"`{name}` cannot be loaded: {first_line(fault)}", hint) from fault
    return network.requires_grad_(False) if isinstance(network, torch.nn.Module) else network


@contextlib.contextmanager
def _loading(allow_download: bool) -> Iterator[list[object]]:
    """While a library loads: torch reads pickles safely, and no host is found unless that is allowed.

    Libraries disagree on where weights lie and how to ask; that none of them reaches a host holds for all. What was asked
    for is in the list that this yields. Their talk of downloading is kept back then.
    """
    refused: list[object] = []

    def refuse(host: object, *_: object, **__: object) -> NoReturn:
        refused.append(host)
        raise OSError(f"no download without `--fetch`: {host}")

    with contextlib.ExitStack() as stack:
        stack.enter_context(_safe_pickles())
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if not allow_download:
            stack.enter_context(_replaced(socket, "getaddrinfo", refuse))
            stack.enter_context(_replaced(hub, "HF_HUB_OFFLINE", True))  # it would try again for a minute
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield refused


@contextlib.contextmanager
def _replaced(owner: object, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def _safe_pickles() -> Iterator[None]:
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch's own switch; torchvision and torch-fidelity ask for the unsafe mode
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _not_in_the_hubs_cache(fault: BaseException | None) -> bool:
    while fault is not None:
        if isinstance(fault, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
            return True
        fault = fault.__cause__ or fault.__context__
    return False
