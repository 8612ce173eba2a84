"""Every recipe of configs/models, on tiny random checkpoints, against an implementation of its own written here.

The recipe is the repository's file, with another checkpoint, length and number format; the reference reads each text
alone through plain transformers or sentence-transformers, after the papers and their code (docs/recipes.md). Each test
records its largest difference, of which benchmarks/recipe_differences.py makes a table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sentence_transformers
import torch
import transformers
import yaml
from numpy.typing import NDArray
from safetensors.torch import load_file

from operators.embedder.engine import Embedder
from operators.embedder.recipe import EmbedderConfig
from operators.embedder.spec import embedder_spec
from operators.embedder.templates import Template
from operators.embedder.tokenizing import Tokenizer
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


def embed(recipe: str, texts: Sequence[str], batch_tokens: int | None = None, **overrides: Any) -> Vectors:
    spec = embedder_spec(recipe, EmbedderConfig(device="cpu", **overrides), RECIPES)
    vectors = Embedder(spec, batch_tokens=batch_tokens, device="cpu")(Tokenizer(spec)(pa.array(list(texts))).input_ids)
    assert vectors.finite_N.all()
    return vectors.values_ND


def check(
    record: Record,
    name: str,
    folder: Path,
    reference: str,
    expected_ND: Any,
    texts: Sequence[str] = TEXTS,
    sides: Sequence[str] = ("right",),
    changes: dict[str, Any] | None = None,
    **overrides: Any,
) -> None:
    """Compare a recipe with its reference: in large batches, row by row, and padded on each side."""
    largest = 0.0
    for side in sides:
        path = recipe_file(name, folder, padding=side, **(changes or {}))
        for batch_tokens in (None, 1):
            found_ND = embed(path, texts, batch_tokens, **overrides)
            assert found_ND.shape == np.shape(expected_ND)
            largest = max(largest, float(np.abs(found_ND - np.asarray(expected_ND)).max()))
    record("recipe", name)
    record("reference", reference)
    record("difference", largest)
    assert largest <= TOLERANCE


BOTH = ("right", "left")


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


# Encoders


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("bert-base", "bert"),
        ("roberta-base", "roberta"),
        ("xlm-roberta-base", "xlm-roberta"),
        ("all-mpnet-base-v2", "mpnet"),
        ("simcse-unsup-bert-base", "bert"),
        ("e5-base", "bert"),
        ("multilingual-e5-base", "xlm-roberta"),
        ("bge-base", "bert"),
        ("bge-m3-dense", "xlm-roberta"),
        ("modernbert-embed-base", "modernbert"),
    ],
)
def test_encoders(tmp_path: Path, name: str, kind: Any, record_property: Record) -> None:
    if kind == "bert":
        checkpoints.tiny_bert(tmp_path)
    else:
        checkpoints.tiny_encoder(tmp_path, kind=kind)
    fields = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    prompts = fields.get("prompts", {})
    checkpoints.sentence_transformers_layout(tmp_path, 32, fields["pooling"], True, 64, prompts)
    model = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    for role in ("query", "document"):
        expected_ND = model.encode(TEXTS, prompt=prompts.get(role, ""), convert_to_numpy=True)
        check(record_property, name, tmp_path, "sentence-transformers", expected_ND, role=role)


def test_first_and_last_layer(tmp_path: Path, record_property: Record) -> None:
    tokenizer = tokenizer_of(checkpoints.tiny_bert(tmp_path, layers=3))
    rows = [tokenizer(text, truncation=True, max_length=64)["input_ids"] for text in TEXTS]
    expected = unit((own[1] + own[-1]).mean(0) / 2 for own in states(tmp_path, rows))
    check(record_property, "bert-base-first-last", tmp_path, "SimCSE's formula, each text alone", expected)


def test_supervised_simcse(tmp_path: Path, record_property: Record) -> None:
    tokenizer = tokenizer_of(checkpoints.tiny_bert(tmp_path))
    model = transformers.BertModel.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        inputs = [tokenizer(text, truncation=True, max_length=64, return_tensors="pt") for text in TEXTS]
        expected = unit(model(**own).pooler_output[0] for own in inputs)
    check(record_property, "simcse-sup-bert-base", tmp_path, "BertModel's pooler_output, each text alone", expected)


# Decoders


def instructed(folder: Path, prompt: str, text: str, end: str, max_tokens: int = 64) -> list[int]:
    """The ids of prompt and text as one string with <s> before them, and the end token in the last place."""
    tokenizer = tokenizer_of(folder)
    ids = tokenizer(prompt + text)["input_ids"][: max_tokens - 1]
    return [*ids, tokenizer.convert_tokens_to_ids(end)]


@pytest.mark.parametrize(
    ("name", "kind", "end", "query", "bidirectional"),
    [
        ("e5-mistral-7b", "mistral", "</s>", "Instruct: {}\nQuery: ", False),
        ("sfr-embedding-mistral", "mistral", "</s>", "Instruct: {}\nQuery: ", False),
        ("qwen3-embedding-0.6b", "qwen3", "<|endoftext|>", "Instruct: {}\nQuery:", False),
        ("gte-qwen2-7b", "qwen2", "<|endoftext|>", "Instruct: {}\nQuery: ", True),
    ],
)
def test_last_token(
    tmp_path: Path, name: str, kind: Any, end: str, query: str, bidirectional: bool, record_property: Record
) -> None:
    checkpoints.tiny_decoder(tmp_path, kind=kind, specials=("</s>",))
    for role, prompt in (("query", query.format("find it")), ("document", "")):
        rows = [instructed(tmp_path, prompt, text, end) for text in TEXTS]
        expected = unit(own[-1][-1] for own in states(tmp_path, rows, bidirectional))
        check(
            record_property,
            name,
            tmp_path,
            "transformers, each text alone",
            expected,
            sides=BOTH,
            changes={"dims": [8, 32], "task": "find it"},
            role=role,
        )


@pytest.mark.parametrize("dims", [8, 32])
def test_gecko_style(tmp_path: Path, dims: int, record_property: Record) -> None:
    tokenizer = tokenizer_of(checkpoints.tiny_bert(tmp_path))
    for role, prompt in (("query", "task: search result | query: "), ("document", "title: none | text: ")):
        rows = [tokenizer(prompt + text, truncation=True, max_length=64)["input_ids"] for text in TEXTS]
        expected = unit(own[-1].mean(0)[:dims] for own in states(tmp_path, rows))
        check(
            record_property,
            "gecko-style",
            tmp_path,
            "mean of each text alone, cut",
            expected,
            changes={"dims": [8, 32]},
            role=role,
            dims=dims,
        )


def test_echo(tmp_path: Path, record_property: Record) -> None:
    tokenizer = tokenizer_of(checkpoints.tiny_decoder(tmp_path, specials=("</s>",)))

    def ids(piece: str) -> list[int]:
        return list(tokenizer(piece, add_special_tokens=False)["input_ids"])

    for role, (first, again) in {
        "query": ("Instruct:find it,\nQuery:", "\nQuery again:"),
        "document": ("Document:", "\nDocument again:"),
    }.items():
        room = (100 - 2 - len(ids(first)) - len(ids(again))) // 2
        copies = [ids(text)[:room] for text in TEXTS]
        assert max(map(len, copies)) == room
        rows = [[1, *ids(first), *copy, *ids(again), *copy, *ids("</s>")] for copy in copies]
        expected = unit(
            own[-1][-1 - len(copy) : -1].mean(0) for own, copy in zip(states(tmp_path, rows), copies, strict=True)
        )
        check(
            record_property,
            "echo-mistral-7b",
            tmp_path,
            "pieces tokenized apart, second copy's mean, each text alone",
            expected,
            sides=BOTH,
            changes={"task": "find it", "max_tokens": 100},
            role=role,
        )


@pytest.mark.parametrize("role", ["query", "document"])
def test_gritlm_embeds(tmp_path: Path, role: str, record_property: Record) -> None:
    specials = ("<|user|>", "<|embed|>", "<|assistant|>")
    tokenizer = tokenizer_of(checkpoints.tiny_decoder(tmp_path, specials=specials, sliding_window=16))
    instruction = "<|user|>\nfind it\n<|embed|>\n" if role == "query" else "<|embed|>\n"
    left_out = len(tokenizer(instruction)["input_ids"])  # <s> included, as GritLM counts
    rows = [tokenizer(instruction + text, truncation=True, max_length=64)["input_ids"] for text in TEXTS]
    expected = unit(own[-1][left_out:].mean(0) for own in states(tmp_path, rows, bidirectional=True))
    check(
        record_property,
        "gritlm-7b",
        tmp_path,
        "GritLM's instruction mask, each text alone",
        expected,
        sides=BOTH,
        changes={"task": "find it"},
        role=role,
    )


@pytest.mark.parametrize("role", ["query", "document"])
def test_nv_embed(tmp_path: Path, role: str, record_property: Record) -> None:
    head = checkpoints.tiny_nv_embed(tmp_path, sliding_window=16)
    tokenizer = tokenizer_of(tmp_path)
    instruction = "Instruct: find it\nQuery: " if role == "query" else ""
    left_out = len(tokenizer.tokenize(instruction))  # as NV-Embed counts: without <s>, with the blank at the end
    rows = [instructed(tmp_path, instruction, text, "</s>") for text in TEXTS]
    model = transformers.MistralModel.from_pretrained(tmp_path / "trunk").eval()
    expected = unit(
        latent_attention(head, own[-1])[left_out:].mean(0)
        for own in states(tmp_path, rows, bidirectional=True, model=model)
    )
    check(
        record_property,
        "nv-embed-v2",
        tmp_path,
        "latent attention as published, each text alone",
        expected,
        sides=BOTH,
        changes={"task": "find it", "latent_attention": {"prefix": "latent_attention_model.", "heads": 2}},
        role=role,
    )


def latent_attention(head: dict[str, torch.Tensor], states_LD: torch.Tensor) -> torch.Tensor:
    """NV-Embed's formula for one text, with two heads, step by step."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x, x.shape[-1:], head[f"{name}.weight"], head[f"{name}.bias"])

    block = "cross_attend_blocks."
    query = norm(states_LD, f"{block}0.norm") @ head[f"{block}0.fn.to_q.weight"].T
    both = norm(head["latents"], f"{block}0.norm_context") @ head[f"{block}0.fn.to_kv.weight"].T
    key, value = both.chunk(2, dim=-1)
    outputs = []
    for q, k, v in zip(query.chunk(2, -1), key.chunk(2, -1), value.chunk(2, -1), strict=True):
        outputs.append(torch.softmax(q @ k.T / q.shape[-1] ** 0.5, dim=-1) @ v)
    states_LD = torch.cat(outputs, -1) @ head[f"{block}0.fn.to_out.weight"].T + states_LD
    inner = norm(states_LD, f"{block}1.norm") @ head[f"{block}1.fn.net.0.weight"].T + head[f"{block}1.fn.net.0.bias"]
    x, gate = inner.chunk(2, dim=-1)
    gated = x * torch.nn.functional.gelu(gate)
    return gated @ head[f"{block}1.fn.net.2.weight"].T + head[f"{block}1.fn.net.2.bias"] + states_LD


@pytest.mark.parametrize("role", ["query", "document"])
def test_bge_en_icl(tmp_path: Path, role: str, record_property: Record) -> None:
    specials = ("</s>", "<instruct>", "<query>", "<response>")
    tokenizer = tokenizer_of(checkpoints.tiny_decoder(tmp_path, max_tokens=256, specials=specials))
    examples = [{"query": "one way", "response": "a day"}, {"query": "part", "response": "whole"}]
    prefix = "".join(f"<instruct>find it\n<query>{e['query']}\n<response>{e['response']}\n\n" for e in examples)
    prefix += "<instruct>find it\n<query>"
    suffix = "\n<response>"
    max_tokens = len(tokenizer(prefix)["input_ids"]) + 40

    end = tokenizer.convert_tokens_to_ids("</s>")

    def ids(text: str) -> list[int]:
        if role == "document":
            return instructed(tmp_path, "", text, "</s>", max_tokens)
        return [*fitted(tokenizer, prefix, text, suffix, max_tokens - 1), end]

    rows = [ids(text) for text in TEXTS]
    assert {row[-1] for row in rows} == {end}
    if role == "query":
        assert {row[-2] for row in rows} == {tokenizer.convert_tokens_to_ids("<response>")}
    assert max(map(len, rows)) == max_tokens
    expected = unit(own[-1][-1] for own in states(tmp_path, rows))
    check(
        record_property,
        "bge-en-icl",
        tmp_path,
        "examples, query, suffix; each alone, the query cut to fit",
        expected,
        sides=BOTH,
        changes={"task": "find it", "examples": examples, "max_tokens": max_tokens},
        role=role,
    )


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("role", ["query", "document"])
def test_llm2vec(tmp_path: Path, role: str, merged: bool, record_property: Record) -> None:
    tokenizer = tokenizer_of(checkpoints.tiny_decoder(tmp_path, sliding_window=16))
    model: Any = transformers.AutoModel.from_pretrained(tmp_path)
    for name, seed in (("mntp", 1), ("supervised", 2)):
        adapted = checkpoints.with_lora(model, seed)
        adapted.save_pretrained(str(tmp_path / name))
        model = adapted.merge_and_unload()
    before = "[INST] find it:" if role == "query" else "[INST]"
    rows, spans = [], []
    for text in SHORT:
        encoding = tokenizer(f"{before} {text} [/INST]", return_offsets_mapping=True)
        rows.append(encoding["input_ids"])
        spans.append([i for i, (start, end) in enumerate(encoding["offset_mapping"]) if end > len(before)])
    found = states(tmp_path, rows, bidirectional=True, model=model.eval())
    expected = unit(own[-1][span].mean(0) for own, span in zip(found, spans, strict=True))
    check(
        record_property,
        "llm2vec-mistral-7b",
        tmp_path,
        "peft's merged adapters, tokens after the instruction by offset, each text alone",
        expected,
        SHORT,
        sides=BOTH,
        changes={
            "adapters": [str(tmp_path / "mntp"), str(tmp_path / "supervised")],
            "merge_adapters": merged,
            "task": "find it:",
            "max_tokens": 128,
        },
        role=role,
    )


def test_gritlm_still_generates(tmp_path: Path) -> None:
    specials = ("<|user|>", "<|embed|>", "<|assistant|>")
    tokenizer = tokenizer_of(checkpoints.tiny_decoder(tmp_path, specials=specials))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.MistralForCausalLM(config).save_pretrained(tmp_path)
    prompt = tokenizer("<|user|>\nthe world\n<|assistant|>\n", return_tensors="pt")

    def generate() -> list[int]:
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        return [int(token) for token in model.generate(**prompt, do_sample=False, max_new_tokens=8)[0]]

    before = generate()
    embed(recipe_file("gritlm-7b", tmp_path), SHORT)
    assert generate() == before
    ids, model = prompt["input_ids"][0].tolist(), transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        while len(ids) < len(before):  # greedily, one causal forward a token
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    assert ids == before


# Heads


@pytest.mark.parametrize("dims", [None, 16, 48])
def test_stella(tmp_path: Path, dims: int | None, record_property: Record) -> None:
    tokenizer = tokenizer_of(checkpoints.tiny_decoder(tmp_path, kind="qwen2"))
    for width in (16, 48):
        checkpoints.save_dense(tmp_path / f"2_Dense_{width}", (32, width), torch.nn.Identity(), True, seed=width)
    head = load_file(tmp_path / f"2_Dense_{dims or 48}" / "model.safetensors")
    prompt = "Instruct: Retrieve semantically similar text.\nQuery: "
    rows = [tokenizer(prompt + text, truncation=True, max_length=64)["input_ids"] for text in TEXTS]
    expected = unit(
        own[-1].mean(0) @ head["linear.weight"].T + head["linear.bias"]
        for own in states(tmp_path, rows, bidirectional=True)
    )
    check(
        record_property,
        "stella-1.5b",
        tmp_path,
        "mean and its linear layer, each text alone",
        expected,
        sides=BOTH,
        changes={"dims": [16, 48], "default_dims": 48},
        role="sts",
        dims=dims,
    )


def test_embeddinggemma(tmp_path: Path, record_property: Record) -> None:
    checkpoints.tiny_decoder(tmp_path, kind="gemma3", use_bidirectional_attention=True, sliding_window=16, layers=2)
    checkpoints.save_dense(tmp_path / "2_Dense", (32, 128), torch.nn.Identity(), False, seed=1)
    checkpoints.save_dense(tmp_path / "3_Dense", (128, 32), torch.nn.Identity(), False, seed=2)
    checkpoints.sentence_transformers_layout(tmp_path, 32, "mean", True, 64, dense=["2_Dense", "3_Dense"])
    model = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    for role, prompt in (("query", "task: search result | query: "), ("document", "title: none | text: ")):
        expected_ND = model.encode(TEXTS, prompt=prompt, convert_to_numpy=True)
        check(
            record_property,
            "embeddinggemma-300m",
            tmp_path,
            "sentence-transformers",
            expected_ND,
            changes={"dims": [16, 32]},
            role=role,
        )


# Prompting without training


def sentence(text: str) -> str:
    """What the prompting papers' code does to a sentence first."""
    if text[-1] not in ".?\"'":
        text += "."
    text = text.replace('"', "'")
    return text[:-1] + "." if text[-1] == "?" else text


@pytest.mark.parametrize(
    ("name", "kind", "before"),
    [
        (
            "prompteol-opt-1.3b",
            "opt",
            'This sentence : "A jockey riding a horse." means in one word:"Equestrian".',
        ),
        ("pretended-cot", "llama", "After thinking step by step , "),
        (
            "knowledge-enhancement",
            "llama",
            "The essence of a sentence is often captured by its main subjects and actions, while descriptive terms "
            "provide additional but less central details. With this in mind , ",
        ),
    ],
)
def test_one_word(tmp_path: Path, name: str, kind: Any, before: str, record_property: Record) -> None:
    tokenizer = tokenizer_of(checkpoints.tiny_decoder(tmp_path, kind=kind, max_tokens=512))
    texts = [*TEXTS, "Is it?", 'He said "no"']
    prefix = f'{before}{"This" if name.startswith("prompteol") else "this"} sentence : "'
    suffix = '" means in one word:"'
    max_tokens = len(tokenizer(prefix + suffix)["input_ids"]) + 50
    rows = [fitted(tokenizer, prefix, sentence(text), suffix, max_tokens) for text in texts]
    assert max_tokens - 2 <= max(map(len, rows)) <= max_tokens
    expected = np.stack([own[-1][-1] for own in states(tmp_path, rows)])
    check(
        record_property,
        name,
        tmp_path,
        "transformers, each prompt alone, the text cut to fit",
        expected,
        texts,
        sides=BOTH,
        changes={"max_tokens": max_tokens},
    )


def test_promptbert(tmp_path: Path, record_property: Record) -> None:
    tokenizer = tokenizer_of(checkpoints.tiny_bert(tmp_path))
    texts = [*TEXTS, "Is it?", 'He said "no"']
    rows = [fitted(tokenizer, 'This sentence : "', sentence(text), '" means [MASK] .', 60) for text in texts]
    assert max(map(len, rows)) == 60
    expected = np.stack([own[-1][row.index(4)] for own, row in zip(states(tmp_path, rows), rows, strict=True)])
    check(
        record_property,
        "promptbert",
        tmp_path,
        "state of [MASK], each prompt alone, the text cut to fit",
        expected,
        texts,
        changes={"max_tokens": 60},
    )


def test_metaeol(tmp_path: Path, record_property: Record) -> None:
    tokenizer = tokenizer_of(checkpoints.tiny_decoder(tmp_path, kind="llama", max_tokens=1024))
    prompts = yaml.safe_load((RECIPES / "metaeol-llama-2-7b.yaml").read_text())["prompts"]["document"]
    assert len(prompts) == 8
    max_tokens = max(len(tokenizer(prompt)["input_ids"]) for prompt in prompts) + 40
    by_prompt = []
    for prompt in prompts:
        prefix, suffix = prompt.split("{text}")
        rows = [fitted(tokenizer, prefix, sentence(text), suffix, max_tokens) for text in TEXTS]
        assert max(map(len, rows)) <= max_tokens
        by_prompt.append(np.stack([own[-1][-1] for own in states(tmp_path, rows)]))
    check(
        record_property,
        "metaeol-llama-2-7b",
        tmp_path,
        "mean over the prompts, each alone, the text cut to fit",
        np.mean(by_prompt, axis=0),
        sides=BOTH,
        changes={"max_tokens": max_tokens},
    )


def test_token_prepending(tmp_path: Path, record_property: Record) -> None:
    tokenizer = tokenizer_of(checkpoints.tiny_decoder(tmp_path, kind="llama", max_tokens=256, layers=4))
    tokenizer.add_tokens(["<PST>"])
    placeholder = tokenizer.convert_tokens_to_ids("<PST>")
    model = transformers.LlamaModel.from_pretrained(tmp_path).eval()
    embedding = torch.randn(32, generator=torch.Generator().manual_seed(0))
    expected = []
    with torch.inference_mode():
        for text in TEXTS:
            ids = fitted(tokenizer, 'This sentence : <PST> "', sentence(text), '" means in one word:"', 100)
            slot = ids.index(placeholder)
            hidden = model.embed_tokens(torch.tensor([[0 if token == placeholder else token for token in ids]]))
            hidden[0, slot] = embedding
            positions = torch.arange(len(ids))[None]
            rotary = model.rotary_emb(hidden, positions)
            mask = torch.full((1, 1, len(ids), len(ids)), torch.finfo(torch.float32).min).triu(1)
            for index, layer in enumerate(model.layers[:3]):
                if 1 <= index < 2:
                    hidden[0, slot] = hidden[0, -1]
                output = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
                hidden = output[0] if isinstance(output, tuple) else output
            expected.append(hidden[0, -1].numpy())  # of layer 3, without the last norm
    check(
        record_property,
        "token-prepending-llama-2-7b",
        tmp_path,
        "the layers one by one, each prompt alone, the text cut to fit",
        np.stack(expected),
        sides=BOTH,
        changes={"max_tokens": 100, "prepend": {"exit_layer": 2}, "layers": [3]},
    )


# What a recipe costs, and recipes of one's own


@pytest.mark.parametrize(
    ("name", "role", "readings", "copies"),
    [
        ("e5-mistral-7b", "document", 1, 1),
        ("echo-mistral-7b", "document", 1, 2),
        ("bge-en-icl", "query", 1, 1),
        ("metaeol-llama-2-7b", "document", 8, 8),
    ],
)
def test_tokens_of_a_recipe_are_those_of_the_text_and_its_own(
    tmp_path: Path, name: str, role: str, readings: int, copies: int
) -> None:
    checkpoints.tiny_decoder(tmp_path, max_tokens=2048, specials=("</s>", "<instruct>", "<query>", "<response>"))
    spec = embedder_spec(recipe_file(name, tmp_path, max_tokens=2048), EmbedderConfig(role=role), RECIPES)
    tokenizer = Tokenizer(spec)
    assert len(tokenizer.layouts) == readings
    assert sum(layout.copies for layout in tokenizer.layouts) == copies
    plain = Tokenizer(dataclasses.replace(spec, templates=(Template("", ""),)))
    text = "world people story"
    num_text_tokens = plain(pa.array([text])).num_tokens[0].as_py() - plain.layouts[0].fixed
    fixed = sum(layout.fixed for layout in tokenizer.layouts)
    found = tokenizer(pa.array([text])).num_tokens[0].as_py()
    assert found == pytest.approx(fixed + copies * num_text_tokens, abs=2 * readings)  # seams with what is around it


def test_a_new_embedder_takes_a_yaml_file_alone(tmp_path: Path) -> None:
    """SGPT: mean weighted by place, and brackets that tell queries from documents (arXiv 2202.08904)."""
    tokenizer = tokenizer_of(checkpoints.tiny_decoder(tmp_path, kind="opt"))
    (tmp_path / "sgpt.yaml").write_text(
        """
        checkpoint: .
        pooling: weighted_mean
        normalize: true
        max_tokens: 60
        prompts: {query: "[{text}]", document: "{{text}}"}
        """
    )
    for role, (left, right) in {"query": "[]", "document": "{}"}.items():
        rows = [tokenizer(f"{left}{text}{right}")["input_ids"] for text in SHORT]
        assert max(map(len, rows)) <= 60
        expected = unit(
            (own[-1] * torch.arange(1, len(own[-1]) + 1)[:, None]).sum(0) / torch.arange(1, len(own[-1]) + 1).sum()
            for own in states(tmp_path, rows)
        )
        found_ND = embed(str(tmp_path / "sgpt.yaml"), SHORT, role=role)
        np.testing.assert_allclose(found_ND, expected, atol=TOLERANCE)


def test_another_new_embedder_of_known_parts(tmp_path: Path) -> None:
    """A decoder made bidirectional, its adapter kept apart, the second-last layer, echo, a head and two sizes."""
    tokenizer = tokenizer_of(checkpoints.tiny_decoder(tmp_path, kind="qwen3", layers=3, specials=("</s>",)))
    model: Any = checkpoints.with_lora(transformers.AutoModel.from_pretrained(tmp_path), seed=3)
    model.save_pretrained(str(tmp_path / "lora"))
    checkpoints.save_dense(tmp_path / "2_Dense", (32, 24), torch.nn.Tanh(), True, seed=1)
    (tmp_path / "mine.yaml").write_text(
        """
        checkpoint: .
        adapters: [lora]
        merge_adapters: false
        attention: bidirectional
        layers: [-2]
        pooling: mean
        pool_over: text
        join: apart
        head: [2_Dense]
        end_token: "</s>"
        normalize: true
        max_tokens: 100
        prompts:
          document: "{task}: {text}\\nagain: {text}"
        task: the day
        dims: [8, 24]
        """
    )

    def ids(piece: str) -> list[int]:
        return list(tokenizer(piece, add_special_tokens=False)["input_ids"])

    copies = [ids(text) for text in SHORT]
    rows = [[1, *ids("the day: "), *copy, *ids("\nagain: "), *copy, *ids("</s>")] for copy in copies]
    assert max(map(len, rows)) <= 100
    head = load_file(tmp_path / "2_Dense" / "model.safetensors")
    trunk = model.merge_and_unload().eval()
    expected = unit(
        torch.tanh(own[-2][-1 - len(copy) : -1].mean(0) @ head["linear.weight"].T + head["linear.bias"])[:8]
        for own, copy in zip(states(tmp_path, rows, bidirectional=True, model=trunk), copies, strict=True)
    )
    np.testing.assert_allclose(embed(str(tmp_path / "mine.yaml"), SHORT, dims=8), expected, atol=TOLERANCE)
