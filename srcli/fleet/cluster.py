"""Reaching a Ray cluster, or starting one of this machine alone."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srcli.config import UpscaleConfig
from srcli.disk import first_line
from srcli.errors import UsageError
from srcli.fleet.places import Place, places_here, places_of

log = logging.getLogger("srcli")

KNOCK_S = 10.0
_HTTP2_GREETING, _HTTP2_SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", b"\4"
"""What begins a connection, and the kind of frame that answers it (RFC 9113, 3.4); clusters speak gRPC."""
STARTS = 3
"""How often Ray is tried to be started here."""


@contextlib.contextmanager
def connected(config: UpscaleConfig) -> Iterator[tuple[Any, list[Place]]]:
    """Ray, and where workers may be: a cluster that runs already, or one of this machine alone, which ends with the block.

    What Ray prints is kept from standard output.
    """
    quiet = os.devnull if log.getEffectiveLevel() > logging.DEBUG else None
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(Path(quiet).open("w")) if quiet else sys.stderr
        stack.enter_context(contextlib.redirect_stdout(out))
        with _own_signals():
            ray = _imported()
            _begin(ray, config)
        stack.callback(ray.shutdown)
        devices = config.devices
        yield ray, places_of(ray.nodes(), devices) if config.ray_address else places_here(devices)


def _knock(address: str) -> None:
    """Raises: UsageError: no cluster answers there, which Ray itself would take many minutes to tell."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S) as there, there.makefile("rb") as answer:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                there.sendall(_HTTP2_GREETING)
                if answer.read(9)[3:4] != _HTTP2_SETTINGS:
                    raise OSError("what answers there is no Ray cluster")
    except (OSError, OverflowError) as fault:
        hint = "check the address; `ray start --head` tells it on the machine where the cluster begins"
        raise UsageError(f"the Ray cluster `{address}` is not reached: {first_line(fault)}", hint) from fault


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself, and would end the command without its summary."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _imported() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as fault:
        hint = "`pip install 'srcli[cluster]'` installs it, or name one device"
        raise UsageError("several devices or machines need the package `ray`, which is not installed", hint) from fault
    return ray


def _begin(ray: Any, config: UpscaleConfig) -> None:
    """Raises: UsageError: the cluster is not reached, or none can be started here."""
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    here = {"address": "local", "num_cpus": 1, "num_gpus": 0, "include_dashboard": False, "object_store_memory": 100 << 20}
    if config.ray_address is None:
        os.environ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"] = "1"  # workers name their device themselves
    elif ":" in config.ray_address:
        _knock(config.ray_address)
    for left in reversed(range(1 if config.ray_address else STARTS)):
        try:
            ray.init(**(here if config.ray_address is None else {"address": config.ray_address}), **common)
            return
        except Exception as fault:  # whatever it is that is in Ray's way
            ray.shutdown()
            if left:  # a machine that is busy may take longer than Ray waits
                log.info("Ray has not started, and is tried again: %s", first_line(fault))
                continue
            if config.ray_address is None:
                hint = "repeat the command when the machine is less busy, or name one device"
                raise UsageError(f"Ray does not start: {first_line(fault)}", hint) from fault
            message = f"the Ray cluster `{config.ray_address}` is not reached: {first_line(fault)}"
            raise UsageError(message, "check the address, and that `ray status` answers") from fault
