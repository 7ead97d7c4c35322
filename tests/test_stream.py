from __future__ import annotations

import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from mock_restorer import HungryRestorer, MockRestorer
from PIL import Image
from torch import Tensor

from srcli.engine import stream as stream_module
from srcli.engine.by_rows import RowEngine
from srcli.engine.framing import finish, prepare_canvas
from srcli.engine.restore import Engine, Limits
from srcli.engine.stream import Stream
from srcli.errors import ImageError
from srcli.images.canvas import Canvas
from srcli.images.codec import Picture, decode
from srcli.images.files import Job, Outcome, plan_jobs
from srcli.images.resize import Size, enlarge_bicubic


def make_stream(restorer: MockRestorer, size: Size | None = None, batch: int = 2, **options: int) -> Stream:
    return Stream(RowEngine(restorer, Limits(16, 4, batch, None)), size or Size(scale=4), "none", 95, **options)


def jobs_of(folder: Path, output: Path) -> list[Job]:
    return list(plan_jobs([str(folder)], output))


def many(folder: Path, count: int, side: int = 20) -> list[Job]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        picture = rng.integers(0, 256, (side, side + index % 3, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{index:03}.png")
    return jobs_of(folder, folder.parent / "out")


def test_a_folder_comes_out_in_order_with_its_tree(photo_folder: Path, tmp_path: Path) -> None:
    jobs = jobs_of(photo_folder, tmp_path / "out")
    outcomes = list(make_stream(MockRestorer()).run(jobs))
    assert [outcome.job for outcome in outcomes] == jobs
    assert {outcome.status for outcome in outcomes} == {"done"}
    with Image.open(tmp_path / "out" / "sub" / "c.png") as image:
        assert image.size == (33 * 4, 50 * 4)


def test_an_identity_model_writes_the_bicubic_enlargement(photo_folder: Path, tmp_path: Path) -> None:
    job = Job(photo_folder / "a.png", tmp_path / "a.png")
    list(make_stream(MockRestorer()).run([job]))
    source = decode(job.source)
    expected = enlarge_bicubic(source.rgb, (source.height * 4, source.width * 4), 8)
    assert np.array_equal(decode(job.target).rgb, expected)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (Size(scale=2.5), (210, 150)),
        (Size(scale=8), (672, 480)),
        (Size(scale=1), (84, 60)),
        (Size(width=100), (100, 71)),
        (Size(height=90), (126, 90)),
        (Size(long_side=200), (200, 143)),
        (Size(width=100, height=50), (70, 50)),
    ],
)
def test_size_is_exact(photo_folder: Path, tmp_path: Path, size: Size, expected: tuple[int, int]) -> None:
    job = Job(photo_folder / "a.png", tmp_path / "a.png")
    (outcome,) = make_stream(MockRestorer(), size).run([job])
    assert outcome.output_size == expected
    with Image.open(job.target) as image:
        assert image.size == expected


def test_one_bad_file_stops_nothing_and_is_told(photo_folder: Path, tmp_path: Path) -> None:
    (photo_folder / "broken.jpg").write_bytes((photo_folder / "b.jpg").read_bytes()[:300])
    (photo_folder / "empty.png").touch()
    outcomes = list(make_stream(MockRestorer()).run(jobs_of(photo_folder, tmp_path / "out")))
    status = {outcome.job.source.name: outcome.status for outcome in outcomes}
    assert status == {"a.png": "done", "b.jpg": "done", "c.png": "done", "broken.jpg": "failed", "empty.png": "failed"}
    assert all(outcome.reason for outcome in outcomes if outcome.status == "failed")


def test_a_picture_that_spoils_a_batch_fails_alone(tmp_path: Path) -> None:
    class Picky(MockRestorer):
        def predict(self, latent: Tensor, *, exact: bool = False) -> Tensor:
            if (latent.amin(dim=(1, 2, 3)) == 1).any():
                raise ImageError("the white one")
            return super().predict(latent)

    jobs = many(tmp_path / "in", 4, 12)
    Image.new("RGB", (12, 12), "white").save(jobs[1].source)
    outcomes = list(make_stream(Picky(), batch=8).run(jobs))
    assert [outcome.status for outcome in outcomes] == ["done", "failed", "done", "done"]
    assert outcomes[1].reason == "the white one"


@pytest.mark.parametrize(("format", "side"), [("webp", 4096), ("jpg", 16376)])
def test_a_result_too_large_for_its_format_costs_no_work(tmp_path: Path, format: str, side: int) -> None:
    Image.new("L", (side, 1)).save(tmp_path / "wide.png")
    mock = MockRestorer()
    (outcome,) = make_stream(mock).run([Job(tmp_path / "wide.png", tmp_path / f"out.{format}")])
    assert outcome.status == "failed"
    assert f"{side * 4} x 4 px is over" in outcome.reason
    assert not mock.batches


def test_a_bug_in_one_image_is_a_failure_with_its_kind(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(picture: Picture, *rest: object) -> Picture:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(stream_module, "finish", finish)
    (outcome,) = make_stream(MockRestorer()).run([Job(photo_folder / "a.png", tmp_path / "a.png")])
    assert (outcome.status, outcome.reason) == ("failed", "unexpected ZeroDivisionError: oops")


def test_memory_errors_of_every_thread_are_failures_with_a_hint(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(photo_folder / "a.png", tmp_path / "a.png")
    for name in ("decode", "encode"):
        with monkeypatch.context() as patch:
            patch.setattr(stream_module, name, _raise_memory_error)
            (outcome,) = make_stream(MockRestorer()).run([job])
        assert (outcome.status, outcome.reason) == ("failed", "not enough memory for this picture")
        assert outcome.hint
    (outcome,) = make_stream(HungryRestorer(most_cells=1)).run([job])
    assert outcome.status == "failed"
    assert "not enough memory" in outcome.reason


def _raise_memory_error(*args: object) -> None:
    raise MemoryError


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    jobs = many(tmp_path / "in", 7)
    again = [Job(job.source, tmp_path / "again" / job.target.name) for job in jobs]
    list(make_stream(MockRestorer(0.3), batch=3).run(jobs))
    list(make_stream(MockRestorer(0.3), batch=3).run(again))
    for one, two in zip(jobs, again, strict=True):
        assert one.target.read_bytes() == two.target.read_bytes()


def test_batches_depend_on_the_order_of_images_not_on_timing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = many(tmp_path / "in", 9, 40)
    seen = []
    for delay in (0.0, 0.02):
        real = stream_module.decode

        def slow(path: Path, wait: float = delay, read: object = real) -> Picture:
            time.sleep(wait * (hash(path.name) % 3))
            return read(path)  # type: ignore[operator]

        with monkeypatch.context() as patch:
            patch.setattr(stream_module, "decode", slow)
            mock = MockRestorer()
            list(make_stream(mock, batch=4).run(jobs))
            seen.append(mock.batches)
    assert seen[0] == seen[1]
    assert max(shape[0] for shape in seen[0]) == 4


def test_what_is_in_flight_is_bounded_by_the_queue_not_by_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = many(tmp_path / "in", 60)
    alive, most, lock = 0, 0, threading.Lock()
    real_decode, real_encode = stream_module.decode, stream_module.encode

    def counted_decode(path: Path) -> Picture:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return real_decode(path)

    def slow_encode(picture: Picture, path: Path, format: str, quality: int, *rest: object) -> None:
        nonlocal alive
        time.sleep(0.005)
        real_encode(picture, path, format, quality)
        with lock:
            alive -= 1

    monkeypatch.setattr(stream_module, "decode", counted_decode)
    monkeypatch.setattr(stream_module, "encode", slow_encode)
    list(make_stream(MockRestorer(), batch=1).run(jobs))
    assert most <= 2 * stream_module.QUEUE_IMAGES + 2


def test_a_small_memory_budget_reads_one_picture_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = many(tmp_path / "in", 10)
    stream = make_stream(MockRestorer(), batch=1, queue_bytes=1)
    assert [outcome.status for outcome in stream.run(jobs)] == ["done"] * 10


def test_a_picture_that_the_machine_cannot_hold_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = many(tmp_path / "in", 3)
    Image.new("RGB", (400, 300)).save(tmp_path / "in" / "001.png")
    monkeypatch.setattr(stream_module, "free_host_bytes", lambda: 20 << 20)
    monkeypatch.setattr(stream_module.psutil, "swap_memory", lambda: type("Swap", (), {"free": 0}))
    outcomes = list(make_stream(MockRestorer(), batch=1, queue_bytes=1 << 20).run(jobs))
    assert [outcome.status for outcome in outcomes] == ["done", "failed", "done"]
    assert "needs 0.0 GB of memory" in outcomes[1].reason
    assert "--scale" in outcomes[1].hint


def test_a_small_memory_budget_restores_nothing_while_a_result_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writing = []

    class Watching(MockRestorer):
        def predict(self, latent: Tensor, *, exact: bool = False) -> Tensor:
            writing.append(len(started) - len(written))
            return super().predict(latent)

    started: list[Path] = []
    written: list[Path] = []
    real = stream_module.encode

    def slow(picture: Picture, path: Path, format: str, quality: int, *rest: object) -> None:
        started.append(path)
        time.sleep(0.01)
        real(picture, path, format, quality)
        written.append(path)

    monkeypatch.setattr(stream_module, "encode", slow)
    list(make_stream(Watching(), batch=1, queue_bytes=1).run(many(tmp_path / "in", 6)))
    assert len(written) == 6
    assert set(writing) == {0}


def test_a_large_memory_budget_restores_while_results_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = many(tmp_path / "in", 3)
    restored = [threading.Event() for _ in jobs]

    class Telling(MockRestorer):
        def predict(self, latent: Tensor, *, exact: bool = False) -> Tensor:
            restored[len({shape[1:] for shape in self.batches} | {latent.shape[1:]}) - 1].set()
            return super().predict(latent)

    real = stream_module.encode

    def patient(picture: Picture, path: Path, format: str, quality: int, *rest: object) -> None:
        if path == jobs[0].target:
            assert restored[1].wait(30), "the second picture waits for the first to be written"
        real(picture, path, format, quality)

    monkeypatch.setattr(stream_module, "encode", patient)
    stream = Stream(RowEngine(Telling(), Limits(64, 4, 1, None)), Size(scale=4), "none", 95, queue_bytes=1 << 20)
    assert [outcome.status for outcome in stream.run(jobs)] == ["done"] * 3


def test_the_network_s_floats_are_let_go_before_a_picture_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = many(tmp_path / "in", 5)
    floats: list[weakref.ref[Tensor]] = []
    real_restore, real_encode = Engine.restore, stream_module.encode
    alive = []

    def restore(self: Engine, pictures: list[Canvas], mixtures: object) -> list[Tensor]:
        results = real_restore(self, pictures, mixtures)  # type: ignore[arg-type]
        floats.extend(weakref.ref(result) for result in results)
        return results

    def encode(picture: Picture, path: Path, format: str, quality: int, *rest: object) -> None:
        alive.append(floats[[job.target for job in jobs].index(path)]() is not None)
        real_encode(picture, path, format, quality)

    monkeypatch.setattr(Engine, "restore", restore)
    monkeypatch.setattr(stream_module, "encode", encode)
    list(make_stream(MockRestorer(), batch=3).run(jobs))
    assert alive == [False] * 5


def test_what_is_counted_is_given_back_whatever_happens(tmp_path: Path) -> None:
    jobs = many(tmp_path / "in", 6, 12)
    jobs[1].source.write_bytes(b"no picture")
    (tmp_path / "out" / jobs[2].target.name).mkdir(parents=True)
    Image.new("RGB", (12, 12), "white").save(jobs[3].source)

    class Picky(MockRestorer):
        def predict(self, latent: Tensor, *, exact: bool = False) -> Tensor:
            if (latent.amin(dim=(1, 2, 3)) == 1).any():
                raise ImageError("the white one")
            return super().predict(latent)

    stream = make_stream(Picky(), batch=1)
    outcomes = list(stream.run(jobs))
    assert [outcome.status for outcome in outcomes] == ["done", "failed", "failed", "failed", "done", "done"]
    assert stream.results.held == 0


@pytest.mark.parametrize("format", ["png", "jpeg"])
@pytest.mark.parametrize("kind", ["gray", "gray16", "alpha", "alpha16", "rgb", "rgb16"])
@pytest.mark.parametrize("fix", ["adain", "wavelet", "none"])
def test_the_height_of_bands_does_not_show(fix: str, kind: str, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    channels, dtype = {"gray": 1, "alpha": 4, "rgb": 3}[kind.removesuffix("16")], np.uint16 if "16" in kind else np.uint8
    rng = np.random.default_rng(0)
    picture = Picture(rng.integers(0, np.iinfo(dtype).max + 1, (31, 18, channels), dtype=dtype))
    canvas = prepare_canvas(picture, 4, 0, "bicubic")
    sr = torch.from_numpy(rng.random((3, 124, 72), dtype=np.float32)) * 2 - 1
    for size in ((72, 124), (36, 62), (144, 248), (50, 81)):
        whole = finish(picture, sr, canvas, size, fix, format)
        with monkeypatch.context() as patch:
            patch.setattr("srcli.images.rows.BAND_PIXELS", 1)
            banded = finish(picture, sr, canvas, size, fix, format)
        assert (banded.width, banded.height) == size
        assert banded.levels.dtype == (np.uint16 if format == "png" and dtype is np.uint16 else np.uint8)
        assert banded.levels.shape[2] == (3 if channels == 4 and format == "jpeg" else channels)
        difference = np.abs(banded.levels.astype(int) - whole.levels)
        assert difference.max() <= 1
        assert (difference > 0).mean() < (2e-2 if banded.bit_depth == 16 else 1e-3)


def test_a_result_in_half_precision_is_finished_too(photo: np.ndarray) -> None:
    picture = Picture(photo)
    canvas = prepare_canvas(picture, 4, 0, "bicubic")
    exact = torch.rand(3, canvas.height, canvas.width, generator=torch.manual_seed(0)) * 2 - 1
    size = (canvas.width, canvas.height)
    wanted = finish(picture, exact, canvas, size, "adain").levels.astype(int)
    for dtype in (torch.float16, torch.bfloat16):
        found = finish(picture, exact.to(dtype), canvas, size, "adain").levels
        assert np.abs(found - wanted).max() <= 1 + 128 * torch.finfo(dtype).eps


def test_interruption_keeps_what_was_restored_and_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = many(tmp_path / "in", 12)

    class Interrupting(MockRestorer):
        def predict(self, latent: Tensor, *, exact: bool = False) -> Tensor:
            if len(self.batches) == 4:
                raise KeyboardInterrupt
            return super().predict(latent)

    outcomes: list[Outcome] = []
    stream = make_stream(Interrupting(), batch=1)
    real = stream_module.encode
    monkeypatch.setattr(stream_module, "encode", lambda *rest: time.sleep(0.1) or real(*rest))
    with pytest.raises(KeyboardInterrupt):
        outcomes.extend(stream.run(jobs))
    assert stream.late
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == [job.target.name for job in jobs[: len(written)]]
    assert len(written) >= 1
    assert [(each.job.target.name, each.status) for each in [*outcomes, *stream.late]] == [(name, "done") for name in written]
    for path in (tmp_path / "out").iterdir():
        decode(path)


def test_the_clock_tells_who_waited_for_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = many(tmp_path / "in", 6)
    real = stream_module.decode
    monkeypatch.setattr(stream_module, "decode", lambda path: time.sleep(0.05) or real(path))
    slow_input = make_stream(MockRestorer(), batch=1)
    list(slow_input.run(jobs))
    assert slow_input.clock.waiting_for_input > 0.05
    assert slow_input.clock.model > 0


def test_small_inputs_are_enlarged_first_and_narrow_ones_within_bounds(photo: np.ndarray) -> None:
    def canvas_size(height: int, width: int, min_side: int) -> tuple[int, ...]:
        canvas = prepare_canvas(Picture(np.zeros((height, width, 3), dtype=np.uint8)), 4, min_side, "bicubic")
        return canvas.height, canvas.width

    assert canvas_size(64, 96, 0) == (256, 384)
    assert canvas_size(64, 96, 128) == (512, 768)
    assert canvas_size(1, 4000, 128) == (4, 16000)
    assert canvas_size(1, 100, 128) == (40, 4096)


def test_alpha_and_depth_survive(tmp_path: Path) -> None:
    y, x = np.mgrid[0:24, 0:30]
    rgba = np.stack([x * 8, y * 10, x + y, np.where(x > 15, 255, 0)], -1).astype(np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    list(make_stream(MockRestorer()).run([Job(tmp_path / "a.png", tmp_path / "b.png")]))
    result = decode(tmp_path / "b.png")
    assert result.alpha is not None
    assert result.alpha.shape == (96, 120)
    assert result.alpha[50, 10] == 0
    assert result.alpha[50, 110] == 1


def test_restored_tensors_are_not_changed_by_later_pictures(photo_folder: Path, tmp_path: Path) -> None:
    jobs = jobs_of(photo_folder, tmp_path / "out")
    list(make_stream(MockRestorer(), batch=8).run(jobs))
    source = decode(jobs[0].source)
    expected = enlarge_bicubic(source.rgb, (source.height * 4, source.width * 4), 8)
    assert np.array_equal(decode(jobs[0].target).rgb, expected)
    assert torch.is_inference_mode_enabled() is False
