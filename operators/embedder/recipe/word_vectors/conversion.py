"""Word vectors into a static embedder's folder, once for a machine: then workers map the table and share its memory.

Everything that is linear in the words' vectors is put into the table, so that embedding a text is one mean: each
word's weight, and taking away the first principal component c (mean(w x) - c c.mean(w x) = mean(w (x - c c.x))).

The folder lies under $XDG_CACHE_HOME/embedfleet/word_vectors by a hash of the files read and the settings. Memory: one
block of words, and the words themselves.
Shapes: V words, B words of a block, N texts, T tokens, D dims.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import models, normalizers, pre_tokenizers

from operators.embedder.recipe import fingerprint
from operators.embedder.recipe.static_folder import OWN_TYPE, TABLE_KEYS, WEIGHTS
from operators.embedder.recipe.word_vectors.settings import WordVectors
from operators.embedder.recipe.word_vectors.vector_files import read_blocks
from operators.embedder.recipe.word_vectors.weights import first_component, word_weights
from operators.errors import InputError

logger = logging.getLogger(__name__)

CONVERSION_VERSION = 1  # part of every key: raise it when a change here changes a table
HEADER_BYTES = 512  # of the safetensors file, written last, when the number of words is known
TEXTS_PER_CALL = 256


def conversion_key(checkpoint: str, settings: WordVectors) -> str:
    """A hash of all that determines a table: the contents of the files read, and the settings."""
    paths = {"vectors": checkpoint, "frequencies": settings.frequencies, "texts": settings.remove_component_of}
    digests = {name: fingerprint.files_digest([_file(path, name)]) for name, path in paths.items() if path}
    shown = settings.model_dump(exclude={"frequencies", "remove_component_of"})
    return fingerprint.mapping_digest({"version": CONVERSION_VERSION, "settings": shown, **digests})


def converted_folder(checkpoint: str, settings: WordVectors) -> Path:
    """The folder of a vectors' file, converting it where this machine has not done so; others wait for it."""
    folder = fingerprint.cache_folder("word_vectors") / conversion_key(checkpoint, settings)[:32]
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        part.mkdir()
        try:
            convert(_file(checkpoint, "vectors"), settings, part)
            part.replace(folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    return folder


def convert(path: Path, settings: WordVectors, folder: Path) -> None:
    """Fill `folder` with the tokenizer and the table of the vectors in `path`; InputError where the file is wrong."""
    logger.info("converting %s, once for this machine", path)
    words, dim = _write_table(path, settings, folder / WEIGHTS)
    tokenizer = word_tokenizer(words, settings)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    table_VD = np.memmap(folder / WEIGHTS, np.float32, "r+", HEADER_BYTES, (len(words) + 1, dim))
    weight_V = word_weights(words, settings).astype(np.float32)
    blocks = [slice(start, start + (1 << 16)) for start in range(1, len(table_VD), 1 << 16)]
    for rows in blocks:  # row 0 is that of unknown words, and zero
        table_VD[rows] *= weight_V[rows.start - 1 : rows.stop - 1, None]
    if settings.remove_component_of is not None:
        means = _means(_file(settings.remove_component_of, "texts"), tokenizer, table_VD)
        component_D = first_component(means).astype(np.float32)
        for rows in blocks:
            table_VD[rows] -= np.outer(table_VD[rows] @ component_D, component_D)
    table_VD.flush()
    facts = {"model_type": OWN_TYPE, "words": len(words), "dim": dim, "settings": settings.model_dump()}
    (folder / "config.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    logger.info("%d words with %d dims are in %s", len(words), dim, folder)


def word_tokenizer(words: list[str], settings: WordVectors) -> tokenizers.Tokenizer:
    """Texts to the ids of words: 0 for an unknown one, else 1 + its place in `words`."""
    unknown = "[UNK]"
    while unknown in set(words):
        unknown = f"[{unknown}]"
    vocab = {unknown: 0} | {word: i for i, word in enumerate(words, 1)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=unknown))
    steps: list[normalizers.Normalizer] = [normalizers.Lowercase()] if settings.lowercase else []
    steps += [normalizers.Replace(tokenizers.Regex(pattern), text) for pattern, text in settings.replace.items()]
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(settings.words), "removed", invert=True)
    return tokenizer


def _write_table(path: Path, settings: WordVectors, target: Path) -> tuple[list[str], int]:
    """Stream the vectors into a safetensors file after a row of zeros; returns the words and their dims."""
    places: dict[str, int] = {}
    dim = 0
    with target.open("wb") as file:
        file.seek(HEADER_BYTES)
        for block in read_blocks(path, settings.format, settings.limit):
            if not places:
                dim = block.values_BD.shape[1]
                file.write(bytes(4 * dim))
            new_B = np.ones(len(block.words), np.bool_)
            for i, word in enumerate(block.words):
                if word in places:
                    new_B[i] = False
                    _check_duplicate(word, path, settings)
                else:
                    places[word] = len(places)
            file.write(block.values_BD[new_B].astype("<f4").tobytes())
        shape = [len(places) + 1, dim]
        tensor = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * shape[0] * dim]}
        header = json.dumps({"__metadata__": {"format": "pt"}, TABLE_KEYS[0]: tensor}).encode()
        file.seek(0)
        file.write((HEADER_BYTES - 8).to_bytes(8, "little") + header.ljust(HEADER_BYTES - 8))
    return list(places), dim


def _check_duplicate(word: str, path: Path, settings: WordVectors) -> None:
    if settings.duplicates == "refuse":
        raise InputError(
            f"{path} has the word {word!r} twice: set word_vectors.duplicates to first, to read only its first vector"
        )


def _means(path: Path, tokenizer: tokenizers.Tokenizer, table_VD: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """mean_ND of the known words of the texts of a file, one a line, by blocks; texts without any are left out."""
    with path.open(encoding="utf-8") as lines:
        while texts := list(itertools.islice(lines, TEXTS_PER_CALL)):
            rows = [np.array(encoding.ids, np.int64) for encoding in tokenizer.encode_batch_fast(texts)]
            known = [ids[ids > 0] for ids in rows if (ids > 0).any()]
            if known:
                yield np.stack([table_VD[ids].mean(axis=0) for ids in known])


def _file(path: str, name: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"the recipe's {name}: there is no file {path}; download it, or change the recipe")
    return file
