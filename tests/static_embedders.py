"""Word vectors in every format, and static embedders in the layouts users have: what several tests embed with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import yaml
from numpy.typing import NDArray

from tests.checkpoints import WORDS, wordpiece_tokenizer

DIM = 8


def word_table(words: tuple[str, ...] = WORDS, dim: int = DIM) -> NDArray[np.float32]:
    """values_VD of words, with few digits, so that text says them exactly."""
    values_VD = np.random.default_rng(0).integers(-999, 1000, (len(words), dim)) / 256
    return values_VD.astype(np.float32)


def write_vectors(path: Path, form: str, words: tuple[str, ...] = WORDS, table_VD: Any = None) -> Path:
    """A file of word vectors in one of the formats."""
    values_VD = word_table(words) if table_VD is None else table_VD
    header = f"{len(words)} {values_VD.shape[1]}\n".encode()
    if form == "word2vec_binary":
        path.write_bytes(
            header + b"".join(w.encode() + b" " + v.tobytes() + b"\n" for w, v in zip(words, values_VD, strict=True))
        )
        return path
    lines = (f"{w} {' '.join(repr(float(x)) for x in v)}\n".encode() for w, v in zip(words, values_VD, strict=True))
    path.write_bytes((header if form == "word2vec" else b"") + b"".join(lines))
    return path


def write_recipe(folder: Path, vectors: Path, normalize: bool = True, **word_vectors: Any) -> str:
    """A recipe for a file of word vectors; returns its path."""
    fields = {
        "kind": "static",
        "checkpoint": str(vectors),
        "pooling": "mean",
        "normalize": normalize,
        "max_tokens": 1_000_000,
        "word_vectors": {"format": "glove", "lowercase": True, **word_vectors},
    }
    path = folder / "words.yaml"
    path.write_text(yaml.safe_dump(fields))
    return str(path)


def static_folder(folder: Path, tensors: dict[str, NDArray[Any]], **config: Any) -> Path:
    """A model2vec folder: a WordPiece tokenizer, these tensors and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    wordpiece_tokenizer().save(str(folder / "tokenizer.json"))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "model2vec", **config}))
    return folder
