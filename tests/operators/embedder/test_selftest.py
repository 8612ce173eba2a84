"""The self-test finds what would silently give wrong vectors: each fault is put in, and has to be named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
import transformers
import yaml
from numpy.typing import NDArray

from operators.embedder import selftest
from operators.embedder.engine import Embedder
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import embedder_spec
from operators.embedder.tokens import known_texts
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.embedder.vectors import Vectors
from operators.errors import InputError
from tests import checkpoints

RECIPES = Path(__file__).parents[3] / "configs" / "models"


def load(folder: Path, **fields: Any) -> Embedder:
    recipe = {"checkpoint": str(folder), "pooling": "mean", "normalize": True, "max_tokens": 64, **fields}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return Embedder(embedder_spec(str(path), EmbedderConfig(device="cpu"), RECIPES), device="cpu")


Spoil = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclasses.dataclass
class SpoiledEmbedder:
    """A sound embedder whose results are changed on the way out, in the calls that `when` picks by their rows."""

    sound: Embedder
    spoil: Spoil
    when: Callable[[pa.ListArray], bool]

    def __post_init__(self) -> None:
        self.spec = self.sound.spec
        self.device = SimpleNamespace(type="cpu")

    def __call__(self, input_ids: pa.ListArray) -> Vectors:
        values_ND = self.sound(input_ids).values_ND
        if self.when(input_ids):
            values_ND = self.spoil(values_ND)
        return Vectors(values_ND, np.asarray(np.isfinite(values_ND).all(axis=1)), 0)


def always(input_ids: pa.ListArray) -> bool:
    return True


def together(input_ids: pa.ListArray) -> bool:
    return len(input_ids) > 1


def in_another_order(input_ids: pa.ListArray) -> bool:
    return len(input_ids) > 1 and len(input_ids[0]) > len(input_ids[-1])


def to_nan(values_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    return values_ND * np.float32(np.nan)


def longer(values_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    return values_ND * np.float32(1.01)


def swapped(values_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.roll(values_ND, 1, axis=0)


def a_little_padding(values_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    mixed_ND = values_ND + np.float32(0.02) * values_ND.mean(axis=0)
    return np.asarray(mixed_ND / np.linalg.norm(mixed_ND, axis=1, keepdims=True))


def all_alike(values_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.broadcast_to(np.eye(1, values_ND.shape[1], dtype=np.float32), values_ND.shape)


@pytest.mark.parametrize(
    ("spoil", "when", "message"),
    [
        (to_nan, always, "NaN, infinite or zero vectors"),
        (longer, always, r"normalised vectors have lengths \[1\.01"),
        (swapped, together, "together with others and alone gives different vectors"),
        (a_little_padding, together, "together with others and alone gives different vectors"),
        (swapped, in_another_order, "together with others and in another order gives different vectors"),
        (all_alike, always, "different texts get the same vector"),
    ],
)
def test_each_fault_is_named(tmp_path: Path, spoil: Spoil, when: Callable[[pa.ListArray], bool], message: str) -> None:
    sound = load(checkpoints.tiny_bert(tmp_path))
    ids = Tokenizer(sound.spec)(known_texts.texts()).input_ids
    selftest.check(sound, ids)
    spoiled: Any = SpoiledEmbedder(sound, spoil, when)
    with pytest.raises(InputError, match=f"recipe.yaml on cpu: self-test: .*{message}"):
        selftest.check(spoiled, ids)


def test_a_missing_end_token_is_named(tmp_path: Path) -> None:
    sound = load(checkpoints.tiny_bert(tmp_path))
    tokenizer = Tokenizer(sound.spec)
    known_texts.check_tokens(tokenizer, sound.spec)
    tokenizer.end_id = 1
    with pytest.raises(InputError, match="does not end with the recipe's end_token"):
        known_texts.check_tokens(tokenizer, sound.spec)


def test_nan_weights_are_refused(tmp_path: Path) -> None:
    checkpoints.tiny_bert(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    weights["encoder.layer.0.attention.self.query.weight"][0] = torch.nan
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="its weights are damaged"):
        load(tmp_path)


def test_attention_that_does_not_become_bidirectional_is_refused(tmp_path: Path) -> None:
    checkpoints.tiny_decoder(tmp_path)
    config = transformers.GPTNeoConfig(
        vocab_size=400,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global"], 2]],
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=0,
    )
    checkpoints.save_model(tmp_path, config)
    load(tmp_path)
    with pytest.raises(InputError, match=r"attention: bidirectional has no effect on .* \(gpt_neo\)"):
        load(tmp_path, attention="bidirectional")


def test_first_token_of_a_causal_model_is_refused(tmp_path: Path) -> None:
    checkpoints.tiny_decoder(tmp_path)
    with pytest.raises(InputError, match="pooling: cls gives every text the same vector"):
        load(tmp_path, pooling="cls")
    load(tmp_path, pooling="cls", attention="bidirectional")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    checkpoints.tiny_bert(tmp_path)
    checkpoints.save_tokenizer(tmp_path, checkpoints.byte_level_tokenizer(), {}, 64)
    with pytest.raises(InputError, match=r"ids up to 399, but the model has only \d+ token embeddings"):
        load(tmp_path)


def test_files_that_changed_since_the_plan_are_refused(tmp_path: Path) -> None:
    spec = embedder_spec(str(checkpoints.tiny_bert(tmp_path)), EmbedderConfig(), RECIPES)
    checkpoints.tiny_bert(tmp_path, seed=1)
    with pytest.raises(InputError, match="is not the one that the run was planned with"):
        Embedder(spec, device="cpu")
