"""Images, texts and both get the vectors that plain transformers gives each of them alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image

from operators.embedder.factory import load_embedder
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import EmbedderSpec, embedder_spec
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.embedder.vision.reading import ImageReader
from tests.operators.embedder.references import Record, compare
from tests.vision_checkpoints import (
    BOTH_PROMPT,
    IMAGE_PROMPT,
    TEXT_PROMPT,
    drawn,
    encoded,
    recipe_file,
    tiny_clip,
    tiny_llava,
    tiny_siglip,
)

TEXTS = ["a red bicycle", "Two dogs, one ball!", "the house near the water " * 9]
IMAGES = [drawn(1), drawn(2, 40, 90), drawn(3, 64, 64), drawn(4, 33, 200), drawn(5, 20, 12)]

Vectors = NDArray[np.float32]


def spec_of(folder: Path, **fields: object) -> EmbedderSpec:
    recipe = recipe_file(folder.parent / f"{folder.name}.yaml", folder, **fields)
    return embedder_spec(str(recipe), EmbedderConfig(), folder.parent)


def ours(spec: EmbedderSpec, rows: list[tuple[str | None, Image.Image | None]], batch_tokens: int) -> Vectors:
    reader = ImageReader(spec)
    images = [None if image is None else {"bytes": encoded(image)} for _, image in rows]
    read = reader(pa.table({"text": pa.array([text for text, _ in rows], pa.string()), "image": images}))
    assert read.faults == {}
    inputs = pa.StructArray.from_arrays([read.input_ids, read.pixels], ["input_ids", "pixels"])
    vectors = load_embedder(spec, batch_tokens=batch_tokens, device="cpu")(inputs)
    assert vectors.finite_N.all()
    return vectors.values_ND


def unit(vectors: torch.Tensor) -> Vectors:
    return torch.nn.functional.normalize(vectors.detach().float(), dim=-1).numpy()


def mixed() -> list[tuple[str | None, Image.Image | None]]:
    rows: list[tuple[str | None, Image.Image | None]] = [(None, image) for image in IMAGES]
    for number, text in enumerate(TEXTS):
        rows.insert(2 * number, (text, None))
    return rows


@pytest.mark.parametrize("batch_tokens", [1, 2048])
@pytest.mark.parametrize(("make", "max_length"), [(tiny_clip, 24), (tiny_siglip, 16)])
def test_two_towers_equal_the_model_and_its_processor(
    tmp_path: Path, make: Callable[[Path], Path], max_length: int, batch_tokens: int, record_property: Record
) -> None:
    folder = make(tmp_path / "model")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    expected = []
    for text, image in mixed():
        if image is not None:
            pixels = processor(images=[image], return_tensors="pt")
            expected.append(unit(model.get_image_features(**pixels).pooler_output)[0])
            continue
        padding = "max_length" if max_length == 16 else False
        ids = tokenizer([text], padding=padding, truncation=True, max_length=max_length, return_tensors="pt").input_ids
        expected.append(unit(model.get_text_features(input_ids=ids).pooler_output)[0])
    found = ours(spec_of(folder), mixed(), batch_tokens)
    recipe = "clip-vit-b-32" if make is tiny_clip else "siglip2-base"
    compare(record_property, recipe, f"{type(model).__name__} and its processor, each alone", found, expected)


@pytest.mark.parametrize("batch_tokens", [1, 2048])
@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_a_vision_llm_equals_the_last_state_of_its_prompts(
    tmp_path: Path, kind: str, batch_tokens: int, record_property: Record
) -> None:
    folder = tiny_llava(tmp_path / "model", kind)  # type: ignore[arg-type]  # the two kinds
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    processor_class = transformers.LlavaProcessor if kind == "llava" else transformers.LlavaNextProcessor
    processor = processor_class(
        image_processor,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    rows = [*mixed(), (TEXTS[0], IMAGES[3]), (TEXTS[2], IMAGES[0])]
    expected = []
    for text, image in rows:
        if image is None:
            inputs = tokenizer([TEXT_PROMPT.replace("{text}", text or "")], return_tensors="pt")
            inputs = {"input_ids": inputs.input_ids}
        else:
            prompt = IMAGE_PROMPT if text is None else BOTH_PROMPT.replace("{text}", text)
            inputs = dict(processor(images=[image], text=[prompt], return_tensors="pt"))
        states = model(**inputs, output_hidden_states=True).hidden_states[-1]
        expected.append(unit(states[:, -1])[0])
    found = ours(spec_of(folder), rows, batch_tokens)
    recipe = "e5-v" if kind == "llava_next" else "e5-v on LLaVA"
    compare(record_property, recipe, f"{type(model).__name__} and its processor, each alone", found, expected)


def test_texts_alone_need_no_pixels(tmp_path: Path) -> None:
    spec = spec_of(tiny_llava(tmp_path / "model"))
    texts = [*TEXTS, "this <image> is only a word"]
    alone = load_embedder(spec, device="cpu")(Tokenizer(spec)(pa.array(texts)).input_ids).values_ND
    assert np.abs(alone - ours(spec, [(text, None) for text in texts], 2048)).max() <= 1e-6


def test_a_turned_or_transparent_image_is_seen_as_it_is_shown(tmp_path: Path) -> None:
    reader = ImageReader(spec_of(tiny_clip(tmp_path / "model")))
    image = drawn(7, 60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    turned = reader.pixels(encoded(image, "PNG", exif=exif)).tiles_TCSS
    assert np.array_equal(turned, reader.pixels(encoded(image.rotate(-90, expand=True))).tiles_TCSS)
    for mode in ("RGBA", "P", "L", "CMYK"):
        other = image.convert(mode)
        kind = "TIFF" if mode == "CMYK" else "PNG"
        assert np.array_equal(
            reader.pixels(encoded(other, kind)).tiles_TCSS, reader.processor(other.convert("RGB")).tiles_TCSS
        )


def test_matryoshka_dims_cut_both_towers(tmp_path: Path) -> None:
    folder = tiny_clip(tmp_path / "model")
    recipe = recipe_file(tmp_path / "clip.yaml", folder, dims=[8, 24])
    spec = embedder_spec(str(recipe), EmbedderConfig(dims=8), tmp_path)
    whole = ours(spec_of(folder), mixed(), 2048)[:, :8]
    assert np.abs(ours(spec, mixed(), 2048) - whole / np.linalg.norm(whole, axis=1, keepdims=True)).max() <= 1e-6


@pytest.mark.parametrize(("make", "batch_tokens"), [(tiny_clip, 64), (tiny_llava, 256)])
def test_tokens_are_told_of_images_and_of_texts(
    tmp_path: Path, make: Callable[[Path], Path], batch_tokens: int
) -> None:
    spec = spec_of(make(tmp_path / "model"))
    reader = ImageReader(spec)
    images = [None if image is None else {"bytes": encoded(image)} for _, image in mixed()]
    read = reader(pa.table({"text": pa.array([text for text, _ in mixed()], pa.string()), "image": images}))
    inputs = pa.StructArray.from_arrays([read.input_ids, read.pixels], ["input_ids", "pixels"])
    told: list[int] = []
    load_embedder(spec, batch_tokens=batch_tokens, device="cpu")(inputs, told.append)
    assert sum(told) == read.num_tokens.sum()
    assert len(told) > 2
