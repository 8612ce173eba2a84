"""Recipes of models that see: what does not belong together is refused, with the fault named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from operators.embedder.factory import flops_of, load_embedder
from operators.embedder.recipe.files import load_recipe
from operators.embedder.recipe.recipe import EmbedderConfig, Recipe
from operators.embedder.recipe.spec import embedder_spec
from operators.errors import InputError
from tests.checkpoints import tiny_bert
from tests.vision_checkpoints import recipe_file, tiny_clip, tiny_llava, tiny_siglip

RECIPES = Path(__file__).parents[4] / "configs" / "models"


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"pooling": "mean"}, "pooling: own belong together"),
        ({"kind": "transformer", "pooling": "mean", "image_prompt": "<image>"}, "vision_llm and image_prompt"),
        ({"kind": "vision_llm", "pooling": "last"}, "vision_llm and image_prompt"),
        ({"attention": "bidirectional"}, "leave out attention"),
        ({"image_text_prompt": "<image> {text}"}, "needs image_prompt"),
        ({"kind": "vision_llm", "pooling": "last", "image_prompt": "<image> {text}"}, "is an image_text_prompt"),
        ({"kind": "vision_llm", "pooling": "cls", "image_prompt": "<image>"}, "own, last or mean"),
        ({"prompts": {"document": ["a", "b"]}}, "one prompt a role"),
    ],
)
def test_keys_that_do_not_belong_together_are_refused(fields: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Recipe(
            **{"kind": "two_towers", "checkpoint": "x", "pooling": "own", "normalize": True, "max_tokens": 9, **fields}
        )


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path / "r.yaml", tiny_bert(tmp_path / "bert"), kind="two_towers", pooling="own")
    fields = json.loads(recipe.read_text())
    recipe.write_text(json.dumps({k: v for k, v in fields.items() if k not in ("image_prompt", "image_text_prompt")}))
    with pytest.raises(InputError, match="runs models of the types clip, siglip, and .* is bert"):
        embedder_spec(str(recipe), EmbedderConfig(), tmp_path)


def test_siglip_needs_the_token_that_it_pads_with(tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path / "r.yaml", tiny_siglip(tmp_path / "m"), pad_token=None)
    with pytest.raises(InputError, match="pad_token belongs in recipes of siglip"):
        load_embedder(embedder_spec(str(recipe), EmbedderConfig(), tmp_path), device="cpu")


def test_a_prompt_without_the_image_is_refused(tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path / "r.yaml", tiny_llava(tmp_path / "m"), image_prompt="Summary above image: ")
    with pytest.raises(InputError, match="image_prompt has to hold <image> once"):
        load_embedder(embedder_spec(str(recipe), EmbedderConfig(), tmp_path), device="cpu")


def test_an_image_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    prompt = "<image>" + "a part of the line " * 20
    recipe = recipe_file(tmp_path / "r.yaml", tiny_llava(tmp_path / "m"), max_tokens=190, image_prompt=prompt)
    with pytest.raises(InputError, match="max_tokens 190 leaves no room for an image: it has up to 16 tokens"):
        load_embedder(embedder_spec(str(recipe), EmbedderConfig(), tmp_path), device="cpu")


def test_towers_that_do_not_meet_are_refused(tmp_path: Path) -> None:
    folder = tiny_siglip(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["projection_size"] = 16
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="images get 32 dimensions and texts 16"):
        embedder_spec(str(recipe_file(tmp_path / "r.yaml", folder)), EmbedderConfig(), tmp_path)


@pytest.mark.parametrize("make", [tiny_clip, tiny_siglip])
def test_a_folder_is_known_for_what_it_is(tmp_path: Path, make: Any) -> None:
    folder = make(tmp_path / "m")
    known = embedder_spec(str(folder), EmbedderConfig(), tmp_path)
    told = embedder_spec(str(recipe_file(tmp_path / "r.yaml", folder)), EmbedderConfig(), tmp_path)
    assert known.fingerprint == told.fingerprint


@pytest.mark.parametrize("name", ["clip-vit-b-32", "siglip2-base", "e5-v"])
def test_the_recipes_that_come_with_it_read(name: str) -> None:
    recipe = load_recipe(name, RECIPES)
    assert (
        recipe.model_dump(exclude_defaults=True).keys() >= yaml.safe_load((RECIPES / f"{name}.yaml").read_text()).keys()
    )


def test_the_flops_of_the_plan_are_those_of_the_run(tmp_path: Path) -> None:
    import numpy as np
    import pyarrow as pa

    from operators.embedder.vision.reading import ImageReader
    from tests.vision_checkpoints import drawn, encoded

    for make in (tiny_clip, tiny_llava):
        folder = make(tmp_path / make.__name__)
        spec = embedder_spec(str(recipe_file(tmp_path / "r.yaml", folder)), EmbedderConfig(), tmp_path)
        rows = pa.table({"text": pa.nulls(3, pa.string()), "image": [{"bytes": encoded(drawn(n))} for n in range(3)]})
        read = ImageReader(spec)(rows)
        inputs = pa.StructArray.from_arrays([read.input_ids, read.pixels], ["input_ids", "pixels"])
        counted = load_embedder(spec, device="cpu")(inputs).flops
        planned = flops_of(spec, of_images=True)(read.num_tokens.astype(np.int64))
        assert planned == pytest.approx(counted, rel=0.0 if make is tiny_clip else 0.5)
