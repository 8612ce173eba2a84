"""A causal language model that is small enough to be trained on a laptop, for the recipes of docs/training-language.md.

    python -m benchmarks.small_language_model TEXTS.jsonl.gz FOLDER [--layers 4] [--width 128] [--words 8192]

Learns a byte-level BPE vocabulary of the texts, and writes a Llama with random weights and a recipe: the mean of its
states, causal.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import tokenizers
import torch
import transformers
import yaml

_START, _END, _PAD = "<s>", "</s>", "<pad>"


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", type=Path, help="JSONL with a column `text`")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--words", type=int, default=8192, help="size of the vocabulary")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True)
    write_tokenizer(arguments.texts, arguments.words, folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=arguments.words,
        hidden_size=arguments.width,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.width // 32,
        num_key_value_heads=arguments.width // 32,
        intermediate_size=4 * arguments.width,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    recipe = {"checkpoint": ".", "pooling": "mean", "normalize": True, "max_tokens": 128, "end_token": _END}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


def write_tokenizer(texts: Path, size: int, folder: Path) -> None:
    """A vocabulary of the texts; the start token comes before each text."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[_START, _END, _PAD],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(read_texts(texts), trainer)
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{_START} $A", special_tokens=[(_START, backend.token_to_id(_START))]
    )
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": _START, "eos_token": _END, "pad_token": _PAD}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def read_texts(path: Path) -> Iterator[str]:
    """The texts of a file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield str(json.loads(line)["text"])


if __name__ == "__main__":
    main()
