"""What each word counts for in a mean of word vectors, and the direction that all such means share.

SIF (smooth inverse frequency): Arora, Liang, Ma 2017, "A simple but tough-to-beat baseline for sentence embeddings".
Shapes: V words, N texts, D dims, T tokens of all texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from operators.embedder.recipe.word_vectors.settings import WordVectors
from operators.errors import InputError


def zipf(num_words: int) -> NDArray[np.float64]:
    """p_V of words in order of frequency: 1 / (rank + 1), summing to 1, as model2vec has it."""
    inverse_V = 1.0 / np.arange(2, num_words + 2)
    return np.asarray(inverse_V / inverse_V.sum())


def sif(p_V: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """weight_V: 1 for a word that never comes, near 0 for one that always does."""
    return np.asarray(a / (a + p_V))


def word_weights(words: Sequence[str], settings: WordVectors) -> NDArray[np.float64]:
    """weight_V of words in the order of their file; a word without a count is taken as never (sif) or once (idf)."""
    if settings.weighting == "mean":
        return np.ones(len(words))
    if settings.frequencies is None:
        return sif(zipf(len(words)), settings.sif_a)
    counts = read_counts(Path(settings.frequencies))
    counts_V = np.array([counts.get(word, 0.0) for word in words])
    if not counts_V.any():
        raise InputError(f"word_vectors.frequencies {settings.frequencies} has none of the words of the vectors")
    if settings.weighting == "sif":
        return sif(counts_V / sum(counts.values()), settings.sif_a)
    assert settings.num_documents is not None, "the settings refuse idf without it"
    if counts_V.max() > settings.num_documents:
        word = words[int(np.argmax(counts_V))]
        raise InputError(
            f"word_vectors.num_documents {settings.num_documents} is less than the {counts_V.max():.0f} documents "
            f"that {settings.frequencies} has for {word!r}"
        )
    return np.asarray(np.log(settings.num_documents / np.maximum(counts_V, 1.0)))


def read_counts(path: Path) -> Mapping[str, float]:
    """The counts of a file of lines `word count`; InputError names the line that is none."""
    counts: dict[str, float] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            word, _, text = line.rstrip().rpartition(" ") if " " in line else line.rstrip().rpartition("\t")
            try:
                count = float(text)
            except ValueError:
                count = -1.0
            if not word or not 0 <= count < float("inf") or word in counts:
                what = "has a word that was there before" if word in counts else "is no `word count`"
                raise InputError(f"{path} line {number} {what}: {line[:60]!r}")
            counts[word] = count
    if not sum(counts.values()):
        raise InputError(f"{path} has no counts: it needs lines `word count`")
    return counts


def first_component(means: Iterable[NDArray[np.float32]]) -> NDArray[np.float64]:
    """component_D, of length 1: the first right singular vector of all the rows of `means` (blocks of mean_ND).

    Not centred, as in the paper's code: it is nearly the direction of the mean text. Memory is D x D.
    """
    moment_DD: NDArray[np.float64] | None = None
    for mean_ND in means:
        mean = mean_ND.astype(np.float64)
        moment_DD = mean.T @ mean if moment_DD is None else moment_DD + mean.T @ mean
    if moment_DD is None or not moment_DD.any():
        raise InputError("word_vectors.remove_component_of has no text with a known word")
    component_D = np.linalg.eigh(moment_DD)[1][:, -1]
    return np.asarray(component_D * np.sign(component_D[np.argmax(np.abs(component_D))]))
