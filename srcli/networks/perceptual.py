"""VGG16 as torchvision's file has it: a frozen feature network, and the network of LPIPS, a perceptual distance to train by.

torchmetrics brings LPIPS's own few weights and its layers; the bare feature network needs the file alone.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import logging
import os
import socket
import sys
import urllib.error
import urllib.parse
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srcli.disk import first_line
from srcli.errors import ModelError, UsageError, joined_faults
from srcli.networks.features import Depth, FeatureNetwork
from srcli.store.weights import load_pickle, sha256_of

log = logging.getLogger("srcli")

LPIPS_VGG = "lpips-vgg"
"""What `srcli models fetch` calls the weights."""
URL_VARIABLE = "SRCLI_LPIPS_URL"
"""Environment variable with another address of the same file, for mirrors."""
MIN_SIDE = 16
"""Pixels: VGG16 halves its input four times before the last layer that is compared."""

_VGG_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
_VGG_SHA256 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
_ABOUT = "528 MiB, licence BSD-3-Clause (torchvision)"
_TIMEOUT_S = 30.0
_PACKAGES = ("torchmetrics", "torchvision")
_INSTALL = "`pip install 'srcli[eval]'`"
_FETCH = f"`srcli models fetch {LPIPS_VGG}`"
_WITHOUT = "or train without LPIPS: `--lpips 0`"
_REPLACE = f"{_FETCH} replaces the file; {_WITHOUT}"

_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
"""Channels of its convolutions, 0 for a halving: Simonyan and Zisserman, "Very deep convolutional networks", 2014, table 1, D."""
_DEPTHS = tuple(Depth(f"relu{block}", step, 1 << block - 1) for block, step in enumerate((3, 8, 15, 22, 29), 1))
"""The last of each block, as LPIPS has them; steps are numbered as torchvision numbers its layers."""


class LpipsNetwork(nn.Module):
    """LPIPS (Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018, eq. 1).

    d(sr, hq) = Σ_l 1/(H_l·W_l) Σ_hw ‖w_l ⊙ (ŷ_sr,l − ŷ_hq,l)‖², with ŷ_l the features of five layers of VGG16, each pixel
    scaled to unit length, and w_l² the weights of LPIPS 0.1. Frozen, always in evaluation mode.

    Args:
        net: torchmetrics' LPIPS module, with its weights.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.requires_grad_(False).float()
        self.eval()

    def train(self, mode: bool = True) -> LpipsNetwork:
        """Stay in evaluation mode: the module holds dropout."""
        super().train(False)
        return self

    def forward(self, sr: Tensor, hq: Tensor) -> Tensor:
        """Distance of each image to its reference; 0 for equal ones, smaller is nearer.

        Args:
            sr: (N, 3, H, W), RGB, any float dtype, in [-1, 1]; what lies outside is clamped and gets no gradient. Both
                sides at least `MIN_SIDE` pixels.
            hq: as `sr`, of the same shape.

        Returns:
            (N,), float32, also under autocast; differentiable with respect to `sr`.

        Raises:
            UsageError: the images are too small.
        """
        if min(sr.shape[-2:]) < MIN_SIDE:
            size = f"{sr.shape[-1]} × {sr.shape[-2]}"
            raise UsageError(
                f"LPIPS needs images of at least {MIN_SIDE} × {MIN_SIDE} px, not {size}", f"enlarge them, {_WITHOUT}"
            )
        with torch.autocast(sr.device.type, enabled=False):
            distance: Tensor = self.net(sr.float().clamp(-1, 1), hq.float().clamp(-1, 1))
        return distance.flatten()


def lpips_network(device: torch.device) -> LpipsNetwork:
    """LPIPS, ready on `device`. Downloads nothing, and leaves the state of torch's random numbers as it was.

    Raises:
        ModelError: a package or the weights are missing or damaged; it names all of them and how to get them.
    """
    path = vgg_weights_path()
    _check_present(path)
    net = _untrained_vgg()
    # torchmetrics' five slices keep torchvision's numbers of layers
    _load_weights(net.net, path, {key: f"features.{key.split('.', 1)[1]}" for key in net.net.state_dict()}, "LPIPS", _REPLACE)
    return LpipsNetwork(net).to(device)


def vgg16(device: torch.device, needed_by: str) -> FeatureNetwork:
    """VGG16 (BSD-3-Clause) that knows ImageNet, by the weights that LPIPS has too. Downloads nothing.

    Pictures need `MIN_SIDE` pixels on both sides.

    Args:
        device: where it computes.
        needed_by: what the message begins with where the weights are missing.

    Raises:
        ModelError: they are missing or damaged.
    """
    path = vgg_weights_path()
    if not path.is_file():
        raise ModelError(f"{needed_by} needs the weights of VGG16, which are missing: `{path}`", _how_to_get_it())
    network = FeatureNetwork(_vgg_layers(), _DEPTHS)
    names = {key: f"features.{key}" for key in network.steps.state_dict()}
    _load_weights(network.steps, path, names, "VGG16", f"{_FETCH} replaces the file")
    return network.to(device)


def _vgg_layers() -> Iterator[nn.Module]:
    channels = 3
    for width in _WIDTHS:
        if width:
            yield nn.Conv2d(channels, width, 3, padding=1)
            yield nn.ReLU(inplace=True)
            channels = width
        else:
            yield nn.MaxPool2d(2)


def vgg_weights_path() -> Path:
    """Where torch.hub keeps torchvision's VGG16 weights (`TORCH_HOME`); the file may be missing."""
    return Path(torch.hub.get_dir()) / "checkpoints" / "vgg16-397923af.pth"


def fetch_vgg_weights() -> Path:
    """Download the VGG16 weights into torch.hub's cache, unless they are there; check their SHA-256.

    The file comes into its place when it is complete and right; until then whatever was there stays.

    Returns:
        the file.

    Raises:
        ModelError: no network, another file than expected, or no place for it.
    """
    path = vgg_weights_path()
    if path.is_file():
        if sha256_of(path) == _VGG_SHA256:
            log.info("`%s` is there already", path)
            return path
        log.warning("`%s` is damaged or another file, and is fetched anew", path)
    _download(_address(), path)
    return path


# Building ------------------------------------------------------------------------------------------------------------


def _check_present(path: Path) -> None:
    faults, hints = [], []
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(f"`{name}`" for name in missing)
        faults.append(f"{names} {'is' if len(missing) == 1 else 'are'} not installed")
        hints.append(f"{_INSTALL} installs what is missing")
    if not path.is_file():
        faults.append(f"the weights of VGG16 are missing: `{path}`")
        hints.append(_how_to_get_it())
    if faults:
        title = "cannot use LPIPS"
        message = f"{title}: {faults[0]}" if len(faults) == 1 else joined_faults(title, faults)
        raise ModelError(message, "; ".join([*hints, _WITHOUT]))


def _how_to_get_it() -> str:
    return f"{_FETCH} downloads them ({_ABOUT}), and a copy of the file from elsewhere will do"


def _untrained_vgg() -> Any:
    """The module with the weights of LPIPS itself and a random VGG16.

    The public metric would let torchvision load the file: downloaded where it is missing, and unpickled unguarded.
    """
    try:
        from torchmetrics.functional.image.lpips import _NoTrainLpips

        with torch.random.fork_rng(devices=[]):
            return _NoTrainLpips(net="vgg", pnet_rand=True)
    except (ImportError, OSError, RuntimeError, AttributeError) as fault:  # what versions that do not fit together raise
        hint = f"versions that fit together: {_INSTALL} in a fresh environment; {_WITHOUT}"
        raise ModelError(f"`torchmetrics` and `torchvision` cannot be used: {first_line(fault)}", hint) from fault


def _load_weights(layers: nn.Module, path: Path, names: Mapping[str, str], measure: str, hint: str) -> None:
    """Put torchvision's weights into layers, by the names that they have in the file."""
    weights = _read_weights(path, measure, hint)
    wanted = layers.state_dict()
    for key, name in names.items():
        value = weights.get(name)
        if not isinstance(value, Tensor) or value.shape != wanted[key].shape:
            message = f"`{path}` holds no weights of VGG16: `{name}` is missing or of another shape"
            raise ModelError(message, hint)
    layers.load_state_dict({key: weights[name] for key, name in names.items()})


def _read_weights(path: Path, measure: str, hint: str) -> dict[str, Any]:
    if sha256_of(path) == _VGG_SHA256:
        # A pickle of 2017, whose parameters the guarded unpickler need not know; its sum says that it is torchvision's own.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            weights: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
        return weights
    log.warning("`%s` is not torchvision's file: %s is another measure with it", path, measure)
    try:
        return load_pickle(path)
    except ModelError as fault:
        raise ModelError(fault.message, hint) from fault


# Downloading ---------------------------------------------------------------------------------------------------------


def _address() -> str:
    url = os.environ.get(URL_VARIABLE) or _VGG_URL
    if urllib.parse.urlsplit(url).scheme not in ("http", "https", "file"):
        raise ModelError(f"`{url}`, in `{URL_VARIABLE}`, is no address", "give one as `https://HOST/PATH`")
    return url


def _download(url: str, path: Path) -> None:
    log.info("fetching the VGG16 weights of LPIPS from `%s`: %s", url, _ABOUT)
    hint = f"get `{_VGG_URL}` by other means and put it at `{path}`; or name a mirror of the file in `{URL_VARIABLE}`"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _socket_timeout(_TIMEOUT_S):
            torch.hub.download_url_to_file(url, str(path), _VGG_SHA256, progress=_on_screen())
    except RuntimeError as fault:  # of the sum
        message = f"`{url}` sent another file, or not all of it: its SHA-256 is not `{_VGG_SHA256}`"
        raise ModelError(message, f"try again; else {hint}") from fault
    except urllib.error.HTTPError as fault:
        fault.close()
        raise ModelError(f"cannot download `{url}`: the server answers {fault.code} {fault.reason}", hint) from fault
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as fault:
        reason = getattr(fault, "reason", None) or fault
        raise ModelError(f"cannot download `{url}`: {reason}", f"check the network; or {hint}") from fault
    except OSError as fault:
        message = f"cannot write `{path}`: {fault.strerror or fault}"
        raise ModelError(message, "check the space and the rights of its folder, or set `TORCH_HOME` to another one") from fault


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """torch.hub sets none of its own, and would wait for a silent server for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _on_screen() -> bool:
    return sys.stderr.isatty() and log.isEnabledFor(logging.INFO)
