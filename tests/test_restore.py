from __future__ import annotations

import weakref

import pytest
import torch
from mock_restorer import HalfBrokenRestorer, HungryRestorer, MeanRestorer, MockRestorer
from torch import Tensor

from srcli.engine.restore import MIN_PART_PIXELS, PART_PIXELS, Engine, Limits, choose_limits, is_out_of_memory
from srcli.errors import ImageError, OutOfMemoryError, UsageError

LIMITS = Limits(tile_lat=16, overlap_lat=4, batch=3, part_bytes=None)


def pictures(*sizes: tuple[int, int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, h, w, generator=generator) * 1.6 - 0.8 for h, w in sizes]


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 5), (64, 64), (65, 63), (256, 1600), (131, 77)])
def test_output_has_the_size_of_the_input_and_identity_stays_identity(size: tuple[int, int]) -> None:
    (source,) = pictures(size)
    (result,) = Engine(MockRestorer(), LIMITS).restore([source])
    assert result.shape == source.shape
    assert torch.allclose(result, source, atol=1e-6)


def test_the_autoencoder_is_tiled_without_a_trace() -> None:
    (source,) = pictures((300, 200))
    limits = Limits(16, 4, 2, part_bytes=1024)
    (result,) = Engine(MockRestorer(0.5), limits).restore([source])
    assert torch.allclose(result, source * 0.5, atol=1e-6)


def test_tiles_of_several_pictures_share_batches() -> None:
    mock = MockRestorer()
    Engine(mock, LIMITS).restore(pictures((60, 60), (60, 60), (60, 60), (60, 60)))
    assert [shape[0] for shape in mock.batches] == [3, 1]


def test_neighbours_in_a_batch_change_nothing() -> None:
    sources = pictures((100, 130), (64, 64), (64, 64), (200, 40))
    together = Engine(MeanRestorer(), LIMITS).restore(sources)
    for source, result in zip(sources, together, strict=True):
        (alone,) = Engine(MeanRestorer(), Limits(16, 4, 1, None)).restore([source])
        assert torch.allclose(alone, result, atol=1e-6)


def test_even_tiles_leave_no_trace_and_are_kept_when_memory_runs_out() -> None:
    (source,) = pictures((300, 300))
    mock = HungryRestorer(most_cells=15 * 15)
    mock.tiling = "even"
    engine = Engine(mock, choose_limits(mock, 128, 32, 1))
    (result,) = engine.restore([source])
    assert torch.allclose(result, source, atol=1e-6)
    assert engine.limits == Limits(
        16, 5, 1, engine.limits.part_bytes, engine.limits.least_part_bytes, engine.limits.held_bytes, "even"
    )
    assert (
        engine.repairs.memory_retries == 1
    )  # 75 cells in seven tiles of 15 that share 5: fixed ones of 16 would not have fitted


def test_the_work_of_a_picture_counts_overlaps() -> None:
    mock = MockRestorer()
    fixed, even = (Engine(mock, Limits(16, 4, 1, None, tiling=wish)) for wish in ("fixed", "even"))
    assert fixed.worked_pixels(64, 64) == even.worked_pixels(64, 64) == 64 * 64
    assert fixed.worked_pixels(64, 70) == 2 * 64 * 64
    assert even.worked_pixels(64, 70) == 2 * 64 * 44  # 18 cells in two tiles of 11 that share 4
    assert fixed.tile_count(64, 70) == even.tile_count(64, 70) == 2


def test_out_of_memory_halves_the_batch_then_the_tile_and_does_the_picture_again() -> None:
    (source,) = pictures((300, 300))
    engine = Engine(HungryRestorer(most_cells=20 * 20), Limits(32, 8, 4, None))
    (result,) = engine.restore([source])
    assert torch.allclose(result, source, atol=1e-6)
    assert engine.limits == Limits(16, 5, 1, None)
    assert engine.repairs.memory_retries == 3


class LettingGoRestorer(MockRestorer):
    """Sees which latents are still held by anyone while results are decoded."""

    def __init__(self) -> None:
        super().__init__(0.5)
        self.latents: list[weakref.ref[Tensor]] = []
        self.held: list[int] = []

    def apply(self, latent: Tensor, prediction: Tensor) -> Tensor:
        self.latents.append(weakref.ref(latent))
        return super().apply(latent, prediction)

    def decode(self, latent: Tensor, *, exact: bool = False) -> Tensor:
        self.held.append(sum(each() is not None for each in self.latents))
        return super().decode(latent)


def test_latents_are_let_go_before_results_are_decoded() -> None:
    restorer = LettingGoRestorer()
    Engine(restorer, LIMITS).restore(pictures((64, 64), (40, 30)))
    assert len(restorer.latents) == 2
    assert not any(restorer.held)


def test_out_of_memory_at_the_smallest_tile_is_an_error_with_a_way_out(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OutOfMemoryError, match="200x300") as caught:
        Engine(HungryRestorer(most_cells=10), Limits(32, 8, 4, 4, least_part_bytes=1)).restore(pictures((300, 200)))
    assert "a smaller `--scale`" in caught.value.hint
    assert "--device cpu" not in caught.value.hint, "it is there already"
    assert len(set(caplog.messages)) == len(caplog.messages) == 4, "each says something else"


@pytest.mark.parametrize("step", ["predict", "decode"])
def test_only_tiles_that_half_precision_spoilt_are_redone(step: str) -> None:
    dark, bright = pictures((64, 64))[0].clamp(max=0.5), torch.full((3, 64, 64), 0.95)
    restorer = HalfBrokenRestorer(step)
    engine = Engine(restorer, LIMITS)
    results = engine.restore([dark, bright])
    assert torch.allclose(results[0], dark, atol=1e-6)
    assert torch.allclose(results[1], bright, atol=1e-6)
    assert engine.repairs.exact_tiles == 1
    assert restorer.exact_calls == 1


def test_a_picture_that_is_black_indeed_counts_as_no_repair() -> None:
    engine = Engine(HalfBrokenRestorer("decode"), LIMITS)
    (result,) = engine.restore([torch.full((3, 64, 64), -1.0)])
    assert (result == -1).all()
    assert engine.repairs.exact_tiles == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_nan_in_float32_too_is_an_error(dtype: torch.dtype) -> None:
    with pytest.raises(ImageError, match="not a number"):
        Engine(HalfBrokenRestorer("predict", dtype, always=True), LIMITS).restore([torch.full((3, 64, 64), 0.95)])


def test_limits_follow_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    mock = MockRestorer()
    mock.device = torch.device("meta")  # no CPU: batches may grow

    def limits(free: int, *wanted: int | None) -> tuple[int, int, int]:
        monkeypatch.setattr("srcli.engine.restore.free_bytes", lambda device: free)
        chosen = choose_limits(mock, *wanted)
        return chosen.tile_lat, chosen.overlap_lat, chosen.batch

    assert limits(2 * 16 * 16 * 1000 * 5, None, None, None) == (16, 4, 4)
    mock.tile = 256
    assert limits(2 * 32 * 32 * 1000, None, None, None) == (32, 4, 1)
    assert limits(2 * 32 * 32 * 1000, 128, 64, 7) == (32, 16, 7)


def test_the_room_of_the_autoencoder_follows_the_free_memory_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """In halves, so that a little more or less of free memory does not change a run's results."""
    mock = MockRestorer()  # its parts want a byte a cell of 16 pixels
    monkeypatch.setattr("srcli.engine.restore.free_bytes", lambda device: 1 << 34)
    plenty = choose_limits(mock, None, None, None)
    assert plenty.part_bytes == PART_PIXELS // 16
    assert plenty.held_bytes == 4 << 30
    monkeypatch.setattr("srcli.engine.restore.free_bytes", lambda device: PART_PIXELS // 16 - 1)
    little = choose_limits(mock, None, None, None)
    assert little.part_bytes == PART_PIXELS // 64
    assert little.held_bytes == PART_PIXELS // 16 // 8
    for next_to_nothing in (10, 0, -5):  # a device may count what others took from it
        monkeypatch.setattr("srcli.engine.restore.free_bytes", lambda device, free=next_to_nothing: free)
        assert choose_limits(mock, None, None, None).part_bytes == MIN_PART_PIXELS // 16


def test_an_overlap_that_the_default_tile_cannot_hold_is_refused() -> None:
    with pytest.raises(UsageError, match="overlap"):
        choose_limits(MockRestorer(), None, 64, None)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    ],
)
def test_every_way_to_say_out_of_memory_is_understood(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def test_tiles_too_small_for_what_a_network_sees_are_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    mock = MockRestorer()
    mock.tiling, mock.overlap = "context", 64
    choose_limits(mock, 192, None, 1)
    assert not caplog.messages
    assert choose_limits(mock, 96, None, 1).overlap_lat == 8
    assert "should overlap by 64 px: seams may show, unless `--tile` is 192 or more" in caplog.text
    assert choose_limits(mock, 160, None, 1).overlap_lat == 13, "a little less than it asks for"
    assert len(caplog.messages) == 1
    mock.tile = 192
    monkeypatch.setattr("srcli.engine.restore.free_bytes", lambda device: mock.cell_bytes * 48 * 48)
    assert choose_limits(mock, None, None, 1).overlap_lat == 8
    assert "tiles of 96 px are small" in caplog.messages[1]
    assert "memory has no room for larger ones" in caplog.messages[1]
