"""Which keys of the sentence-transformers layout (6.2) are used, change no vector, or are refused by name.

A key that is null or empty says nothing. What follows are for each file the keys that are used, and those that may have
certain values alone, with which a text's vector is the same as without them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from operators.errors import InputError

ANY: Final = object()  # a key that changes no vector, whatever it says
Fixed = Mapping[str, Any]  # key -> ANY, or the values that it may have

MODULE: Fixed = {"idx": ANY, "name": ANY, "kwargs": ANY}  # kwargs: names of more arguments, which no caller gives
TRANSFORMER: Fixed = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "unpad_inputs": ANY,
    "query_expansion": (),
}
POOLING: Fixed = {"embedding_dimension": ANY, "word_embedding_dimension": ANY}
NORMALIZE: Fixed = {"module_input_name": ("sentence_embedding",), "module_output_name": ("sentence_embedding",)}
# The number format is the recipe's compute_dtype; remote code is the user's to trust, and sentence-transformers drops
# the key too
MODEL_ARGUMENTS: Fixed = {
    "attn_implementation": ANY,
    "dtype": ANY,
    "torch_dtype": ANY,
    "low_cpu_mem_usage": ANY,
    "use_safetensors": ANY,
    "add_pooling_layer": ANY,
    "trust_remote_code": ANY,
}
TOKENIZER_ARGUMENTS: Fixed = {"use_fast": ANY, "trust_remote_code": ANY}
CONFIG_ARGUMENTS: Fixed = {"trust_remote_code": ANY}
TEXT: Fixed = {
    "padding": ANY,  # states of padding are masked
    "truncation": (True, "longest_first", "only_first"),
    "pad_to_multiple_of": ANY,
    "return_tensors": ANY,
    "return_attention_mask": ANY,
    "add_special_tokens": (True,),
}
COMMON: Fixed = {"return_tensors": ANY}
FOLDER: Fixed = {"__version__": ANY, "model_type": ("SentenceTransformer",)}
TEXT_MODALITY: Fixed = {"method": ("forward",), "method_output_name": ("last_hidden_state",)}


def check_keys(where: Path | str, found: Mapping[str, Any], used: Collection[str], fixed: Fixed) -> None:
    """Raise InputError naming the first key that is not known, or has a value that may change vectors."""
    for key, value in found.items():
        if key in used or value is None or value in ({}, [], ""):
            continue
        allowed = fixed.get(key, ())
        if allowed is ANY or value in allowed:
            continue
        raise InputError(
            f"{where} has {key}: {value!r}, which is not supported: take it out if vectors do not depend on it, "
            "or write a recipe"
        )
