"""Steps of language modelling and GRIT against transformers' own losses, on ranks and in passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml

from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import embedder_spec
from operators.errors import InputError
from operators.training.config.language import CausalLm, Mntp
from operators.training.config.tuning import Lora, Tuning
from operators.training.model.encoder import Encoder, Reader
from operators.training.model.export import export, says_it_all
from operators.training.objectives.contrastive import info_nce
from operators.training.objectives.language import IGNORED
from operators.training.objectives.pairs import pairs_of
from operators.training.steps.language_passes import LanguagePasses
from operators.training.steps.step import TrainStep
from tests.checkpoints import tiny_bert, tiny_decoder
from tests.language_steps import (
    FOLDER,
    GENERATIVE,
    NUM_STEPS,
    RECIPES,
    STILL,
    make_step,
    ready_set,
    steps_on_this_rank,
    write_recipe,
    write_texts,
)
from tests.ranks import run_ranks


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_decoder(tmp_path / "decoder", kind="llama", hidden=16, auto=transformers.AutoModelForCausalLM)
    write_recipe(tmp_path)
    write_texts(tmp_path)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    return tmp_path


def padded(rows: Any, fill: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.as_tensor(row) for row in rows], True, fill)


def peer(folder: Path, is_causal: bool) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "decoder").train()
    model.config.is_causal = is_causal
    return model


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def backward_only(step: TrainStep, batch: Any) -> float:
    """The loss of a batch, whose gradients stay."""
    return float(step.passes[0](batch))


def assert_same_gradients(step: TrainStep, expected: dict[str, torch.Tensor]) -> None:
    found = step.encoder.language_model
    assert found is not None
    assert expected.keys() == gradients(found).keys()
    for name, gradient in gradients(found).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("pass_tokens", [32, 4096])
def test_causal_loss_is_that_of_transformers(folder: Path, pass_tokens: int) -> None:
    step, batches = make_step(folder, "causal_lm", pass_tokens)
    batch = batches.read(0)
    ids = batch.tokenized.ids
    labels_BL = padded(ids, IGNORED)
    labels_BL[:, 0] = IGNORED  # <s>
    model = peer(folder, is_causal=True)
    output = model(input_ids=padded(ids, 0), attention_mask=(padded(ids, -1) >= 0).long(), labels=labels_BL)
    output.loss.backward()
    assert backward_only(step, batch) == pytest.approx(output.loss.item(), rel=1e-5)
    assert_same_gradients(step, gradients(model))


def test_mntp_is_the_loss_of_transformers_with_every_token_seen(folder: Path) -> None:
    step, batches = make_step(folder, "mntp", 32)
    batch = batches.read(0)
    passes: Any = step.passes[0]
    exercises = list(passes._exercises(batch.tokenized, 0, 0))
    chosen = np.concatenate([one.labels_n != IGNORED for one in exercises])
    assert 0.3 < chosen.mean() < 0.7, "half of the tokens are masked"
    inputs, labels = ([getattr(one, name) for one in exercises] for name in ("inputs_n", "labels_n"))
    model = peer(folder, is_causal=False)
    mask_BL = (padded(inputs, -1) >= 0).long()
    output = model(input_ids=padded(inputs, 0), attention_mask=mask_BL, labels=padded(labels, IGNORED))
    output.loss.backward()
    assert backward_only(step, batch) == pytest.approx(output.loss.item(), rel=1e-5)
    assert_same_gradients(step, gradients(model))


def test_grit_is_the_sum_of_both_with_two_attentions(folder: Path) -> None:
    step, batches = make_step(folder, "grit", 64)
    batch = batches.read(0)
    assert batch.beside is not None
    model = peer(folder, is_causal=True)
    ids = batch.beside.tokenized.ids
    labels_BL = padded(ids, IGNORED)
    labels_BL[:, 0] = IGNORED
    mask_BL = (padded(ids, -1) >= 0).long()
    mean = model(input_ids=padded(ids, 0), attention_mask=mask_BL, labels=labels_BL).loss
    generation = mean * (labels_BL != IGNORED).sum() / len(ids)  # sum_per_sample
    model.config.is_causal = False
    ids = batch.tokenized.ids
    mask_BL = (padded(ids, -1) >= 0).long()
    states_BLD = model.model(input_ids=padded(ids, 0), attention_mask=mask_BL).last_hidden_state
    vectors_BD = (states_BLD * mask_BL[:, :, None]).sum(1) / mask_BL.sum(1, keepdim=True)
    vectors_BD = torch.nn.functional.normalize(vectors_BD, dim=1)
    whole = info_nce(pairs_of(list(vectors_BD.chunk(2))), 0.05) + 0.5 * generation
    whole.backward()
    assert backward_only(step, batch) == pytest.approx(whole.item(), rel=1e-5)
    assert_same_gradients(step, gradients(model))


def test_two_ranks_are_one(folder: Path) -> None:
    """SPLADE too, whose FLOPS are of the means over all ranks."""
    tiny_bert(folder / "bert", hidden=16, auto=transformers.AutoModelForMaskedLM)
    recipe = {"checkpoint": str(folder / "bert"), "pooling": "none", "sparse": {"head": "mlm"}, "normalize": False}
    (folder / "splade.yaml").write_text(yaml.safe_dump({**recipe, "max_tokens": 64}))
    whole = steps_on_this_rank()
    for rank in run_ranks(2, steps_on_this_rank, folder):
        for loss, alone in whole.items():
            assert rank[loss]["tokens"] == alone["tokens"]
            assert rank[loss]["losses"] == pytest.approx(alone["losses"], rel=1e-5)
            assert rank[loss]["norms"] == pytest.approx(alone["norms"], rel=1e-4)
            for name, weight in rank[loss]["weights"].items():
                if name.endswith("key.bias"):
                    continue  # a softmax does not see it: its gradient is rounding, which AdamW scales up
                torch.testing.assert_close(weight, alone["weights"][name], rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("loss", GENERATIVE)
def test_many_passes_are_one(folder: Path, loss: str) -> None:
    losses = []
    for pass_tokens in (24, 4096):
        step, batches = make_step(folder, loss, pass_tokens)
        losses.append([step(batch).loss for batch in batches(0, NUM_STEPS)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_pair_is_one_text_of_which_the_second_part_is_said(folder: Path) -> None:
    config = EmbedderConfig(prompt="ask: {text} answer: ")
    query = embedder_spec(str(folder / "recipe.yaml"), config, RECIPES)
    document = embedder_spec(str(folder / "recipe.yaml"), EmbedderConfig(), RECIPES)
    reader = Reader({"query": query, "document": document})
    joined = reader.continuations(["time", "people year"], ["day man", "world " * 100])
    asked, said = reader(["time"], ["query"]).ids[0], reader(["day man"], ["document"]).ids[0]
    assert joined.ids[0].tolist() == [*asked, *said[1:]], "one <s> alone"
    assert joined.texts_N2[0].tolist() == [len(asked), len(asked) + len(said) - 1]
    assert len(joined.ids[1]) == 64, "no more than max_tokens"
    encoder = Encoder(document, STILL, torch.device("cpu"), language=True)
    exercise = next(LanguagePasses(encoder, CausalLm(loss="causal_lm"), None, 0)._exercises(joined, 0, 0))
    assert (exercise.labels_n[: len(asked)] == IGNORED).all()
    assert exercise.labels_n[len(asked) :].tolist() == said[1:].tolist()


@pytest.mark.parametrize(
    "tuning", [STILL, Tuning(precision="float32", lora=Lora(rank=4), dropout=0.0)], ids=["whole", "lora"]
)
@pytest.mark.parametrize("loss", ["mntp", "causal_lm"])
def test_the_folder_goes_on_where_training_ended(folder: Path, loss: str, tuning: Tuning, tmp_path: Path) -> None:
    spec = embedder_spec(str(folder / "recipe.yaml"), EmbedderConfig(), RECIPES)
    encoder = Encoder(spec, tuning, torch.device("cpu"), language=True)
    texts = ready_set(folder, spec, "texts", "texts", ("query",))
    tokenized = texts.tokenized(texts.rows.take(np.arange(20)))
    config = GENERATIVE[loss]
    mask_id = texts.reader.token_id("_") if isinstance(config, Mntp) else None
    assert all("lora_" in name for name in encoder.trained()) == (tuning.lora is not None)
    with torch.no_grad():
        for parameter in encoder.trained().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    before = LanguagePasses(encoder, config, mask_id, 7).mean_loss(tokenized, 0, 64)
    export(encoder, tmp_path / "out")
    again = Encoder(
        embedder_spec(str(tmp_path / "out"), EmbedderConfig(), RECIPES), STILL, torch.device("cpu"), language=True
    )
    assert LanguagePasses(again, config, mask_id, 7).mean_loss(tokenized, 0, 64) == pytest.approx(before, rel=1e-5)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert (getattr(model.config, "is_causal", True) is False) == (loss == "mntp")
    assert says_it_all(encoder) == (loss == "mntp")
    ids_1L = torch.from_numpy(tokenized.ids[0])[None]
    if loss == "causal_lm":
        labels_1L = ids_1L.clone()
        expected = model(input_ids=ids_1L, labels=labels_1L).loss.item()
        first = texts.tokenized(texts.rows.take(np.arange(1)))
        assert LanguagePasses(encoder, config, None, 7).mean_loss(first, 0, 64) == pytest.approx(expected, rel=1e-5)
        generated = model.generate(ids_1L, max_new_tokens=3, do_sample=False)
        assert generated.shape[1] > ids_1L.shape[1]


def test_a_causal_recipe_is_refused_for_mntp(folder: Path) -> None:
    spec = embedder_spec(str(write_recipe(folder, attention="as_trained")), EmbedderConfig(), RECIPES)
    encoder = Encoder(spec, STILL, torch.device("cpu"), language=True)
    with pytest.raises(InputError, match="attention: bidirectional"):
        LanguagePasses(encoder, Mntp(loss="mntp"), 5, 0)
