"""Captions of photos: from lists, from files beside them, from a model; and what is said when there are none."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from srcli.errors import ImageError, ModelError, OutOfMemoryError, UsageError
from srcli.training.data import captioner
from srcli.training.data.captions import Captions, full_prompt, read_captions

CPU = torch.device("cpu")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
WORDS = [*SPECIAL, "a", "red", "green", "blue", "dark", "bright", "cat", "dog", "house", "tree", "on", "under", "the", "mat"]


@pytest.fixture
def photos(photo_folder: Path) -> list[Path]:
    """`a.png`, `b.jpg` and `sub/c.png`."""
    return [photo_folder / name for name in ("a.png", "b.jpg", "sub/c.png")]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("srcli"), "propagate", True)
    caplog.set_level(logging.INFO, "srcli")
    return caplog


def captions_of(source: str | Path, photos: Sequence[Path], cache: Path = Path("unused.tsv")) -> Captions:
    return read_captions(str(source), photos, cache=cache, device=CPU)


def named(captions: Captions) -> dict[str, str]:
    return {path.name: caption for path, caption in captions.by_path.items()}


# Prompts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "suffix", "prompt"),
    [("a cat", "sharp", "a cat, sharp"), ("a cat", "", "a cat"), (" ", " sharp ", "sharp"), ("", "", "")],
)
def test_a_prompt_is_the_caption_and_the_suffix_where_they_are_given(caption: str, suffix: str, prompt: str) -> None:
    assert full_prompt(caption, suffix) == prompt


@pytest.mark.parametrize("source", ["", "fixed"])
def test_without_a_source_nothing_is_missing(source: str, photos: list[Path]) -> None:
    assert captions_of(source, photos) == Captions({}, [])


# Files beside the photos ---------------------------------------------------------------------------------------------


def test_captions_lie_beside_the_photos(photos: list[Path]) -> None:
    photos[1].with_suffix(".txt").write_text("\ufeff  a cat\n on a\tmat \n", encoding="utf-8")
    photos[2].with_suffix(".txt").write_text(" \n")
    captions = captions_of("sidecar", photos)
    assert captions == Captions({photos[1]: "a cat on a mat"}, [photos[0], photos[2]])


def test_unreadable_files_beside_the_photos_are_all_named(photos: list[Path]) -> None:
    for photo in photos[:2]:
        photo.with_suffix(".txt").write_bytes(b"caf\xe9")
    photos[2].with_suffix(".txt").mkdir()
    with pytest.raises(UsageError) as caught:
        captions_of("sidecar", photos)
    assert caught.value.message.count("is not UTF-8") == 2
    assert f"`{photos[2].with_suffix('.txt')}`: Is a directory" in caught.value.message


# Lists ---------------------------------------------------------------------------------------------------------------


def test_a_list_names_photos_relative_to_itself_in_full_or_by_the_end_of_their_path(photos: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "list.tsv"
    lines = ["# photos", "", "photos/a.png\ta cat ", f"{photos[1]}\tun café", "./sub/c.png\ta  dog", "other.png\tnot here"]
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert captions_of(file, photos).by_path == dict(zip(photos, ["a cat", "un café", "a dog"], strict=True))
    file.write_text("b.jpg\tby its name\na.png\t\n")
    assert captions_of(file, photos) == Captions({photos[1]: "by its name"}, [photos[0], photos[2]])


def test_relative_photos_and_other_spellings_of_accents_are_found(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    decomposed = Path("photos/cafe\u0301.png")
    shutil.copy(photos[0], decomposed)
    (tmp_path / "list.tsv").write_text("caf\u00e9.png\ta café\nphotos/b.jpg\tb\n", encoding="utf-8")
    relative = [decomposed, Path("photos/b.jpg")]
    assert captions_of("list.tsv", relative).by_path == {relative[0]: "a café", relative[1]: "b"}


def test_all_faulty_lines_of_a_list_are_named(photos: list[Path], tmp_path: Path) -> None:
    shutil.copy(photos[0], photos[2].parent / "a.png")
    photos.append(photos[2].parent / "a.png")
    file = tmp_path / "elsewhere" / "list.tsv"
    file.parent.mkdir()
    lines = [
        b"no tab",
        b"b.jpg\tb",
        b"x\t\xff",
        b"a\tb\tc",
        b"none",
        b"none",
        b"\tno path",
        b"a.png\ta",
        b"b.jpg\tother",
        b"none",
    ]
    file.write_bytes(b"\n".join(lines))
    with pytest.raises(UsageError) as caught:
        captions_of(file, photos)
    title, *faults = caught.value.message.splitlines()
    assert title == f"cannot use the list of captions `{file}`"
    assert faults == [
        "  - not UTF-8: line 3",
        "  - without a tab: lines 1, 5-6, 10",
        "  - with more than one tab: line 4",
        "  - without a path: line 7",
        f"  - line 8: `a.png` may be `{photos[0]}` or `{photos[3]}`: write more of the path",
        "  - line 9: `b.jpg` has another caption on line 2",
    ]


def test_a_path_that_is_exact_needs_no_more_of_itself(photos: list[Path], photo_folder: Path) -> None:
    shutil.copy(photos[0], photo_folder / "sub" / "a.png")
    photos.append(photo_folder / "sub" / "a.png")
    file = photo_folder / "list.tsv"
    file.write_text("a.png\tupper\nsub/a.png\tlower\nsub/a.png\tlower\n")
    assert captions_of(file, photos).by_path == {photos[0]: "upper", photos[3]: "lower"}


def test_a_missing_list_is_told(tmp_path: Path, photos: list[Path]) -> None:
    with pytest.raises(UsageError, match=r"none.tsv` is missing") as caught:
        captions_of(tmp_path / "none.tsv", photos)
    assert all(word in caught.value.hint for word in ("`sidecar`", "`model:REPO_OR_DIR`", "tab"))
    with pytest.raises(UsageError, match="is a folder"):
        captions_of(tmp_path, photos)


def test_no_caption_at_all_is_an_error_with_an_example(tmp_path: Path, photos: list[Path]) -> None:
    with pytest.raises(UsageError, match="`sidecar` has no caption for any of the 3 photos") as caught:
        captions_of("sidecar", photos)
    assert f"`{photos[0].with_suffix('.txt')}`" in caught.value.hint
    (tmp_path / "list.tsv").write_text("x.png\ta cat\n")
    with pytest.raises(UsageError, match=r"list.tsv` has no caption for any of the 3 photos") as caught:
        captions_of(tmp_path / "list.tsv", photos)
    assert str(photos[0]) in caught.value.hint


def test_a_photo_may_be_called_like_a_comment(tmp_path: Path) -> None:
    photo = tmp_path / "#1.png"
    Image.new("RGB", (8, 8)).save(photo)
    (tmp_path / "list.tsv").write_text("# the photos\n#2.png\tnone of them\n#1.png\ta cat\n")
    found = read_captions(str(tmp_path / "list.tsv"), [photo], cache=tmp_path / "cache", device=torch.device("cpu"))
    assert found.by_path == {photo: "a cat"}


# A model -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BLIP of 30 kB whose captions differ between pictures."""
    folder = tmp_path_factory.mktemp("blip")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.utils.logging.disable_progress_bar()
    image_processor: Any = getattr(transformers, "BlipImageProcessorPil", None) or transformers.BlipImageProcessor
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = transformers.BlipConfig(
        text_config={"vocab_size": len(WORDS), "encoder_hidden_size": 16, "initializer_range": 0.8, **small, **special},
        vision_config={"image_size": 32, "patch_size": 16, "initializer_range": 0.8, **small},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BlipForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
    transformers.BlipProcessor(image_processor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def plain(tmp_path: Path) -> list[Path]:
    """Ten pictures of one colour each: more than a batch."""
    folder = tmp_path / "plain"
    folder.mkdir()
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (5, 5, 5), (250, 250, 250)] * 2
    paths = [folder / f"{number}.png" for number in range(len(colours))]
    for path, colour in zip(paths, colours, strict=True):
        Image.new("RGB", (40, 30), colour).save(path)
    return paths


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the photos that a model is shown."""
    names: list[str] = []
    picture = captioner._picture

    def noted(photo: Path) -> Image.Image:
        names.append(photo.name)
        return picture(photo)

    monkeypatch.setattr(captioner, "_picture", noted)
    return names


def test_a_model_captions_each_photo(blip: Path, plain: list[Path], tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    cache = tmp_path / "out" / "captions.tsv"
    before = torch.get_rng_state()
    captions = captions_of(f"model:{blip}", plain, cache)
    assert torch.equal(torch.get_rng_state(), before)
    texts = list(captions.by_path.values())
    assert list(captions.by_path) == plain
    assert captions.missing == []
    assert texts[:5] == texts[5:]
    assert len(set(texts)) > 1
    assert all(text and set(text.split()) <= set(WORDS) for text in texts)
    lines = cache.read_text().splitlines()
    assert lines[0] == f"# srcli captions by {blip}"
    assert lines[1:] == [f"{path}\t{text}" for path, text in captions.by_path.items()]
    assert list(cache.parent.iterdir()) == [cache]
    assert f"captioning 10 photos with `{blip}`; `{cache}` holds 0 captions" in told.messages
    assert captions_of(cache, plain) == captions  # it is a list like any other


def test_only_new_photos_are_captioned_the_next_time(blip: Path, plain: list[Path], tmp_path: Path, seen: list[str]) -> None:
    cache = tmp_path / "captions.tsv"
    first = captions_of(f"model:{blip}", plain[:3], cache)
    assert sorted(seen) == ["0.png", "1.png", "2.png"]
    lines = cache.read_text().splitlines()
    cache.write_text("\n".join([lines[0], f"{plain[0]}\tby hand", *lines[2:], ""]))
    seen.clear()
    second = captions_of(f"model:{blip}", plain[:4], cache)
    assert seen == ["3.png"]
    assert second.by_path == {**first.by_path, plain[0]: "by hand", plain[3]: second.by_path[plain[3]]}
    seen.clear()
    assert captions_of(f"model:{blip}", plain[:4], cache) == second
    assert seen == []


def test_captions_of_another_model_are_made_anew(
    blip: Path, plain: list[Path], tmp_path: Path, seen: list[str], told: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "captions.tsv"
    cache.write_text(f"# srcli captions by other/model\n{plain[0]}\ta fish\n")
    captions = captions_of(f"model:{blip}", plain[:2], cache)
    assert sorted(seen) == ["0.png", "1.png"]
    assert "a fish" not in captions.by_path.values()
    assert f"the captions in `{cache}` are by `other/model`: they are made anew by `{blip}`" in told.messages
    assert cache.read_text().startswith(f"# srcli captions by {blip}\n")


def test_a_run_that_breaks_off_keeps_its_captions(blip: Path, plain: list[Path], tmp_path: Path, seen: list[str]) -> None:
    cache = tmp_path / "captions.tsv"
    plain[9].write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"9\.png"):
        captions_of(f"model:{blip}", plain, cache)
    assert len(cache.read_text().splitlines()) == 1 + captioner.BATCH
    seen.clear()
    captions_of(f"model:{blip}", plain[:9], cache)
    assert seen == ["8.png"]


def test_a_file_that_is_no_cache_is_not_written_over(blip: Path, plain: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "captions.tsv"
    cache.write_text("my own list\n")
    with pytest.raises(UsageError, match="is no file of srcli's captions"):
        captions_of(f"model:{blip}", plain, cache)
    assert cache.read_text() == "my own list\n"
    cache.write_text(f"# srcli captions by {blip}\nx\n")
    with pytest.raises(UsageError, match=r"is damaged\n  - without a tab: line 2"):
        captions_of(f"model:{blip}", plain, cache)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write `.*file/captions.tsv`"):
        captions_of(f"model:{blip}", plain, tmp_path / "file" / "captions.tsv")


def test_a_photo_without_a_caption_is_missing_and_not_asked_again(
    plain: list[Path], tmp_path: Path, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dumb(name: str, device: torch.device) -> Any:
        return lambda pictures: [" a\ncat "] + [""] * (len(pictures) - 1)

    monkeypatch.setattr(captioner, "_captioner", dumb)
    cache = tmp_path / "captions.tsv"
    for _ in range(2):
        assert captions_of("model:some/model", plain[:3], cache) == Captions({plain[0]: "a cat"}, plain[1:3])
    assert len(seen) == 3
    with pytest.raises(UsageError, match="has no caption for any of the 2 photos") as caught:
        captions_of("model:some/model", plain[1:3], cache)
    assert "image-to-text model" in caught.value.hint


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (TypeError("needs text"), ModelError, "`some/model` cannot caption photos: needs text"),
        (torch.OutOfMemoryError("CUDA"), OutOfMemoryError, "`some/model` does not fit into the memory of `cpu`"),
    ],
)
def test_a_model_that_fails_leaves_no_cache(
    fault: Exception, kind: type[Exception], message: str, plain: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(pictures: list[Image.Image]) -> list[str]:
        raise fault

    monkeypatch.setattr(captioner, "_captioner", lambda name, device: failing)
    with pytest.raises(kind, match=message):
        captions_of("model:some/model", plain, tmp_path / "captions.tsv")
    assert not (tmp_path / "captions.tsv").exists()


def test_a_model_that_is_not_there_is_told(plain: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot load the captioning model `srcli-tests/no-such-model`: .") as caught:
        captions_of("model:srcli-tests/no-such-model", plain, tmp_path / "captions.tsv")
    assert "`HF_HOME`" in caught.value.hint
    for name in ("", tmp_path / "none", "./none", "a/b/c"):
        with pytest.raises(ModelError, match=f"the captioning model `{name}` is no folder"):
            captions_of(f"model:{name}", plain, tmp_path / "captions.tsv")


def test_a_model_for_something_else_cannot_caption(plain: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"`{tmp_path}` cannot caption photos: .*config.json"):
        captions_of(f"model:{tmp_path}", plain, tmp_path / "captions.tsv")
    config = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"cannot caption photos: .*BertConfig") as caught:
        captions_of(f"model:{tmp_path}", plain, tmp_path / "captions.tsv")
    assert "`Salesforce/blip-image-captioning-base`" in caught.value.hint


def test_a_model_that_lacks_weights_is_noted(
    blip: Path, plain: list[Path], tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(blip, tmp_path / "model")
    weights = load_file(blip / "model.safetensors")
    del weights["vision_model.post_layernorm.weight"]
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    captions_of(f"model:{tmp_path / 'model'}", plain[:1], tmp_path / "captions.tsv")
    assert f"`{tmp_path / 'model'}` lacks 1 weight, in whose place is chance: look at its captions" in told.messages


def test_large_photos_are_shrunk_and_turned_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (3000, 1500), (200, 0, 0))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "x.jpg", exif=exif)
    assert captioner._picture(tmp_path / "x.jpg").size == (512, 1024)
