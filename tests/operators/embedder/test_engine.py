"""The engine against independent references: sentence-transformers, and each text alone through transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import sentence_transformers
import torch
import transformers
import yaml
from numpy.typing import NDArray

from operators.embedder.engine import Embedder
from operators.embedder.model.flops import Flops
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import EmbedderSpec, embedder_spec
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.errors import InputError
from tests import checkpoints

RECIPES = Path(__file__).parents[3] / "configs" / "models"
WORDS = checkpoints.WORDS
# 1 to 90 words, in no order of length
TEXTS = [" ".join(WORDS[(7 * i + j) % len(WORDS)] for j in range(1 + 37 * i % 90)) for i in range(40)]


def config_of(**fields: Any) -> EmbedderConfig:
    return EmbedderConfig(device="cpu", **fields)


def write_recipe(folder: Path, **fields: Any) -> str:
    defaults = {"checkpoint": str(folder), "pooling": "mean", "normalize": True, "max_tokens": 64}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**defaults, **fields}))
    return str(path)


def embed(spec: EmbedderSpec, texts: list[str], **options: Any) -> NDArray[np.float32]:
    vectors = Embedder(spec, device="cpu", **options)(Tokenizer(spec)(pa.array(texts)).input_ids)
    assert vectors.finite_N.all()
    return vectors.values_ND


def embed_with(model: str, texts: list[str], **overrides: Any) -> NDArray[np.float32]:
    return embed(embedder_spec(model, config_of(**overrides), RECIPES), texts)


def cosines(one_ND: NDArray[np.float32], other_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(one_ND, axis=1) * np.linalg.norm(other_ND, axis=1)
    return np.asarray((one_ND * other_ND).sum(1) / norms)


def states_alone(folder: Path, rows: list[list[int]], everything_visible: bool = False) -> list[torch.Tensor]:
    """Each row's token states, one forward a row, with nothing of ours: no padding, and no mask or one of ones."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    states = []
    with torch.inference_mode():
        for row in rows:
            visible = torch.ones(1, 1, len(row), len(row), dtype=torch.bool) if everything_visible else None
            output = model(input_ids=torch.tensor([row]), attention_mask=visible, use_cache=False)
            states.append(output.last_hidden_state[0])
    return states


@pytest.fixture(scope="module")
def minilm_reference() -> tuple[list[str], NDArray[np.float32]]:
    """Varied real sentences, some longer than 256 tokens, and what sentence-transformers makes of them."""
    documentation = [str(module.__doc__) for module in (json, np, torch, transformers, pytest, pa) if module.__doc__]
    texts = [*TEXTS, *documentation, "Ünïcödé 世界 👩‍👩‍👧 " * 200, "x", "don't [SEP] stop\n\n\x00", "word " * 3000]
    model = sentence_transformers.SentenceTransformer(str(checkpoints.minilm_folder()), device="cpu")
    return texts, model.encode(texts, convert_to_numpy=True)


@pytest.mark.parametrize(("compute_dtype", "least"), [("float32", 0.9999), ("bfloat16", 0.999), ("float16", 0.999)])
def test_minilm_is_that_of_sentence_transformers(
    minilm_reference: tuple[list[str], NDArray[np.float32]], compute_dtype: str, least: float
) -> None:
    texts, expected_ND = minilm_reference
    num = 10 if compute_dtype == "float16" else len(texts)  # slow on a CPU: 1,000 tokens a second
    values_ND = embed_with("minilm", texts[-num:], compute_dtype=compute_dtype)
    assert cosines(values_ND, expected_ND[-num:]).min() >= least


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_tiny_bert_is_that_of_sentence_transformers(
    tmp_path: Path, pooling: Literal["mean", "cls"], normalize: bool
) -> None:
    prompts = {"query": "one question: ", "document": "story "}
    folder = checkpoints.tiny_bert(tmp_path, pooling=pooling, normalize=normalize, prompts=prompts)
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    for role in ("query", "document"):
        expected_ND = model.encode(TEXTS, prompt_name=role, convert_to_numpy=True)
        np.testing.assert_allclose(embed_with(str(folder), TEXTS, role=role), expected_ND, atol=2e-5)


def test_last_token_of_a_decoder_is_that_of_sentence_transformers(tmp_path: Path) -> None:
    checkpoints.tiny_decoder(tmp_path, kind="qwen2")
    checkpoints.sentence_transformers_layout(tmp_path, 32, "last", True, 64)
    model = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    expected_ND = model.encode(TEXTS, convert_to_numpy=True)
    np.testing.assert_allclose(embed_with(str(tmp_path), TEXTS), expected_ND, atol=2e-5)


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("attention", ["as_trained", "bidirectional"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_decoders_in_batches_are_each_text_alone(
    tmp_path: Path,
    kind: Literal["mistral", "qwen2", "qwen3"],
    attention: Literal["as_trained", "bidirectional"],
    pooling: Literal["mean", "last"],
) -> None:
    checkpoints.tiny_decoder(tmp_path, kind=kind)
    recipe = write_recipe(tmp_path, pooling=pooling, attention=attention, end_token="<|endoftext|>", normalize=False)
    spec = embedder_spec(recipe, config_of(), RECIPES)
    rows = Tokenizer(spec)(pa.array(TEXTS)).input_ids.to_pylist()
    states = states_alone(tmp_path, rows, everything_visible=attention == "bidirectional")
    expected_ND = torch.stack([own.mean(0) if pooling == "mean" else own[-1] for own in states]).numpy()
    np.testing.assert_allclose(embed(spec, TEXTS), expected_ND, atol=5e-5)


def test_bidirectional_differs_from_as_trained(tmp_path: Path) -> None:
    checkpoints.tiny_decoder(tmp_path)
    vectors = [embed_with(write_recipe(tmp_path, attention=mode), TEXTS) for mode in ("as_trained", "bidirectional")]
    assert cosines(*vectors).min() < 0.99


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "last"])
@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts_in_pooling_are_those_of_sentence_transformers(
    tmp_path: Path, pooling: str, include_prompt: bool
) -> None:
    checkpoints.tiny_decoder(tmp_path, kind="qwen2")
    prompts = {"query": "one question: "}
    checkpoints.sentence_transformers_layout(tmp_path, 32, pooling, True, 64, prompts)
    path = tmp_path / "1_Pooling" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "include_prompt": include_prompt}))
    model = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    expected_ND = model.encode(TEXTS, prompt_name="query", convert_to_numpy=True)
    np.testing.assert_allclose(embed_with(str(tmp_path), TEXTS, role="query"), expected_ND, atol=2e-5)
    expected_ND = model.encode(TEXTS, convert_to_numpy=True)
    np.testing.assert_allclose(embed_with(str(tmp_path), TEXTS), expected_ND, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "activation", "bias"),
    [("tanh", torch.nn.Tanh(), True), ("identity", torch.nn.Identity(), False), ("gelu", torch.nn.GELU(), True)],
)
def test_dense_modules_are_those_of_sentence_transformers(
    tmp_path: Path, name: str, activation: torch.nn.Module, bias: bool
) -> None:
    folder = checkpoints.tiny_bert(tmp_path)
    checkpoints.save_dense(folder / "2_Dense", (32, 48), activation, bias, seed=1)
    checkpoints.save_dense(folder / "3_Dense", (48, 8), torch.nn.Identity(), not bias, seed=2)
    checkpoints.sentence_transformers_layout(tmp_path, 32, "mean", True, 64, dense=["2_Dense", "3_Dense"])
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    expected_ND = model.encode(TEXTS, convert_to_numpy=True)
    assert expected_ND.shape == (len(TEXTS), 8)
    np.testing.assert_allclose(embed_with(str(folder), TEXTS), expected_ND, atol=2e-5)


@pytest.mark.parametrize("kind", ["mistral", "gemma3"])
def test_a_window_is_kept_or_lifted(tmp_path: Path, kind: Literal["mistral", "gemma3"]) -> None:
    checkpoints.tiny_decoder(tmp_path, kind=kind, sliding_window=8, max_tokens=64)
    (tmp_path / "open").mkdir()
    checkpoints.tiny_decoder(tmp_path / "open", kind=kind, sliding_window=None if kind == "mistral" else 64)
    for window, folder in (("as_trained", tmp_path), ("none", tmp_path / "open")):
        spec = embedder_spec(write_recipe(tmp_path, window=window, normalize=False), config_of(), RECIPES)
        rows = Tokenizer(spec)(pa.array(TEXTS)).input_ids.to_pylist()
        expected_ND = torch.stack([own.mean(0) for own in states_alone(folder, rows)]).numpy()
        np.testing.assert_allclose(embed(spec, TEXTS), expected_ND, atol=5e-5)


def test_layers_are_averaged(tmp_path: Path) -> None:
    checkpoints.tiny_decoder(tmp_path, layers=3)
    spec = embedder_spec(write_recipe(tmp_path, layers=[1, -2], normalize=False), config_of(), RECIPES)
    rows = Tokenizer(spec)(pa.array(TEXTS)).input_ids.to_pylist()
    model = transformers.AutoModel.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        hidden = [model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states for row in rows]
    expected_ND = torch.stack([((own[1] + own[2]) / 2)[0].mean(0) for own in hidden]).numpy()
    np.testing.assert_allclose(embed(spec, TEXTS), expected_ND, atol=5e-5)


def test_a_layer_that_is_not_there(tmp_path: Path) -> None:
    checkpoints.tiny_decoder(tmp_path, layers=3)
    with pytest.raises(InputError, match=r"layers: 4 is not there: .* has 3 layers"):
        embed_with(write_recipe(tmp_path, layers=[4]), TEXTS)


def test_several_prompts_are_averaged(tmp_path: Path) -> None:
    folder = checkpoints.tiny_bert(tmp_path)
    prompts = ["the ", "", 'a "{text}" way']
    alone = [
        embed_with(write_recipe(folder, prompts={"document": prompt}, normalize=False), TEXTS) for prompt in prompts
    ]
    together_ND = embed_with(write_recipe(folder, prompts={"document": prompts}, normalize=False), TEXTS)
    np.testing.assert_allclose(together_ND, np.mean(alone, axis=0), atol=1e-5)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[EmbedderSpec, Embedder, pa.ListArray]:
    folder = checkpoints.tiny_bert(tmp_path_factory.mktemp("bert"))
    spec = embedder_spec(str(folder), config_of(), RECIPES)
    return spec, Embedder(spec, device="cpu"), Tokenizer(spec)(pa.array(TEXTS)).input_ids


@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_batches_of_any_size_give_the_same_vectors(
    bert: tuple[EmbedderSpec, Embedder, pa.ListArray], batch_tokens: int
) -> None:
    spec, embedder, input_ids = bert
    other = Embedder(spec, batch_tokens=batch_tokens, device="cpu", threads=1)
    assert other.batch_tokens == batch_tokens
    np.testing.assert_allclose(other(input_ids).values_ND, embedder(input_ids).values_ND, atol=1e-5)


def test_rows_keep_their_order(bert: tuple[EmbedderSpec, Embedder, pa.ListArray]) -> None:
    _, embedder, input_ids = bert
    order = np.random.default_rng(0).permutation(len(input_ids))
    shuffled_ND = embedder(input_ids.take(pa.array(order))).values_ND
    np.testing.assert_allclose(shuffled_ND, embedder(input_ids).values_ND[order], atol=1e-5)


def test_a_slice_and_nothing(bert: tuple[EmbedderSpec, Embedder, pa.ListArray]) -> None:
    _, embedder, input_ids = bert
    part_ND = embedder(input_ids.slice(5, 7)).values_ND
    np.testing.assert_allclose(part_ND, embedder(input_ids).values_ND[5:12], atol=1e-5)
    nothing = embedder(input_ids.slice(0, 0))
    assert (nothing.values_ND.shape, len(nothing.finite_N), nothing.padding_tokens) == ((0, 32), 0, 0)


def test_a_row_without_tokens_has_no_vector(bert: tuple[EmbedderSpec, Embedder, pa.ListArray]) -> None:
    _, embedder, _ = bert
    vectors = embedder(pa.array([[2, 20, 3], [], [2, 21, 3]], pa.list_(pa.int32())))
    assert vectors.finite_N.tolist() == [True, False, True]
    assert not vectors.values_ND[1].any()


def test_matryoshka_is_cut_and_renormalised(bert: tuple[EmbedderSpec, Embedder, pa.ListArray]) -> None:
    spec, embedder, input_ids = bert
    whole_ND = embedder(input_ids).values_ND[:, :8]
    cut_ND = embed_with(spec.model, TEXTS, dims=8)
    expected_ND = whole_ND / np.linalg.norm(whole_ND, axis=1, keepdims=True)
    np.testing.assert_allclose(cut_ND, expected_ND, atol=1e-5)


def test_padding_is_counted_where_it_is_computed(tmp_path: Path) -> None:
    checkpoints.tiny_decoder(tmp_path)
    spec = embedder_spec(write_recipe(tmp_path), config_of(), RECIPES)
    embedder = Embedder(spec, batch_tokens=40, device="cpu")
    rows = [[1, 5], [1, 5, 6, 7, 8, 9, 10, 11], [1, 5, 6, 7]]
    assert embedder(pa.array(rows, pa.list_(pa.int32()))).padding_tokens == 6 + 4


def test_a_bad_row_is_flagged_and_spoils_no_other(tmp_path: Path) -> None:
    folder = checkpoints.tiny_bert(tmp_path)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][4] = torch.nan  # [MASK], which no ordinary text has
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    embedder = Embedder(embedder_spec(str(folder), config_of(), RECIPES), device="cpu")
    rows = [[2, 20, 21, 3], [2, 4, 3], [2, 22, 3]]
    vectors = embedder(pa.array(rows, pa.list_(pa.int32())))
    assert vectors.finite_N.tolist() == [True, False, True]
    assert not vectors.values_ND[1].any()
    alone_ND = np.concatenate([embedder(pa.array([row], pa.list_(pa.int32()))).values_ND for row in rows])
    np.testing.assert_allclose(vectors.values_ND, alone_ND, atol=1e-5)


def test_errors_of_a_batch_are_not_swallowed(bert: tuple[EmbedderSpec, Embedder, pa.ListArray]) -> None:
    _, embedder, _ = bert
    with pytest.raises(IndexError):
        embedder(pa.array([[2, 10_000, 3]], pa.list_(pa.int32())))


def test_flops_are_two_per_weight_and_the_attention(tmp_path: Path) -> None:
    spec = embedder_spec(str(checkpoints.tiny_bert(tmp_path, hidden=32, layers=3)), config_of(), RECIPES)
    flops = Embedder(spec, device="cpu").flops
    matrices = 3 * (4 * 32 * 32 + 2 * 32 * 64)  # q, k, v, o and both halves of the MLP
    assert flops.per_token == pytest.approx(2 * matrices, rel=0.1)  # biases and norms are counted too
    assert flops.total(np.array([10, 20])) == 30 * flops.per_token + 500 * (3 * 4 * 32)
    assert Flops.of_folder(tmp_path, spec.recipe) == flops


def test_a_gpu_that_is_not_there(bert: tuple[EmbedderSpec, Embedder, pa.ListArray]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(InputError, match=r"device is cuda, but torch finds no GPU here"):
        Embedder(bert[0], device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("compute_dtype", "least"), [("float32", 0.9999), ("bfloat16", 0.999)])
def test_gpu_vectors_are_those_of_the_cpu(compute_dtype: str, least: float) -> None:
    spec = embedder_spec("minilm", config_of(compute_dtype=compute_dtype), RECIPES)
    input_ids = Tokenizer(spec)(pa.array(TEXTS)).input_ids
    on_gpu_ND = Embedder(spec, device="cuda")(input_ids).values_ND
    on_cpu_ND = embed_with("minilm", TEXTS)
    assert cosines(on_gpu_ND, on_cpu_ND).min() >= least


def test_tokens_are_told_batch_by_batch(tmp_path: Path) -> None:
    spec = embedder_spec(write_recipe(checkpoints.tiny_bert(tmp_path / "model")), config_of(), RECIPES)
    tokens = Tokenizer(spec)(pa.array(TEXTS))
    told: list[int] = []
    Embedder(spec, device="cpu", batch_tokens=256)(tokens.input_ids, told.append)
    assert sum(told) == tokens.num_tokens.sum().as_py()
    assert len(told) > 3
    assert max(told) <= 256
