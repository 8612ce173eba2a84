"""The trainable encoder beside the embedder, its state and what it leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer

from operators.embedder.factory import load_embedder
from operators.embedder.recipe.files import OWN_RECIPE
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import embedder_spec
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.errors import InputError
from operators.training.config.tuning import Lora, Tuning
from operators.training.model.encoder import Encoder, Reader, Role
from operators.training.model.export import export
from operators.training.objectives.contrastive import info_nce
from operators.training.objectives.pairs import pairs_of
from operators.training.steps import state
from operators.training.steps.grad_cache import Tower, cached_backward
from operators.training.steps.optimization import Optimization, make_optimizer, set_rate
from tests.checkpoints import WORDS, tiny_decoder

RECIPES = Path("configs/models")
ROLES: tuple[Role, ...] = ("query", "document")
STILL = {"dropout": 0.0, "attention_dropout": 0.0}


def some_texts(count: int, seed: int = 1) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 20))) for _ in range(count)]


def decoder_recipe(folder: Path, **fields: Any) -> Path:
    """A recipe with everything that the plain layout cannot say left out: bidirectional, end token, prompt apart."""
    recipe = {
        "checkpoint": str(tiny_decoder(folder / "decoder")),
        "attention": "bidirectional",
        "pooling": "mean",
        "pool_over": "after_prompt",
        "count_prompt": "alone",
        "end_token": "<|endoftext|>",
        "normalize": True,
        "max_tokens": 64,
        "prompts": {"query": "find this: "},
        **fields,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def load(model: Path, tuning: Tuning) -> tuple[Encoder, Reader]:
    specs = {role: embedder_spec(str(model), EmbedderConfig(role=role), RECIPES) for role in ROLES}
    torch.manual_seed(0)  # what LoRA begins with is random
    return Encoder(specs["document"], tuning, torch.device("cpu")), Reader(specs)


def vectors_of(encoder: Encoder, reader: Reader, texts: Sequence[str], role: Role) -> np.ndarray[Any, Any]:
    tokenized = reader(texts, [role] * len(texts))
    with torch.no_grad():
        return encoder(tokenized.batch(np.arange(len(texts)))).numpy()


def embedded(model: Path | str, texts: Sequence[str], role: str = "document") -> np.ndarray[Any, Any]:
    spec = embedder_spec(str(model), EmbedderConfig(role=role), RECIPES)
    return load_embedder(spec)(Tokenizer(spec)(pa.array(texts)).input_ids).values_ND


@pytest.fixture(params=["encoder", "decoder"])
def model(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path) -> Path:
    return tiny_model if request.param == "encoder" else decoder_recipe(tmp_path)


@pytest.mark.parametrize("role", ROLES)
def test_it_begins_with_the_vectors_of_the_embedder(model: Path, role: Role) -> None:
    texts = some_texts(9)
    encoder, reader = load(model, Tuning(precision="float32", **STILL))
    np.testing.assert_allclose(vectors_of(encoder, reader, texts, role), embedded(model, texts, role), atol=1e-5)


def test_both_roles_in_one_batch(model: Path) -> None:
    texts = some_texts(6)
    encoder, reader = load(model, Tuning(precision="float32", **STILL))
    tokenized = reader(texts, ["query", "document"] * 3)
    with torch.no_grad():
        found = encoder(tokenized.batch(np.arange(6))).numpy()
    np.testing.assert_allclose(found[0::2], embedded(model, texts[0::2], "query"), atol=1e-5)
    np.testing.assert_allclose(found[1::2], embedded(model, texts[1::2], "document"), atol=1e-5)


def train(encoder: Encoder, reader: Reader, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    """Some steps on batches of eight pairs that follow from the step's number, in micro-batches of three."""
    config = Optimization(learning_rate=1e-2, warmup=2)
    losses = []
    for step in steps:
        texts = some_texts(16, seed=step % 2)
        towers = []
        for role, part in (("query", texts[:8]), ("document", texts[8:])):
            tokenized = reader(part, [role] * 8)
            micro_batches = [tokenized.batch(rows) for rows in np.array_split(np.arange(8), 3)]
            towers.append(Tower(encoder, micro_batches))
        torch.manual_seed(step)
        losses.append(float(cached_backward(towers, lambda vectors: info_nce(pairs_of(vectors), 0.1))))
        set_rate(optimizer, config.rate(step, 20))
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize(
    "tuning",
    [Tuning(precision="float32", dropout=0.1), Tuning(precision="float32", lora=Lora(rank=4))],
    ids=["whole", "lora"],
)
def test_resumed_is_uninterrupted_to_the_bit(model: Path, tuning: Tuning, tmp_path: Path) -> None:
    encoder, reader = load(model, tuning)
    whole = train(encoder, reader, make_optimizer(encoder.trained(), Optimization()), range(8))
    assert np.mean(whole[-2:]) < np.mean(whole[:2])
    encoder, reader = load(model, tuning)
    optimizer = make_optimizer(encoder.trained(), Optimization())
    first = train(encoder, reader, optimizer, range(4))
    state.save(tmp_path / "state", encoder.trained(), optimizer, state.Progress(4, "this"))
    encoder, reader = load(model, tuning)
    optimizer = make_optimizer(encoder.trained(), Optimization())
    assert state.load(tmp_path / "state", encoder.trained(), optimizer, "this").step == 4
    assert first + train(encoder, reader, optimizer, range(4, 8)) == whole


def test_the_state_of_another_run_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    encoder, _ = load(tiny_model, Tuning(precision="float32"))
    optimizer = make_optimizer(encoder.trained(), Optimization())
    state.save(tmp_path / "state", encoder.trained(), optimizer, state.Progress(4, "this"))
    with pytest.raises(InputError, match="another folder"):
        state.load(tmp_path / "state", encoder.trained(), optimizer, "that")
    (tmp_path / "state" / "weights.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="does not read"):
        state.load(tmp_path / "state", encoder.trained(), optimizer, "this")


def test_adapters_train_themselves_alone(model: Path) -> None:
    encoder, _ = load(model, Tuning(precision="float32", lora=Lora(rank=4)))
    assert all("lora_" in name for name in encoder.trained())
    with pytest.raises(InputError, match="targets"):
        load(model, Tuning(precision="float32", lora=Lora(targets=("no_such_layer",))))


def test_checkpointing_changes_no_gradient(model: Path) -> None:
    found = []
    for tuning in (
        Tuning(precision="float32", **STILL),
        Tuning(precision="float32", gradient_checkpointing=True, **STILL),
    ):
        encoder, reader = load(model, tuning)
        encoder(reader(some_texts(3), ["document"] * 3).batch(np.arange(3)))[:, 0].sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in encoder.trained().values() if p.grad is not None]))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize(
    "tuning", [Tuning(precision="float32"), Tuning(precision="float32", lora=Lora(rank=4))], ids=["whole", "lora"]
)
def test_the_model_folder_loads_here_and_in_sentence_transformers(model: Path, tuning: Tuning, tmp_path: Path) -> None:
    encoder, reader = load(model, tuning)
    train(encoder, reader, make_optimizer(encoder.trained(), Optimization()), range(3))
    encoder.eval()
    texts = [*some_texts(5), "time " * 200]
    expected = {role: vectors_of(encoder, reader, texts, role) for role in ROLES}
    export(encoder, tmp_path / "model")
    peer = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    for role in ROLES:
        np.testing.assert_allclose(embedded(tmp_path / "model", texts, role), expected[role], atol=1e-5)
        prompt = role if role in peer.prompts else None
        np.testing.assert_allclose(peer.encode(texts, prompt_name=prompt), expected[role], atol=1e-4)
    (tmp_path / "model" / OWN_RECIPE).unlink()
    assert embedded(tmp_path / "model", texts) == pytest.approx(expected["document"], abs=1e-5), "by the layout alone"
    assert not np.allclose(expected["document"], embedded(model, texts), atol=1e-3)
