"""Training of sparse vectors beside sentence-transformers' SparseEncoder and SpladeLoss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
import yaml
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.losses import (
    SparseMarginMSELoss,
    SparseMultipleNegativesRankingLoss,
    SpladeLoss,
)
from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling

from operators.embedder.factory import load_embedder
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import EmbedderSpec, embedder_spec
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.errors import InputError
from operators.training.config.choice import fault_of_sparse
from operators.training.config.flops import FlopsRegularisation
from operators.training.config.objectives import (
    CoSent,
    InfoNce,
    MarginMse,
    Objective,
)
from operators.training.config.sets import TrainingSet
from operators.training.config.tuning import Lora, Tuning
from operators.training.model.encoder import Encoder, Reader, Role
from operators.training.model.export import export
from operators.training.objectives.gathering import RankRows
from operators.training.objectives.set_objective import RowFacts, SetObjective
from operators.training.objectives.sparsity import Sparsity
from operators.training.steps.grad_cache import Tower, cached_backward
from tests.checkpoints import WORDS, tiny_bert, tiny_decoder

RECIPES = Path("configs/models")
STILL = Tuning(precision="float32", dropout=0.0, attention_dropout=0.0)
FLOPS = FlopsRegularisation(query=0.02, document=0.01, ramp_steps=10)
STEP = 5  # half of the ramp: a quarter of the weights


@pytest.fixture
def spec(tmp_path: Path) -> EmbedderSpec:
    tiny_bert(tmp_path / "model", auto=transformers.AutoModelForMaskedLM)
    return written_spec(tmp_path)


def written_spec(folder: Path, **changes: Any) -> EmbedderSpec:
    recipe = {"checkpoint": "model", "pooling": "none", "sparse": {"head": "mlm"}, "normalize": False, "max_tokens": 64}
    (folder / "splade.yaml").write_text(yaml.safe_dump({**recipe, **changes}))
    return embedder_spec(str(folder / "splade.yaml"), EmbedderConfig(), RECIPES)


def some_texts(count: int) -> list[str]:
    rng = np.random.default_rng(1)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 20))) for _ in range(count)]


def backward(encoder: Encoder, spec: EmbedderSpec, objective: Objective, texts: list[str], num_rows: int) -> float:
    """The loss of rows, as a step of training has it; gradients stay."""
    roles: list[Role] = ["query"] * num_rows + ["document"] * (len(texts) - num_rows)
    tokenized = Reader({"query": spec, "document": spec})(texts, roles)
    micro_batches = [tokenized.batch(rows) for rows in np.array_split(np.arange(len(texts)), 4)]
    kind = "triples" if isinstance(objective, InfoNce) else "lists"
    loss = SetObjective(objective, TrainingSet(name="a", path="a.jsonl", kind=kind), encoder.width)
    ids_bT = torch.arange(len(texts)).view(-1, num_rows).T
    facts = RowFacts(RankRows((num_rows,), 0), ids_bT, scores_bK=teacher_scores(num_rows))
    sparsity = Sparsity(FLOPS, 100)
    return float(
        cached_backward(
            [Tower(encoder, micro_batches)],
            lambda vectors: loss(vectors[0], facts) + sparsity(vectors[0], facts.rows, STEP),
        )
    )


def teacher_scores(num_rows: int) -> torch.Tensor:
    return torch.rand(num_rows, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("loss", ["info_nce", "margin_mse"])
def test_loss_and_gradients_are_those_of_sentence_transformers(spec: EmbedderSpec, loss: str, tmp_path: Path) -> None:
    num_rows = 5
    texts = some_texts(3 * num_rows)
    queries, positives, negatives = texts[:num_rows], texts[num_rows : 2 * num_rows], texts[2 * num_rows :]
    objective: Objective = InfoNce(similarity="dot", temperature=1.0)
    if loss == "margin_mse":
        objective = MarginMse(loss="margin_mse", similarity="dot")
    encoder = Encoder(spec, STILL, torch.device("cpu"))
    rows = [text for pair in zip(positives, negatives, strict=True) for text in pair]
    found = backward(encoder, spec, objective, [*queries, *rows], num_rows)
    peer = SparseEncoder(
        modules=[MLMTransformer(str(tmp_path / "model"), max_seq_length=64), SpladePooling("max")], device="cpu"
    )
    for module in peer.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    own: Any = SparseMultipleNegativesRankingLoss(peer) if loss == "info_nce" else SparseMarginMSELoss(peer)
    scores_bK = teacher_scores(num_rows)
    whole = SpladeLoss(peer, own, FLOPS.document / 4, FLOPS.query / 4)
    features = [peer.preprocess(part) for part in (queries, positives, negatives)]
    expected = torch.stack(list(whole(features, scores_bK[:, 0] - scores_bK[:, 1]).values())).sum()
    expected.backward()
    assert found == pytest.approx(expected.item(), rel=1e-5)
    assert encoder.language_model is not None
    wanted = {name: p.grad for name, p in peer[0].auto_model.named_parameters() if p.grad is not None}
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())  # some are 0 but for rounding
    compared = 0
    for name, parameter in encoder.language_model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=0, atol=1e-5 * scale, msg=name)
            compared += 1
    assert compared > 30


@pytest.mark.parametrize("tuning", [STILL, Tuning(precision="float32", lora=Lora(rank=4))], ids=["whole", "lora"])
@pytest.mark.parametrize("head", ["mlm", "lm"])
def test_the_folder_makes_the_sparse_vectors_of_the_encoder(tmp_path: Path, head: str, tuning: Tuning) -> None:
    if head == "mlm":
        tiny_bert(tmp_path / "model", auto=transformers.AutoModelForMaskedLM)
        spec = written_spec(tmp_path)
    else:
        tiny_decoder(tmp_path / "model", kind="llama", auto=transformers.AutoModelForCausalLM)
        spec = written_spec(tmp_path, sparse={"head": "lm", "pool_over": "after_prompt"}, attention="bidirectional")
    encoder = Encoder(spec, tuning, torch.device("cpu"))
    with torch.no_grad():
        for parameter in encoder.trained().values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    texts = some_texts(7)
    tokenized = Reader({"query": spec, "document": spec})(texts, ["document"] * 7)
    encoder.eval()
    with torch.no_grad():
        expected = encoder(tokenized.batch(np.arange(7))).numpy()
    export(encoder, tmp_path / "out")
    trained = embedder_spec(str(tmp_path / "out"), EmbedderConfig(), RECIPES)
    found = load_embedder(trained)(Tokenizer(trained)(pa.array(texts)).input_ids)
    assert found.sparse is not None
    np.testing.assert_allclose(found.sparse.dense(trained.sparse_dim), expected, atol=1e-4)


def test_what_does_not_fit_sparse_vectors_is_refused(tmp_path: Path) -> None:
    assert fault_of_sparse(InfoNce(similarity="dot", flops=FLOPS), is_sparse=True) is None
    assert "similarity: dot" in str(fault_of_sparse(InfoNce(), is_sparse=True))
    assert "similarity: dot" in str(fault_of_sparse(CoSent(loss="cosent"), is_sparse=True))
    assert "sparse recipes" in str(fault_of_sparse(InfoNce(flops=FLOPS), is_sparse=False))
    tiny_bert(tmp_path / "model", auto=transformers.AutoModelForMaskedLM)
    both = written_spec(tmp_path, pooling="cls")
    with pytest.raises(InputError, match="without dense vectors"):
        Encoder(both, STILL, torch.device("cpu"))
