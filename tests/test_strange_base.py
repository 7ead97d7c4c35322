"""An adapter on a base that it was not trained on is told: its layers may fit by chance."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_model import make_model

from srcli.families import load_restorer
from srcli.networks.adapters import Adapter, AdapterInfo
from srcli.networks.saved_adapters import load_adapter, save_adapter, warn_of_strange_base
from srcli.protocol.restoring import LoadOptions
from srcli.rows.lookup import find_model
from srcli.store.adapter_files import replace_adapters
from srcli.store.weights import adapter_path, sha256_of


@pytest.mark.parametrize(
    ("trained_on", "bases", "told"),
    [
        ("tiny", ("tiny",), False),
        ("tiny", ("someone/large", "other/large"), True),
        ("gone/sd-2-1", ("mirror/large", "mirror/sd-2-1"), False),
        ("gone/sd-2-1", ("/models/sd-2-1/",), False),
        ("gone/sd-2-1", ("/cache/models--mirror--sd-2-1/snapshots/0123abc",), False),
        ("", ("tiny",), False),
        ("tiny", ("",), False),
    ],
)
def test_bases_are_told_apart_by_the_last_part_of_their_names(
    trained_on: str, bases: tuple[str, ...], told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_strange_base(Adapter("pixel", {}, AdapterInfo(4, 4.0, trained_on)), bases)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * told


def test_a_semantic_adapter_tells_of_another_pixel_adapter_than_it_was_trained_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = find_model("small", make_model(tmp_path, semantic=True))
    pixel, semantic = (adapter_path(spec, name) for name in ("pixel", "semantic"))
    adapter = load_adapter(semantic, "semantic")
    assert "on_sha256" not in adapter.info.to_metadata()
    settings = {"lambda_pixel": 1.0, "lambda_semantic": 1.0, "timestep": 1}
    options = LoadOptions(torch.device("cpu"), torch.float32, (settings,))
    for number, (on, told) in enumerate((("", False), (sha256_of(pixel), False), (sha256_of(semantic), True))):
        path = save_adapter(replace(adapter, info=replace(adapter.info, on_sha256=on)), tmp_path / str(number))
        assert load_adapter(path, "semantic").info.on_sha256 == on
        load_restorer(replace_adapters(spec, {"semantic": path}), options)
        assert ("was trained on another pixel adapter than" in caplog.text) == told


def test_loading_a_model_tells(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = make_model(tmp_path)
    options = LoadOptions(torch.device("cpu"), torch.float32, ({"lambda_pixel": 1.0, "timestep": 1},))
    load_restorer(find_model("small", file), options)
    assert "srcli" not in {record.name for record in caplog.records}
    (tmp_path / "base").rename(tmp_path / "other")
    file.write_text(file.read_text().replace('{ path = "base" }', '{ path = "other" }'))
    load_restorer(find_model("small", file), options)
    assert "pixel adapter was trained on `base` and is used on" in caplog.text
