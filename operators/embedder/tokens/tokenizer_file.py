"""A checkpoint's tokenizer.json, where transformers would make the same tokenizer of it: without its import.

transformers 5 builds some tokenizers anew from the vocabulary and tokenizer_config.json, and changes others after it
has read them, so tokenizer.json alone does not say what a model was trained with. Two cases are sure, and every other
one is left to transformers:

- a plain `TokenizersBackend` (`PreTrainedTokenizerFast` before version 5), with all its special tokens in the file;
- BERT's own class, whose parts are all in the file as its config says them.

tests/operators/embedder/tokens/test_tokenizer_file.py compares both with transformers', part by part.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from operators.embedder.recipe.checkpoint import read_config, read_json
from operators.errors import InputError

# Model types for which transformers 5.23 to 5.27 take the class that tokenizer_config.json names
_MODEL_TYPES = frozenset({"bert", "roberta", "xlm-roberta", "camembert"})
_PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
_BERT_CLASSES = ("BertTokenizer", "BertTokenizerFast")
_BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_NAMED_TOKENS = (*_BERT_TOKENS, "bos_token", "eos_token")
# Keys that change no ids of a text: names of files, limits and padding (which are switched off), and decoding
_HARMLESS = frozenset(
    {
        "backend",
        "clean_up_tokenization_spaces",
        "do_basic_tokenize",
        "is_local",
        "local_files_only",
        "max_length",
        "model_input_names",
        "model_max_length",
        "name_or_path",
        "pad_to_multiple_of",
        "pad_token_type_id",
        "padding_side",
        "special_tokens_map_file",
        "stride",
        "tokenizer_class",
        "tokenizer_file",
        "truncation_side",
        "truncation_strategy",
    }
)
_BERT_KEYS = frozenset({"do_lower_case", "tokenize_chinese_chars", "strip_accents", "never_split"})
_LARGEST_VOCABULARY = 100_000  # above, transformers may put another pre-tokenizer in place (Mistral's regex)


def read_tokenizer_file(folder: Path) -> tokenizers.Tokenizer | None:
    """The tokenizer in a checkpoint's tokenizer.json as it stands; None where transformers might make another of it."""
    path, config_path = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not all(file.is_file() for file in (path, config_path, folder / "config.json")):
        return None
    if (folder / "added_tokens.json").is_file():
        return None
    config, content = read_json(config_path), read_json(path)
    map_path = folder / "special_tokens_map.json"
    also_named = read_json(map_path) if map_path.is_file() else {}
    if any(config.get(name) != value for name, value in also_named.items()):
        return None
    if read_config(folder).get("model_type") not in _MODEL_TYPES or not _is_whole(content, config):
        return None
    kind = config.get("tokenizer_class")
    is_sure = kind in _PLAIN_CLASSES or (kind in _BERT_CLASSES and _is_bert(content, config))
    own_keys = _BERT_KEYS if kind in _BERT_CLASSES else frozenset()
    if not is_sure or any(not _is_known(name, value, own_keys) for name, value in config.items()):
        return None
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower class for a file that it does not understand
        raise InputError(f"cannot load the tokenizer of {folder}: {error}") from error


def _is_known(name: str, value: Any, own_keys: frozenset[str]) -> bool:
    """Whether a key of tokenizer_config.json is understood here."""
    if name in ("additional_special_tokens", "extra_special_tokens"):
        return not value
    if name == "never_split":
        return value is None
    return name in _HARMLESS or name in _NAMED_TOKENS or name in own_keys or name == "added_tokens_decoder"


def _is_whole(content: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether all tokens that the config names are special tokens of the file, which has all parts."""
    vocabulary = content.get("model", {}).get("vocab")
    if content.get("post_processor") is None or not vocabulary or len(vocabulary) > _LARGEST_VOCABULARY:
        return False
    added = {token["content"]: token for token in content.get("added_tokens", ())}
    if any(token not in added or not added[token]["special"] for token in _named(config)):
        return False
    return all(
        {"id": int(number), **token} == added.get(token["content"])
        for number, token in config.get("added_tokens_decoder", {}).items()
    )


def _named(config: dict[str, Any]) -> Iterator[str | None]:
    """The tokens that a config gives a part; None for one that it describes in a way not known here."""
    for name in _NAMED_TOKENS:
        value = config.get(name)
        if isinstance(value, dict):
            yield value.get("content") if value.get("__type") == "AddedToken" else None
        elif value is not None:
            yield value


def _is_bert(content: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether a file has the parts that transformers' BertTokenizer makes of its config and vocabulary."""
    vocabulary, added = content["model"]["vocab"], content["added_tokens"]
    tokens = set(_BERT_TOKENS.values())
    given = {**_BERT_TOKENS, **{name: config[name] for name in _BERT_TOKENS if name in config}}
    if set(_named(given)) != tokens or {token["content"] for token in added} != tokens:
        return False
    if any(
        given[name] not in (token, {"__type": "AddedToken", "content": token, **_SPECIAL})
        for name, token in _BERT_TOKENS.items()
    ):
        return False
    expected_added = [
        {"id": vocabulary.get(token["content"]), "content": token["content"], **_SPECIAL, "special": True}
        for token in added
    ]
    first, last = vocabulary.get("[CLS]"), vocabulary.get("[SEP]")
    return bool(
        content["model"] == {**_WORDPIECE, "vocab": vocabulary}
        and added == expected_added
        and content["pre_tokenizer"] == {"type": "BertPreTokenizer"}
        and content["normalizer"]
        == {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
            "strip_accents": config.get("strip_accents"),
            "lowercase": config.get("do_lower_case", True),
        }
        and content["post_processor"] == _bert_template(first, last)
    )


_SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
_WORDPIECE = {
    "type": "WordPiece",
    "unk_token": "[UNK]",
    "continuing_subword_prefix": "##",
    "max_input_chars_per_word": 100,
}


def _bert_template(first: int, last: int) -> dict[str, Any]:
    def special(token: str, kind: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": kind}}

    def text(name: str, kind: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": kind}}

    single = [special("[CLS]", 0), text("A", 0), special("[SEP]", 0)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, text("B", 1), special("[SEP]", 1)],
        "special_tokens": {
            "[CLS]": {"id": "[CLS]", "ids": [first], "tokens": ["[CLS]"]},
            "[SEP]": {"id": "[SEP]", "ids": [last], "tokens": ["[SEP]"]},
        },
    }
