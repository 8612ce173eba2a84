"""Published language models as embedders against an implementation of their papers, each text alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests import checkpoints
from tests.operators.embedder.references import (
    SHORT,
    TEXTS,
    Record,
    check,
    embed,
    fitted,
    instructed,
    recipe_file,
    states,
    tokenizer_of,
    unit,
)


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
        changes={"task": "find it"},
        role=role,
    )


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
    rows, left_out = [], []
    for text in TEXTS:
        rows.append(fitted(tokenizer, f"{before} ", text, " [/INST]", 100))
        offsets = tokenizer(f"{before} {text} [/INST]", return_offsets_mapping=True)["offset_mapping"]
        left_out.append(sum(end <= len(before) for _, end in offsets))
    assert max(map(len, rows)) >= 99
    assert {tuple(row[-3:]) for row in rows} == {tuple(tokenizer(" [/INST]")["input_ids"][-3:])}
    found = states(tmp_path, rows, bidirectional=True, model=model.eval())
    expected = unit(own[-1][start:].mean(0) for own, start in zip(found, left_out, strict=True))
    check(
        record_property,
        "llm2vec-mistral-7b",
        tmp_path,
        "peft's merged adapters, tokens after the instruction by offset, each text alone, cut to fit",
        expected,
        changes={
            "adapters": [str(tmp_path / "mntp"), str(tmp_path / "supervised")],
            "merge_adapters": merged,
            "task": "find it:",
            "max_tokens": 100,
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
