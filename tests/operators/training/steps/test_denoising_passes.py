"""Template denoising in a step, against PromptBERT's recipe written with plain transformers calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml

from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import EmbedderSpec, embedder_spec
from operators.errors import InputError
from operators.training.config.objectives import InfoNce
from operators.training.model.encoder import Encoder, Reader
from operators.training.objectives.contrastive import info_nce
from operators.training.objectives.pairs import pairs_of
from operators.training.objectives.set_objective import SetObjective
from operators.training.steps.denoising_passes import DenoisingPasses
from operators.training.steps.rank_batches import RankBatches, ReadySet
from tests.checkpoints import tiny_bert
from tests.language_steps import RECIPES, STILL, batches_of, write_texts
from tests.operators.training.training_files import open_rows, prepare, training_set

TEMPLATES = ('This sentence of "{text}" means [MASK] .', 'The sentence : "{text}" means that [MASK] .')


def specs(folder: Path, **changes: Any) -> list[EmbedderSpec]:
    recipe = {
        "checkpoint": str(folder / "model"),
        "pooling": "token",
        "pooled_token": "[MASK]",
        "normalize": False,
        "max_tokens": 64,
        **changes,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return [embedder_spec(str(folder / "recipe.yaml"), EmbedderConfig(prompt=one), RECIPES) for one in TEMPLATES]


def make(folder: Path, tokens: int = 4096) -> tuple[Encoder, DenoisingPasses, RankBatches]:
    query, document = specs(folder)
    encoder = Encoder(query, STILL, torch.device("cpu"))
    chosen = training_set(folder / "texts.jsonl", "texts")
    reader = Reader({"query": query, "document": document})
    rows = open_rows(prepare(chosen, folder / "sets"), folder / "sets")
    ready = ReadySet(chosen, rows, reader, ("query", "document"))
    loss = InfoNce(template_denoising=True)
    passes = DenoisingPasses(encoder, SetObjective(loss, chosen, encoder.width), reader, tokens, seed=7)
    return encoder, passes, batches_of([ready], 9, min(tokens, 128), None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_bert(tmp_path / "model", hidden=16)
    write_texts(tmp_path)
    return tmp_path


def plain_loss(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Text by text: the mask's state less that of the template alone, its end moved on by the text's length."""
    views = []
    for template in TEMPLATES:
        before, after = template.split("{text}")
        states = []
        for text in texts:
            whole = tokenizer(before + text + after, return_tensors="pt").input_ids
            empty = tokenizer(before + after, return_tensors="pt").input_ids
            num_before = 1 + len(tokenizer(before, add_special_tokens=False).input_ids)
            length = whole.shape[1] - empty.shape[1]
            positions = torch.arange(empty.shape[1])[None]
            positions[:, num_before:] += length
            of_text = model(input_ids=whole).last_hidden_state[whole == tokenizer.mask_token_id]
            of_template = model(input_ids=empty, position_ids=positions).last_hidden_state
            states.append(of_text - of_template[empty == tokenizer.mask_token_id])
        views.append(torch.cat(states))
    return info_nce(pairs_of(views), 0.05)


@pytest.mark.parametrize("tokens", [150, 100_000])
def test_it_is_the_published_recipe(folder: Path, tokens: int) -> None:
    encoder, passes, batches = make(folder, tokens)
    batch = batches.read(0)
    model = transformers.AutoModel.from_pretrained(folder / "model", attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    rows = make_texts(folder, batch.planned.rows_B)
    expected = plain_loss(model, tokenizer, rows)
    expected.backward()  # type: ignore[no-untyped-call]
    assert float(passes(batch)) == pytest.approx(expected.item(), rel=1e-4)
    wanted = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, parameter in encoder.trunk.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=0, atol=1e-4 * scale, msg=name)


def make_texts(folder: Path, rows_B: np.ndarray[Any, Any]) -> list[str]:
    chosen = training_set(folder / "texts.jsonl", "texts")
    rows = open_rows(prepare(chosen, folder / "sets"), folder / "sets")
    texts: list[str] = rows.take(rows_B)["query"].to_pylist()
    return texts


def test_a_recipe_without_a_token_to_read_is_refused(folder: Path) -> None:
    query, document = specs(folder, pooling="mean", pooled_token=None)
    encoder = Encoder(query, STILL, torch.device("cpu"))
    objective = SetObjective(InfoNce(), training_set("a.jsonl", "texts"), encoder.width)
    with pytest.raises(InputError, match="pooling: token"):
        DenoisingPasses(encoder, objective, Reader({"query": query, "document": document}), 4096, 7)
