"""Rows with images that cannot be embedded are rejected one by one, each with its reason."""

from __future__ import annotations

import dataclasses
import errno
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import transformers
from PIL import Image

from operators.corpus.image_fetching import ImageAccess, fetch
from operators.corpus.images import MAX_IMAGE_BYTES, BadImage
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import embedder_spec
from operators.embedder.recipe.vision_facts import vision_facts
from operators.embedder.vision.decoding import MAX_PIXELS, decode
from operators.embedder.vision.reading import ImageReader
from operators.errors import InputError
from operators.storage import StorageError
from tests.vision_checkpoints import drawn, encoded, recipe_file, tiny_clip, tiny_llava


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises a size, with the beginning of its pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_image"),
        (b"these are no pixels", "undecodable_image"),
        (encoded(drawn(1))[:-40], "undecodable_image"),
        (encoded(drawn(1, 300, 200), "JPEG")[:900], "undecodable_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "undecodable_image"),
        (png_of_size(10_000, 10_000), "image_too_large"),
        (png_of_size(60_000, 60_000), "image_too_large"),  # PIL itself refuses to open this one
        (png_of_size(0, 10), "undecodable_image"),
        (encoded(Image.new("RGB", (1, 900))), "image_too_narrow"),
    ],
)
def test_an_image_that_cannot_be_embedded_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage) as caught:
        decode(data)
    assert caught.value.reason == reason
    assert str(caught.value)


def test_the_limit_on_pixels_is_that_of_pillow() -> None:
    assert Image.MAX_IMAGE_PIXELS == MAX_PIXELS


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        *((path, "missing_image") for path in ("none.jpg", "", "file.jpg/a.jpg", "x" * 300, "a\0b.jpg")),
        ("gopher://host/a.jpg", "refused_image"),
        ("http://127.0.0.1:9/a.jpg", "refused_image"),
    ],
)
def test_a_named_image_that_is_not_there_is_the_rows_fault(tmp_path: Path, path: str, reason: str) -> None:
    (tmp_path / "file.jpg").write_bytes(b"")
    with pytest.raises(BadImage) as caught:
        fetch({"bytes": None, "path": path if "://" in path else f"{tmp_path}/{path}"}, ImageAccess())
    assert caught.value.reason == reason


def test_a_storage_that_fails_is_not_the_rows_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(location: object) -> None:
        raise StorageError(errno.EHOSTUNREACH, "nothing answers")

    monkeypatch.setattr("operators.corpus.image_fetching.open_input", fails)
    with pytest.raises(StorageError):
        fetch({"bytes": None, "path": "s3://bucket/a.png"}, ImageAccess())


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    huge = tmp_path / "huge.png"
    with huge.open("wb") as stream:
        stream.truncate(MAX_IMAGE_BYTES + 1)
    with pytest.raises(BadImage) as caught:
        fetch({"bytes": None, "path": str(huge)}, ImageAccess())
    assert caught.value.reason == "image_too_large"


def test_bad_rows_leave_the_others_alone(tmp_path: Path) -> None:
    folder = tiny_clip(tmp_path / "model")
    reader = ImageReader(embedder_spec(str(recipe_file(tmp_path / "clip.yaml", folder)), EmbedderConfig(), tmp_path))
    good = encoded(drawn(3))
    (tmp_path / "beside.png").write_bytes(good)
    rows = pa.table(
        {
            "text": pa.array([None, None, "a word", "both", None]),
            "image": [
                {"bytes": good, "path": None},
                {"bytes": good[:50], "path": None},
                None,
                {"bytes": good, "path": None},
                {"bytes": None, "path": str(tmp_path / "beside.png")},
            ],
        }
    )
    read = reader(rows)
    assert {row: reason for row, (reason, _) in read.faults.items()} == {1: "undecodable_image", 3: "text_and_image"}
    assert read.pixels.is_valid().to_pylist() == [True, False, True]
    assert read.pixels[0].as_py() == read.pixels[2].as_py()
    assert read.hashes[0] == read.hashes[2] != read.hashes[1]
    assert read.num_tokens.tolist() == [17, 7, 17]  # 16 patches and the class token; five letters, start and end
    assert [len(ids) for ids in read.input_ids.to_pylist()] == [0, 7, 0]


def test_a_text_beside_an_image_may_not_hold_another(tmp_path: Path) -> None:
    folder = tiny_llava(tmp_path / "model")
    reader = ImageReader(embedder_spec(str(recipe_file(tmp_path / "r.yaml", folder)), EmbedderConfig(), tmp_path))
    read = reader(pa.table({"text": ["one <image> more"], "image": [{"bytes": encoded(drawn(1))}]}))
    assert read.faults[0][0] == "image_token_in_text"


def test_a_long_text_beside_an_image_is_cut_and_its_prompt_survives(tmp_path: Path) -> None:
    folder = tiny_llava(tmp_path / "model")
    recipe = recipe_file(tmp_path / "r.yaml", folder, max_tokens=120)
    reader = ImageReader(embedder_spec(str(recipe), EmbedderConfig(), tmp_path))
    images = [{"bytes": encoded(drawn(1))}] * 2
    read = reader(pa.table({"text": ["time", "time people year " * 100], "image": images}))
    short, long = read.input_ids.to_pylist()
    assert (len(long), read.truncated.tolist()) == (120, [False, True])
    assert long[-20:] == short[-20:]
    assert long.count(2) == short.count(2) == 16


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (300, 31), (64, 64), (5, 7), (33, 200), (1000, 10)])
def test_tokens_of_an_image_are_counted_as_the_processor_counts_them(tmp_path: Path, size: tuple[int, int]) -> None:
    folder = tiny_llava(tmp_path / "model", "llava_next")
    facts = vision_facts(folder, "vision_llm")
    processor = transformers.LlavaNextProcessor(
        transformers.AutoImageProcessor.from_pretrained(folder, backend="pil"),
        transformers.AutoTokenizer.from_pretrained(folder),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    expected = processor(images=[drawn(1, *size)], text=["<image>"])["input_ids"][0].count(2)
    assert facts.num_tokens(size[1], size[0]) == expected
    assert expected <= facts.max_num_tokens


def test_pixels_take_no_more_than_is_counted_for_a_fragment(tmp_path: Path) -> None:
    for kind in ("llava", "llava_next"):
        folder = tiny_llava(tmp_path / kind, kind)  # type: ignore[arg-type]  # the two kinds
        recipe = recipe_file(tmp_path / f"{kind}.yaml", folder)
        reader = ImageReader(embedder_spec(str(recipe), EmbedderConfig(), tmp_path))
        sizes = [reader.pixels(encoded(drawn(1, *size))).tiles_TCSS.nbytes for size in ((64, 64), (10, 60), (90, 20))]
        assert max(sizes) == reader.facts.max_pixel_bytes


def test_published_shapes_take_the_tokens_and_bytes_that_the_docs_say(tmp_path: Path) -> None:
    transformers.CLIPConfig().save_pretrained(tmp_path / "clip")  # ViT-B/32 is the default
    clip = vision_facts(tmp_path / "clip", "two_towers")
    assert (clip.width, clip.text_positions, clip.max_num_tokens, clip.max_pixel_bytes) == (512, 77, 50, 150_528)
    text = transformers.LlamaConfig(hidden_size=4096, max_position_embeddings=8192)
    grids = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    config = transformers.LlavaNextConfig(text_config=text, image_grid_pinpoints=grids)
    config.save_pretrained(tmp_path / "e5-v")
    e5_v = vision_facts(tmp_path / "e5-v", "vision_llm")
    # a square of 2 x 2 tiles with a line end for each of its 48 lines, and the whole image as a tile
    assert (e5_v.width, e5_v.max_num_tokens, e5_v.max_pixel_bytes) == (4096, 576 + 48 * 48 + 48, 5 * 3 * 336 * 336)


def test_a_processor_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = tiny_clip(tmp_path / "model", side=40)
    spec = embedder_spec(str(recipe_file(tmp_path / "clip.yaml", folder)), EmbedderConfig(), tmp_path)
    with pytest.raises(InputError, match="makes 3 x 40 x 40 values of an image, and the model takes 3 x 32 x 32"):
        ImageReader(spec)


def test_a_processor_that_crops_nothing_is_refused(tmp_path: Path) -> None:
    folder = tiny_clip(tmp_path / "model")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_center_crop": False}))
    spec = embedder_spec(str(recipe_file(tmp_path / "clip.yaml", folder)), EmbedderConfig(), tmp_path)
    with pytest.raises(InputError, match="check size and crop_size"):
        ImageReader(spec)


def test_another_image_processor_makes_other_vectors(tmp_path: Path) -> None:
    folder = tiny_clip(tmp_path / "model")
    recipe = recipe_file(tmp_path / "clip.yaml", folder)
    before = embedder_spec(str(recipe), EmbedderConfig(), tmp_path)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_mean": [0.5, 0.5, 0.5]}))
    after = embedder_spec(str(recipe), EmbedderConfig(), tmp_path)
    assert before.fingerprint != after.fingerprint
    with pytest.raises(InputError, match="not the one that the run was planned with"):
        ImageReader(before)
    assert np.isfinite(ImageReader(dataclasses.replace(after)).facts.width)
