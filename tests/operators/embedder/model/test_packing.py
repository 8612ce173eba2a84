"""Packed texts against each text alone through transformers, and what is refused because it would not be the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
import yaml
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import masking_utils
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

from operators.embedder.engine import Embedder
from operators.embedder.factory import load_embedder
from operators.embedder.model import fast_bert, packing
from operators.embedder.model.forward import PaddedTrunk
from operators.embedder.model.packing import Band, PackedTrunk, pack
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import EmbedderSpec, embedder_spec
from operators.embedder.tokens.batching import Batch
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.errors import InputError
from tests import checkpoints

RECIPES = Path(__file__).parents[4] / "configs" / "models"
CPU = torch.device("cpu")
LENGTHS = (61, 40, 40, 40, 23, 17, 17, 5, 2, 1)
WINDOW = {"sliding_window": 16}


@pytest.fixture(autouse=True)
def no_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """BERT as it is on a GPU."""
    monkeypatch.setattr(fast_bert, "supports", lambda *_: False)


def random_batch(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> Batch:
    ids_T = np.random.default_rng(seed).integers(5, 100, sum(lengths))
    return Batch(ids_T, np.array(lengths, np.int64))


def load(folder: Path, bidirectional: bool = False) -> Any:
    model = transformers.AutoModel.from_pretrained(folder).eval()
    model.config.use_cache = False
    if bidirectional:
        model.config.is_causal = False
    return model


def each_alone(model: Any, batch: Batch) -> list[torch.Tensor]:
    """The states of every text by itself, with nothing of ours."""
    rows = np.split(batch.ids_T, np.cumsum(batch.lengths_B)[:-1])
    with torch.inference_mode():
        return [model(input_ids=torch.from_numpy(row)[None]).last_hidden_state[0] for row in rows]


def packed_states(model: Any, batch: Batch, causal: bool = False) -> list[torch.Tensor]:
    with torch.inference_mode():
        trunk = pack(PaddedTrunk(model, CPU, causal), random_batch((9, 20, 4), seed=1), 1 - 1e-5)
        tokens = trunk(batch)
    return [states_LD[mask_L] for states_LD, mask_L in zip(tokens.states_BLD, tokens.mask_BL, strict=True)]


def largest_difference(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("llama", {}),
        ("mistral", {}),
        ("mistral", WINDOW),
        ("qwen2", {}),
        ("qwen2", {**WINDOW, "use_sliding_window": True, "max_window_layers": 1}),
        ("qwen3", {}),
        ("gemma3", WINDOW),
        ("opt", {}),
    ],
)
def test_decoders(tmp_path: Path, kind: Any, fields: dict[str, Any], bidirectional: bool) -> None:
    checkpoints.tiny_decoder(tmp_path, kind=kind, **fields)
    batch = random_batch()
    expected = each_alone(load(tmp_path, bidirectional), batch)
    assert largest_difference(expected, each_alone(load(tmp_path, not bidirectional), batch)) > 0.1
    assert largest_difference(packed_states(load(tmp_path, bidirectional), batch), expected) <= 1e-4


def test_gemma_of_both_ways(tmp_path: Path) -> None:
    checkpoints.tiny_decoder(tmp_path, kind="gemma3", use_bidirectional_attention=True, **WINDOW)
    batch = random_batch()
    expected = each_alone(load(tmp_path), batch)
    assert largest_difference(packed_states(load(tmp_path), batch), expected) <= 1e-4


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "modernbert"])
def test_encoders(tmp_path: Path, kind: Any) -> None:
    if kind == "bert":
        checkpoints.tiny_bert(tmp_path)
    else:
        checkpoints.tiny_encoder(tmp_path, kind=kind)
    batch = random_batch()
    batch.ids_T[[3, 70, 71]] = 3  # the padding id of RoBERTa's family, within texts: it has a position of its own
    expected = each_alone(load(tmp_path), batch)
    assert largest_difference(packed_states(load(tmp_path), batch), expected) <= 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    checkpoints.tiny_decoder(tmp_path, kind="qwen3")
    model, batch = load(tmp_path).to(dtype), random_batch()
    expected = each_alone(model, batch)
    trunk = pack(PaddedTrunk(model, CPU, causal=True), batch, 0.99)
    with torch.inference_mode():
        tokens = trunk(batch)
    assert tokens.states_BLD.dtype == dtype
    for states_LD, mask_L, own_LD in zip(tokens.states_BLD, tokens.mask_BL, expected, strict=True):
        assert torch.nn.functional.cosine_similarity(states_LD[mask_L].float(), own_LD.float(), dim=1).min() > 0.999


def spec_of(folder: Path, **fields: Any) -> EmbedderSpec:
    recipe = {"checkpoint": str(folder), "pooling": "mean", "normalize": True, "max_tokens": 64, **fields}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return embedder_spec(str(folder / "recipe.yaml"), EmbedderConfig(device="cpu"), RECIPES)


def texts() -> pa.Array:
    words = checkpoints.WORDS
    return pa.array([" ".join(words[(7 * i + j) % len(words)] for j in range(1 + 37 * i % 90)) for i in range(20)])


def vectors(spec: EmbedderSpec, packing: bool, **options: Any) -> tuple[NDArray[np.float32], int]:
    found = Embedder(spec, device="cpu", packing=packing, **options)(Tokenizer(spec)(texts()).input_ids)
    assert found.finite_N.all()
    return found.values_ND, found.padding_tokens


@pytest.mark.parametrize(
    "fields", [{"pooling": "last"}, {"pooling": "weighted_mean"}, {"layers": [1, -1]}, {"attention": "bidirectional"}]
)
@pytest.mark.parametrize("batch_tokens", [None, 100, 1])
def test_an_embedder_that_packs_has_the_vectors_of_one_that_pads(
    tmp_path: Path, fields: dict[str, Any], batch_tokens: int | None
) -> None:
    spec = spec_of(checkpoints.tiny_decoder(tmp_path), **fields)
    padded_ND, padding = vectors(spec, packing=False, batch_tokens=batch_tokens)
    packed_ND, none = vectors(spec, packing=True, batch_tokens=batch_tokens)
    np.testing.assert_allclose(packed_ND, padded_ND, atol=1e-5)
    assert none == 0
    assert padding > 0 or batch_tokens == 1


@given(
    rows=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=9), min_size=1, max_size=6),
    skipped=st.integers(0, 3),
)
def test_positions(rows: list[list[int]], skipped: int) -> None:
    batch = Batch(np.array([token for row in rows for token in row]), np.array([len(row) for row in rows]))
    assert batch.positions().tolist() == [place for row in rows for place in range(len(row))]
    counted = [RobertaEmbeddings.create_position_ids_from_input_ids(torch.tensor([row]), skipped)[0] for row in rows]
    assert batch.positions(skipped).tolist() == torch.cat(counted).tolist()


MASKS = {
    "causal": (masking_utils.causal_mask_function, Band(40, 0)),
    "bidirectional": (masking_utils.bidirectional_mask_function, Band(40, 40)),
    "causal window": (masking_utils.sliding_window_causal_mask_function(7), Band(6, 0)),
    "window": (masking_utils.sliding_window_bidirectional_mask_function(7), Band(7, 7)),
}


@pytest.mark.parametrize("name", MASKS)
def test_bands_are_what_mask_functions_say(name: str) -> None:
    function, expected = MASKS[name]
    band = Band.of(function, 41)
    assert band == expected
    for length in (1, 2, 7, 8, 9, 41):
        places_L = torch.arange(length)
        sees_LL = function(torch.tensor(0), torch.tensor(0), places_L[:, None], places_L).expand(length, length)
        mask_LL, causal = band.mask(length, CPU)
        if mask_LL is None:
            mask_LL = torch.ones(length, length, dtype=torch.bool)
            mask_LL = mask_LL.tril() if causal else mask_LL
        assert torch.equal(mask_LL, sees_LL)


def test_tokens_in_chunks_are_no_band() -> None:
    function = masking_utils.chunked_causal_mask_function(8, torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match="its tokens see others than those nearest to them"):
        Band.of(function, 40)


def refuse(model: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pack(PaddedTrunk(model, CPU, causal=False), random_batch(), 1 - 1e-5)


def test_a_model_with_attention_of_its_own_is_refused(tmp_path: Path) -> None:
    refuse(
        load(checkpoints.tiny_encoder(tmp_path, kind="mpnet")), "leave out embedder.packing: mpnet has no attention of"
    )


def test_a_model_that_does_not_hand_on_what_its_attention_needs_is_refused(tmp_path: Path) -> None:
    checkpoints.tiny_decoder(tmp_path)
    model = load(tmp_path)
    forward = model.forward
    model.forward = lambda runs=None, **inputs: forward(**inputs)
    refuse(model, "leave out embedder.packing: mistral cannot be packed: it does not tell its attention which texts")


@pytest.mark.parametrize(
    ("share", "message"),
    [(0.5, "gives texts packed and padded different states"), (1e-5, "lets packed texts see one another")],
)
def test_a_model_that_mixes_neighbours_is_refused(tmp_path: Path, share: float, message: str) -> None:
    model = load(checkpoints.tiny_bert(tmp_path))
    model.embeddings.register_forward_hook(lambda _, __, states: states + share * states.roll(1, 1))
    refuse(model, message)


def test_a_model_that_knows_no_positions_but_its_own_is_refused(tmp_path: Path) -> None:
    model = load(checkpoints.tiny_bert(tmp_path))
    forward = model.forward
    model.forward = lambda position_ids=None, **inputs: forward(**inputs)
    refuse(model, "gives texts packed and padded different states")


def test_recipes_that_are_not_packed_are_refused(tmp_path: Path) -> None:
    checkpoints.tiny_decoder(tmp_path, kind="llama")
    prompts = {"document": "so <PST> {text}"}
    spec = spec_of(tmp_path, pooling="last", prepend={"exit_layer": 2}, prompts=prompts)
    with pytest.raises(InputError, match=r"leave out embedder.packing: .* prepends tokens"):
        load_embedder(spec, device="cpu", packing=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_on_a_gpu(tmp_path: Path, bidirectional: bool) -> None:
    attention = "bidirectional" if bidirectional else "causal"
    spec = spec_of(checkpoints.tiny_decoder(tmp_path, **WINDOW), attention=attention, compute_dtype="bfloat16")
    input_ids = Tokenizer(spec)(texts()).input_ids
    on_gpu_ND = Embedder(spec, device="cuda", packing=True)(input_ids).values_ND
    on_cpu_ND = Embedder(spec, device="cpu")(input_ids).values_ND
    assert (on_gpu_ND * on_cpu_ND).sum(axis=1).min() >= 0.999


def test_a_text_longer_than_the_window_is_among_those_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    own = packing.pack

    def recorded(padded: PaddedTrunk, probe: Batch, least_cosine: float) -> PackedTrunk:
        lengths.extend(probe.lengths_B.tolist())
        return own(padded, probe, least_cosine)

    monkeypatch.setattr("operators.embedder.model.packing.pack", recorded)
    spec = spec_of(checkpoints.tiny_decoder(tmp_path, sliding_window=40, max_tokens=512), max_tokens=512)
    Embedder(spec, device="cpu", packing=True)
    assert lengths[-1] == 56
