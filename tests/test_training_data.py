from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_case import make_photos

from srcli.config.degradation import Degradation
from srcli.errors import UsageError
from srcli.training.data.crops import CropSettings, Pixels, StepOrder, TrainingCrops, finish, make_loader, random_crop
from srcli.training.data.sources import Photo, Source, find_sources
from srcli.training.validation import fixed_samples

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos"))


def crops(photos: Path, **changes: object) -> TrainingCrops:
    sources, _ = find_sources([str(photos)], 32, 4)
    return TrainingCrops(sources, CropSettings(**({"crop": 32, "seed": 3} | changes)))  # type: ignore[arg-type]


def blank(side: int) -> Pixels:
    return Pixels(np.zeros((side, side, 3), np.uint8))


def test_samples_depend_on_seed_and_index_alone(photos: Path) -> None:
    data, again, other = crops(photos), crops(photos, cache_bytes=0), crops(photos, seed=4)
    for index in (31, 0, 7):
        one, two = data[index], again[index]
        assert np.array_equal(one.hq, two.hq)
        assert np.array_equal(one.lq, two.lq)  # type: ignore[arg-type]
        assert one.hq.shape == (32, 32, 3)
        assert not np.array_equal(one.hq, other[index].hq)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_the_same_with_any_number_of_workers(photos: Path, workers: int) -> None:
    data = crops(photos)
    order = StepOrder(2, 6, 2)
    seen = [finish(samples, CPU) for samples in make_loader(data, order, workers, pinned=False)]
    assert [batch.indices for batch in seen] == [[4, 5], [6, 7], [8, 9], [10, 11]]
    for batch in seen:
        again = finish([data[index] for index in batch.indices], CPU)
        assert torch.equal(batch.lq, again.lq)
        assert torch.equal(batch.hq, again.hq)


def test_processes_share_out_the_samples_of_a_step() -> None:
    one = list(StepOrder(0, 3, 4))
    two = [list(StepOrder(0, 3, 2, process, 2)) for process in (0, 1)]
    assert [first + second for first, second in zip(*two, strict=True)] == one
    assert len(StepOrder(5, 9, 2)) == 4


def test_every_photo_is_drawn_once_a_lap(photos: Path) -> None:
    data = crops(photos)
    drawn: list[Path] = []
    data._pixels = lambda path: drawn.append(path) or blank(40)  # type: ignore[method-assign]
    for index in range(10):
        data[index]
    assert set(Counter(drawn).values()) == {2}


def test_sources_are_drawn_by_their_weights(tmp_path: Path) -> None:
    heavy = Source((Photo(tmp_path / "heavy"),), 3.0)
    light = Source((Photo(tmp_path / "light"),), 1.0)
    data = TrainingCrops([heavy, light], CropSettings(32))
    drawn: list[str] = []
    data._pixels = lambda path: drawn.append(path.name) or blank(32)  # type: ignore[method-assign]
    for index in range(400):
        data[index]
    assert 260 <= drawn.count("heavy") <= 340  # 300 expected, deviation 8.7


def test_each_source_goes_round_in_laps_of_its_own(tmp_path: Path) -> None:
    sources = [Source(tuple(Photo(tmp_path / name / str(i)) for i in range(50)), w) for name, w in (("a", 1.0), ("b", 3.0))]
    drawn: list[Path] = []

    def read(path: Path) -> Pixels:
        drawn.append(path)
        return blank(32)

    data = TrainingCrops(sources, CropSettings(32))
    data._pixels = read  # type: ignore[method-assign]
    for index in range(300):
        data[index]
    assert len(drawn) == 300
    for source in ("a", "b"):
        names = [path.name for path in drawn if path.parent.name == source]
        for lap in range(len(names) // 50):
            assert len(set(names[lap * 50 : lap * 50 + 50])) == 50


def test_a_run_that_begins_late_draws_what_one_that_came_there_draws(tmp_path: Path) -> None:
    sources = [Source(tuple(Photo(tmp_path / name / str(i)) for i in range(50)), w) for name, w in (("a", 1.0), ("b", 3.0))]
    drawn: list[tuple[int, Path]] = []
    for order in (range(4000, 4200), (4199, 4096, 4095, 4001)):
        data = TrainingCrops(sources, CropSettings(32))
        for index in order:
            data._pixels = lambda path, i=index: drawn.append((i, path)) or blank(32)  # type: ignore[misc]
            data[index]
    assert set(drawn[200:]) < set(drawn[:200])


def test_what_one_source_gives_is_what_it_always_gave(photos: Path) -> None:
    """Recipes that were trained from one folder stay what they are; the sums were taken before sources had laps of their own."""
    data, sums = crops(photos), [365640, 365496, 215424, 369040]
    assert [int(data[index].hq.astype(np.int64).sum()) for index in (0, 1, 7, 5000)] == sums


@pytest.mark.parametrize("lq_size", [(30, 22), (120, 90)])
def test_pairs_are_cropped_at_the_same_place(tmp_path: Path, lq_size: tuple[int, int]) -> None:
    y, x = np.mgrid[0:90, 0:120]
    hq = np.stack([x * 2, y * 2, x * 0], -1).astype(np.uint8)
    lq = np.asarray(Image.fromarray(hq).resize(lq_size, Image.Resampling.BOX))
    for seed in range(8):
        pair = Pixels(hq[:88]), Pixels(lq[: 88 * lq_size[1] // 90])
        big, small = random_crop(*pair, 32, 4, np.random.default_rng(seed))
        assert small is not None
        assert big.shape == (32, 32, 3)
        assert np.abs(big.mean((0, 1)) - small.mean((0, 1))).max() < 3


def test_a_real_partner_is_not_degraded(tmp_path: Path) -> None:
    make_photos(tmp_path / "hq", 1, (64, 64))
    (tmp_path / "lq").mkdir()
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / "lq/0.png")
    sources, _ = find_sources([f"{tmp_path / 'hq'},lq={tmp_path / 'lq'}"], 32, 4)
    batch = finish([TrainingCrops(sources, CropSettings(32))[0]], CPU)
    expected = torch.tensor([200, 100, 50]) / 127.5 - 1
    assert torch.allclose(batch.lq[0].amax((1, 2)), expected, atol=1e-6)
    assert torch.allclose(batch.lq[0].amin((1, 2)), expected, atol=1e-6)


def test_a_photo_that_breaks_later_is_named_and_another_one_taken(photos: Path, tmp_path: Path) -> None:
    own = make_photos(tmp_path, 3)
    sources, _ = find_sources([str(own)], 32, 4)
    (own / "1.png").write_bytes((own / "1.png").read_bytes()[:200])
    data = TrainingCrops(sources, CropSettings(32))
    samples = [data[index] for index in range(3)]
    assert {skipped.path.name for sample in samples for skipped in sample.skipped} == {"1.png"}
    assert all(sample.hq.shape == (32, 32, 3) for sample in samples)


def test_when_nothing_can_be_read_it_says_so(tmp_path: Path) -> None:
    own = make_photos(tmp_path, 2)
    sources, _ = find_sources([str(own)], 32, 4)
    for file in own.iterdir():
        file.write_bytes(b"gone bad")
    with pytest.raises(UsageError, match="2 photos in a row cannot be read") as caught:
        finish([TrainingCrops(sources, CropSettings(32))[0]], CPU)
    assert all(f"`{file}` cannot be read" in caught.value.message for file in own.iterdir())


def test_nothing_that_is_hidden_is_learnt(tmp_path: Path) -> None:
    """Under full transparency lies green: crops have the colours that `upscale` gives such places."""
    y, x = np.mgrid[0:200, 0:300]
    disc = np.hypot(y - 150, x - 40) < 20
    pixels = np.where(disc[..., None], (200, 60, 40, 255), (0, 255, 0, 0)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (source,), _ = find_sources([str(tmp_path)], 32, 4)
    data = TrainingCrops([source], CropSettings(32))
    assert {tuple(color) for index in range(8) for color in data[index].hq.reshape(-1, 3)} == {(200, 60, 40)}
    (held_out,) = fixed_samples(source.photos, CropSettings(32))
    assert {tuple(color) for color in held_out.hq.reshape(-1, 3)} == {(200, 60, 40)}


def test_a_photo_of_which_nothing_can_be_seen_is_left_out(tmp_path: Path) -> None:
    own = make_photos(tmp_path, 1)
    Image.new("RGBA", (64, 64), (0, 255, 0, 0)).save(tmp_path / "void.png")
    data = TrainingCrops(find_sources([str(own)], 32, 4)[0], CropSettings(32))
    skipped = [skipped for index in range(2) for skipped in data[index].skipped]
    assert [(each.path.name, each.reason) for each in skipped] == [("void.png", "is fully transparent")]


def test_what_is_shown_is_never_missed(tmp_path: Path) -> None:
    """One pixel of a large photo, beside a partner of its size or of a fourth of it."""
    for place in ((0, 0), (199, 399), (100, 3)):
        shown = np.zeros((200, 400), bool)
        shown[place] = True
        levels = np.zeros((200, 400, 3), np.uint8)
        levels[place] = 255
        for seed in range(4):
            hq, _ = random_crop(Pixels(levels, shown), None, 32, 4, np.random.default_rng(seed))
            assert hq.max() == 255
            hq, _ = random_crop(Pixels(levels, shown), Pixels(levels[::4, ::4]), 32, 4, np.random.default_rng(seed))
            assert hq.max() == 255


@pytest.mark.parametrize("back", ["bicubic", "random"])
def test_degrading_later_in_batches_gives_the_same_as_in_a_worker(photos: Path, back: str) -> None:
    changes: dict[str, object] = {"crop": 64, "how": Degradation(resize_back=back)}
    early, late = crops(photos, **changes), crops(photos, degrade_later=True, **changes)
    one, two = (finish([data[index] for index in range(12)], CPU) for data in (early, late))
    assert torch.equal(one.hq, two.hq)
    assert torch.equal(one.lq, two.lq)


def test_the_crop_must_fit_the_scale(photos: Path) -> None:
    with pytest.raises(UsageError, match="not a multiple"):
        crops(photos, crop=34)
