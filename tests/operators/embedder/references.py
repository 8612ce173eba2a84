"""The recipes of configs/models on tiny random checkpoints, and what their references are made of.

A recipe is the repository's file, with another checkpoint, length and number format; a reference reads each text alone
through plain transformers or sentence-transformers, after the papers and their code (docs/recipes.md). Each comparison
records its largest difference, of which benchmarks/recipe_differences.py makes a table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
import yaml
from numpy.typing import NDArray

from operators.embedder.engine import Embedder
from operators.embedder.model import fast_bert
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import embedder_spec
from operators.embedder.tokens.tokenizing import Tokenizer
from tests import checkpoints

RECIPES = Path(__file__).parents[3] / "configs" / "models"
WORDS = checkpoints.WORDS
# 1 to 90 words, in no order of length; the longest are longer than what any of the recipes here reads
TEXTS = [" ".join(WORDS[(7 * i + j) % len(WORDS)] for j in range(1 + 37 * i % 90)) for i in range(20)]
SHORT = [text for text in TEXTS if len(text) < 120]
TOLERANCE = 1e-4  # in float32

Record = Callable[[str, object], None]
Vectors = NDArray[np.float32]


def recipe_file(name: str, folder: Path, **changes: Any) -> str:
    """The repository's recipe for a tiny checkpoint."""
    fields = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    fields = {**fields, "checkpoint": str(folder), "max_tokens": 64, "compute_dtype": "float32", **changes}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(fields))
    return str(path)


def embed(
    recipe: str, texts: Sequence[str], batch_tokens: int | None = None, packing: bool = False, **overrides: Any
) -> Vectors:
    spec = embedder_spec(recipe, EmbedderConfig(device="cpu", **overrides), RECIPES)
    embedder = Embedder(spec, batch_tokens=batch_tokens, device="cpu", packing=packing)
    vectors = embedder(Tokenizer(spec)(pa.array(list(texts))).input_ids)
    assert vectors.finite_N.all()
    return vectors.values_ND


@dataclass(frozen=True)
class Forward:
    """A way through the engine."""

    batch_tokens: int | None = None  # 1: row by row
    padding: str = "right"
    packing: bool = False
    as_on_a_cpu: bool = False  # False: without the fast path that BERT has there


FORWARDS = (
    Forward(as_on_a_cpu=True),
    Forward(as_on_a_cpu=True, batch_tokens=1),
    Forward(),
    Forward(padding="left"),
    Forward(padding="left", batch_tokens=1),
)
PACKED = Forward(packing=True)


def check(
    record: Record,
    name: str,
    folder: Path,
    reference: str,
    expected_ND: Any,
    texts: Sequence[str] = TEXTS,
    changes: dict[str, Any] | None = None,
    packs: bool = True,
    **overrides: Any,
) -> None:
    """Compare a recipe with its reference: in large batches, row by row, padded on each side, and packed."""
    largest = 0.0
    for way in (*FORWARDS, PACKED) if packs else FORWARDS:
        path = recipe_file(name, folder, padding=way.padding, **(changes or {}))
        with pytest.MonkeyPatch.context() as patch:
            if not way.as_on_a_cpu:
                patch.setattr(fast_bert, "supports", lambda *_: False)
            found_ND = embed(path, texts, way.batch_tokens, way.packing, **overrides)
        assert found_ND.shape == np.shape(expected_ND)
        largest = max(largest, float(np.abs(found_ND - np.asarray(expected_ND)).max()))
    recorded(record, name, reference, largest)


def compare(record: Record, name: str, reference: str, found_ND: Any, expected_ND: Any) -> None:
    """Assert that vectors agree, and record by how much."""
    assert np.shape(found_ND) == np.shape(expected_ND)
    recorded(record, name, reference, float(np.abs(np.asarray(found_ND) - np.asarray(expected_ND)).max()))


def recorded(record: Record, name: str, reference: str, difference: float) -> None:
    record("recipe", name)
    record("reference", reference)
    record("difference", difference)
    assert difference <= TOLERANCE


def unit(vectors: Any) -> Vectors:
    """Vectors of length 1."""
    values_ND = np.stack([np.asarray(vector) for vector in vectors])
    return np.asarray(values_ND / np.linalg.norm(values_ND, axis=1, keepdims=True))


def tokenizer_of(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def states(
    folder: Path, rows: Sequence[Sequence[int]], bidirectional: bool = False, model: Any = None
) -> list[tuple[torch.Tensor, ...]]:
    """All hidden states of each row alone: no padding, no mask, or one in which every token sees every other."""
    model = model or transformers.AutoModel.from_pretrained(folder).eval()
    found = []
    with torch.inference_mode():
        for row in rows:
            visible = torch.ones(1, 1, len(row), len(row), dtype=torch.bool) if bidirectional else None
            output = model(input_ids=torch.tensor([list(row)]), attention_mask=visible, output_hidden_states=True)
            found.append(tuple(layer[0] for layer in output.hidden_states))
    return found


def fitted(tokenizer: Any, prefix: str, text: str, suffix: str, max_tokens: int) -> list[int]:
    """The ids of a prompt around a text, of which the longest part is kept that ends with a token and fits."""
    ends = [end for _, end in tokenizer(prefix + text, return_offsets_mapping=True)["offset_mapping"]]
    for end in sorted({len(prefix + text), *ends}, reverse=True):
        found = tokenizer((prefix + text)[:end] + suffix)["input_ids"]
        if len(found) <= max_tokens:
            return list(found)
    raise AssertionError("the prompt alone is too long")


def instructed(folder: Path, prompt: str, text: str, end: str, max_tokens: int = 64) -> list[int]:
    """The ids of prompt and text as one string with <s> before them, and the end token in the last place."""
    tokenizer = tokenizer_of(folder)
    ids = tokenizer(prompt + text)["input_ids"][: max_tokens - 1]
    return [*ids, tokenizer.convert_tokens_to_ids(end)]
