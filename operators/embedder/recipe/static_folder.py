"""A static embedder on disk: a tokenizer and a table with one vector for each of its ids.

Three layouts: sentence-transformers (modules.json with StaticEmbedding), model2vec (config.json with its model_type),
and what `conversion` makes of word vectors. The last two leave unknown words out of the mean, the first counts them.
The driver asks all of this; `operators.embedder.static.table` reads the vectors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers

from operators.embedder.recipe import checkpoint, fingerprint
from operators.errors import InputError

WEIGHTS = "model.safetensors"
TABLE_KEYS = ("embedding.weight", "embeddings")  # of sentence-transformers and of model2vec
MODEL2VEC_TYPE, OWN_TYPE = "model2vec", "word_vectors"
# Part of every fingerprint: raise it when a change of the static engine changes the vectors
STATIC_VERSION = 1
UNBOUNDED_TOKENS = 1_000_000  # a mean of vectors has no limit; recipes need one


def is_static(folder: Path) -> bool:
    """Whether a checkpoint folder holds a static embedder."""
    kinds = _module_kinds(folder)
    return kinds[:1] == ["StaticEmbedding"] or (not kinds and _model_type(folder) == MODEL2VEC_TYPE)


def recipe_fields(folder: Path) -> dict[str, Any]:
    """The fields of the recipe of a static embedder's folder, all but `checkpoint` and what is said of the whole."""
    kinds = _module_kinds(folder)
    if kinds[1:] not in ([], ["Normalize"]):
        raise InputError(
            f"{folder} cannot be embedded with: after StaticEmbedding, modules.json may have Normalize alone, "
            f"not {', '.join(kinds[1:])}"
        )
    if kinds:
        normalize = kinds[-1] == "Normalize"
    else:
        normalize = bool(checkpoint.read_json(folder / "config.json").get("normalize", False))
    return {
        "kind": "static",
        "pooling": "mean",
        "normalize": normalize,
        "max_tokens": UNBOUNDED_TOKENS,
    }


def width(folder: Path) -> int:
    """How many dims a table has, from the first bytes of its file."""
    return int(_header(folder)[table_key(folder)]["shape"][1])


def table_key(folder: Path) -> str:
    """The name of the table in its file."""
    header = _header(folder)
    key = next((key for key in TABLE_KEYS if key in header), None)
    if key is None or len(header[key]["shape"]) != 2:
        raise InputError(f"{folder / WEIGHTS} has no table of vectors: none of {', '.join(TABLE_KEYS)} is there")
    return key


def load_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer, without the special tokens that it puts around texts for transformers."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{folder} is no static embedder: it has no tokenizer.json")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"cannot load the tokenizer {path}: {error}") from error
    backend.post_processor = None
    backend.no_truncation()
    backend.no_padding()
    return backend


def unknown_id(folder: Path) -> int | None:
    """The id of unknown words where the layout leaves them out of the mean."""
    if (folder / "modules.json").is_file() or _model_type(folder) not in (MODEL2VEC_TYPE, OWN_TYPE):
        return None
    model = checkpoint.read_json(folder / "tokenizer.json").get("model", {})
    if isinstance(model.get("unk_id"), int):  # Unigram
        return int(model["unk_id"])
    vocab = model.get("vocab")
    return vocab.get(model.get("unk_token")) if isinstance(vocab, dict) else None


def digest(folder: Path) -> str:
    """The digest of the files that determine what is done with a text's ids."""
    named = [path for name in ("config.json", "modules.json") if (path := folder / name).is_file()]
    return fingerprint.files_digest([*checkpoint.weight_files(folder), *named])


def _header(folder: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    (path,) = checkpoint.weight_files(folder)
    try:
        with safe_open(path, framework="np") as file:
            return {key: {"shape": file.get_slice(key).get_shape()} for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot load {path}: {error}") from error


def _module_kinds(folder: Path) -> list[str]:
    path = folder / "modules.json"
    if not path.is_file():
        return []
    return [str(module["type"]).rsplit(".", 1)[-1] for module in checkpoint.read_json(path)]


def _model_type(folder: Path) -> str | None:
    path = folder / "config.json"
    config = checkpoint.read_json(path) if path.is_file() else {}
    return config.get("model_type") if isinstance(config, dict) else None
