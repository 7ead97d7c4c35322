"""Large pictures, restored row of tiles by row of tiles: the same results as whole, with few floats at a time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import srcli
from mock_restorer import HalfBrokenRestorer, MockRestorer
from PIL import Image
from safetensors.torch import save_file
from spandrel.architectures.Compact import Compact
from torch import Tensor
from torch.nn import functional

from srcli.config import UpscaleConfig
from srcli.engine import by_rows
from srcli.engine.blend import Blend
from srcli.engine.by_rows import RowEngine
from srcli.engine.forward import Again, Forward, made_ahead
from srcli.engine.restore import Engine, Limits
from srcli.families.network import restorer as networks
from srcli.images.canvas import Canvas
from srcli.images.rows import Rows
from srcli.opening import model_of, open_stream
from srcli.protocol.restoring import Mixture, Part, Picture, Settings


@pytest.fixture(autouse=True)
def every_picture_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_rows, "LARGE_PIXELS", 0)
    monkeypatch.setattr(by_rows, "PIECE_PIXELS", 1 << 11)
    monkeypatch.setattr("srcli.images.rows.BAND_PIXELS", 1 << 12)


class LocalRestorer(MockRestorer):
    """Two passes that look around, with an autoencoder whose cells need nothing of each other."""

    @property
    def decoder(self) -> tuple[Part, ...]:
        return (Part(self.decode, 3, 1, 4, cell_bytes=1),)

    def encoder(self, encoding: Hashable = None) -> tuple[Part, ...]:
        return (Part(self.encode, 48, 4, 1, cell_bytes=1),)

    def mix(self, settings: Settings, picture: Picture) -> Mixture:
        passes: dict[Hashable, float] = {"mean": settings.get("mean", 0.5), "square": 0.25}
        return Mixture({key: weight for key, weight in passes.items() if weight})

    def predict_pass(self, key: Hashable, latent: Tensor, *, exact: bool = False) -> Tensor:
        super().predict(latent)
        around = functional.avg_pool2d(latent, 5, 1, 2)
        return around if key == "mean" else around.square()


def canvas_of(height: int, width: int, *, painted: bool = False) -> Canvas:
    rng = np.random.default_rng(height * width)
    values = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Canvas(values, 4, painted=rng.integers(0, 256, (height, width, 1), dtype=np.uint8) if painted else None)


def read(rows: Rows) -> Tensor:
    """(3, H, W) in [-1, 1], read as pictures are finished: in bands that reach into each other."""
    assert rows.in_order
    bands = [rows.read(max(0, top - 5), bottom)[min(top, 5) :] for top, bottom in rows.bands()]
    return torch.from_numpy(np.concatenate(bands)).permute(2, 0, 1) * 2 - 1


@pytest.mark.parametrize(
    ("size", "tiling", "margin", "painted"),
    [
        ((23, 31), "fixed", 0, True),
        ((100, 37), "fixed", 0, False),
        ((70, 37), "even", 8, True),
        ((1, 60), "even", 8, False),
        ((61, 1), "context", 12, True),
        ((70, 37), "context", 12, False),
        ((40, 37), "whole", 0, False),
        ((7, 5), "even", 20, True),
    ],
)
def test_rows_are_those_of_the_whole(size: tuple[int, int], tiling: str, margin: int, painted: bool) -> None:
    restorer = LocalRestorer()
    restorer.margin = margin
    engine = RowEngine(restorer, Limits(16, 5, 2, None, tiling=tiling), painted=("mean",))
    canvas = canvas_of(*size, painted=painted)
    (mixture,) = engine.mix([canvas])
    (wanted,) = engine.restore([canvas], [mixture])
    tiles = sum(shape[0] for shape in restorer.batches)
    restorer.batches.clear()
    found = engine.restored(canvas, mixture, read)
    assert (found - wanted).abs().max() < 2e-6
    assert sum(shape[0] for shape in restorer.batches) == tiles, "not a tile more"


def test_a_pass_alone_gives_the_very_same_numbers() -> None:
    engine = RowEngine(LocalRestorer(), Limits(16, 5, 1, None), {"mean": 0})
    canvas = canvas_of(70, 33)
    (mixture,) = engine.mix([canvas])
    pieces = torch.cat(list(engine.pieces(canvas, mixture)), 1)
    assert torch.equal(pieces, engine.restore([canvas], [mixture])[0])


def test_floats_do_not_grow_with_a_picture_s_height(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*values: Any, **more: Any) -> Any:
            result = function(*values, **more)
            tensors = (*values, result, getattr(values[0], "plane", None), getattr(values[0], "_held", None))
            sizes.extend(each.numel() for each in tensors if isinstance(each, Tensor))
            return result

        return noted

    for owner, name in ((Blend, "add"), (Forward, "read"), (LocalRestorer, "apply"), (LocalRestorer, "encode")):
        monkeypatch.setattr(owner, name, noting(getattr(owner, name)))
    for height in (60, 240):
        engine = RowEngine(LocalRestorer(), Limits(16, 5, 1, None))
        canvas = canvas_of(height, 40)
        engine.restored(canvas, engine.mix([canvas])[0], read)
    assert max(sizes) == 48 * 16 * 40, "one row of tiles"


def test_what_half_precision_spoilt_is_redone() -> None:
    class Local(HalfBrokenRestorer):
        decoder, encoder = LocalRestorer.decoder, LocalRestorer.encoder

    engine = RowEngine(Local("predict"), Limits(16, 5, 2, None))
    canvas = Canvas(np.full((40, 20, 3), 255, np.uint8), 4)
    assert (engine.restored(canvas, engine.mix([canvas])[0], read) - 1).abs().max() < 1e-6
    assert engine.repairs.exact_tiles == engine.tile_count(160, 80) == 4 * 2


def test_a_picture_is_begun_anew_where_memory_runs_out_on_the_way() -> None:
    class Failing(LocalRestorer):
        def predict_pass(self, key: Hashable, latent: Tensor, *, exact: bool = False) -> Tensor:
            if len(self.batches) > 20 and latent.shape[-1] > 16:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return super().predict_pass(key, latent)

    canvas = canvas_of(200, 40)
    engine = RowEngine(Failing(), Limits(32, 8, 1, None))
    begun = []
    found = engine.restored(canvas, engine.mix([canvas])[0], lambda rows: begun.append(rows) or read(rows))  # type: ignore[func-returns-value]
    assert len(begun) == 2
    assert engine.repairs.memory_retries == 1
    (wanted,) = Engine(LocalRestorer(), engine.limits).restore([canvas])
    assert (found - wanted).abs().max() < 2e-6


def test_pieces_are_made_ahead_so_many_at_most() -> None:
    made: list[int] = []

    def pieces() -> Iterator[Tensor]:
        for number in range(9):
            assert torch.is_inference_mode_enabled()
            made.append(number)
            yield torch.full((1, 1, 1), number)
        raise Again

    with closing(made_ahead(pieces(), 3)) as ahead:
        for number in range(5):
            assert next(ahead).item() == number
            assert len(made) <= number + 4
    assert len(made) < 9, "closed, and no more are made"
    with pytest.raises(Again):
        list(made_ahead(pieces(), 3))


def test_rows_that_were_let_go_cannot_be_read_again() -> None:
    plane = Forward(iter([torch.zeros(3, 4, 2), torch.ones(3, 4, 2)]))
    assert plane.read(1, 6)[0, :, 0].tolist() == [0, 0, 0, 1, 1]
    assert plane.read(6, 8).shape == (3, 2, 2)
    with pytest.raises(ValueError, match="row 5 is read after row 6"):
        plane.read(5, 7)


# Through the command line --------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> str:
    """Two small networks, of scales 2 and 3, joined."""
    for seed, scale in ((1, 2), (2, 3)):
        torch.manual_seed(seed)
        save_file(Compact(num_feat=8, num_conv=2, upscale=scale).state_dict(), tmp_path / f"{scale}.safetensors")
    return f"{tmp_path / '2.safetensors'}+{tmp_path / '3.safetensors'}"


def made(photos: Path, out: Path, model: str, *options: object) -> dict[str, np.ndarray]:
    given = ("--device", "cpu", "--dtype", "fp32", "--format", "png", "--tile", "64", "--model", model)
    done = srcli("upscale", photos, "-o", out, *given, *options)
    assert done.returncode == 0, done.stderr
    return {path.name: np.asarray(Image.open(path)).astype(int) for path in out.rglob("*.png")}


@pytest.mark.parametrize("fix", ["none", "wavelet", "adain"])
def test_files_are_the_same(photo_folder: Path, tmp_path: Path, pair: str, monkeypatch: pytest.MonkeyPatch, fix: str) -> None:
    (photo_folder / "b.jpg").unlink()
    with Image.open(photo_folder / "sub" / "c.png") as image:
        image.putalpha(image.convert("L"))
        image.save(photo_folder / "alpha.png")
    options = ("--color-fix", fix, "--scale", "1.5", "--lambda-semantic", "0.4", "--lambda-pixel", "0.9")
    called: list[str] = []
    for name in ("restored", "restore"):
        real = getattr(RowEngine, name)
        monkeypatch.setattr(RowEngine, name, lambda *args, real=real, name=name: called.append(name) or real(*args))
    rows = made(photo_folder, tmp_path / "rows", pair, *options)
    assert set(called) == ({"restore"} if fix == "adain" else {"restored"})  # which needs sums over the picture first
    monkeypatch.setattr(by_rows, "LARGE_PIXELS", 1 << 24)
    whole = made(photo_folder, tmp_path / "whole", pair, *options)
    assert rows.keys() == whole.keys() == {"a.png", "alpha.png", "c.png"}
    for name, levels in whole.items():
        assert np.abs(levels - rows[name]).max() <= 1  # where rounding was a matter of the seventh digit
        assert (levels != rows[name]).mean() < 1e-3


def test_parents_take_turns_where_one_runs_out_of_memory(tmp_path: Path, pair: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = UpscaleConfig(("a",), tmp_path, model=pair, device="cpu", dtype="fp32", tile=64, dials={"lambda_semantic": 0.5})
    engine = open_stream(config, model_of(config)).engine
    canvas = replace(canvas_of(12, 16), scale=engine.restorer.native_scale)
    (mixture,) = engine.mix([canvas])
    wanted = engine.restored(canvas, mixture, read)
    answer = networks.NetworkRestorer._answer

    def greedy(self: Any, picture: Tensor) -> Tensor:
        if self.native_scale == 3 and not engine.takes_turns:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return answer(self, picture)

    monkeypatch.setattr(networks.NetworkRestorer, "_answer", greedy)
    for parent in engine.parents._engines.values():  # type: ignore[union-attr]
        parent.limits = replace(parent.limits, part_bytes=None)  # of which smaller ones would be tried first
    found = engine.restored(canvas, mixture, lambda rows: torch.from_numpy(rows.read(0, rows.height)).permute(2, 0, 1) * 2 - 1)
    assert engine.takes_turns
    assert (found - wanted).abs().max() < 1e-5
