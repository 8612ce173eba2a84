"""The tokenizer of a checkpoint as the tokenizers library has it, and the ids that it puts around a text itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers

from operators.embedder.recipe import static_folder
from operators.embedder.recipe.spec import EmbedderSpec, verified_folder
from operators.embedder.tokens.tokenizer_file import read_tokenizer_file
from operators.errors import InputError


def special_ids(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer itself puts before and after a text."""
    encoding = backend.encode("a", add_special_tokens=True)
    if not encoding.ids:  # no word in the sense of a static embedder
        return [], []
    own = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
    if not own:
        raise InputError("the tokenizer reads the letter 'a' as nothing but special tokens: it cannot be used")
    return encoding.ids[: own[0]], encoding.ids[own[-1] + 1 :]


def load_backend(spec: EmbedderSpec) -> tokenizers.Tokenizer:
    """The tokenizer of a recipe's checkpoint."""
    folder = verified_folder(spec, weights=False)
    if spec.recipe.kind == "static":
        return static_folder.load_tokenizer(folder)
    found = read_tokenizer_file(folder)
    if found is None:
        return load_fast(folder, spec.recipe.trust_remote_code)[0]
    return _without_limits(found)


def load_fast(folder: Path, trust_remote_code: bool) -> tuple[tokenizers.Tokenizer, Any]:
    """A checkpoint's tokenizer without limits or padding of its own, and the transformers object that holds it."""
    import transformers  # seconds, and only a worker needs it

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        raise InputError(f"cannot load the tokenizer of {folder}: {error}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise InputError(f"{folder} has no fast tokenizer: it needs a tokenizer.json")
    return _without_limits(backend), tokenizer


def _without_limits(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    backend.no_truncation()  # a checkpoint's own limits (MiniLM's file says 128) give way to the recipe's
    backend.no_padding()
    return backend
