"""How a file of word vectors becomes an embedder, as data: the `word_vectors` section of a recipe."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

WORDS = r"\w+(?:['’]\w+)*|[^\w\s]"  # words with inner apostrophes, and each mark of punctuation


class WordVectors(BaseModel):
    """Word2vec or GloVe vectors: how the file is written, what a word is, what each word counts for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["glove", "word2vec", "word2vec_binary"] = Field(
        description="glove: text; word2vec: text with a first line `words dims`; .gz of any is read too"
    )
    limit: int | None = Field(default=None, gt=0, description="read only the first, most frequent words; null: all")
    duplicates: Literal["refuse", "first"] = Field(
        default="refuse", description="of a word that stands twice in the file: refuse the file, or take its first"
    )
    lowercase: bool = Field(description="lower-case texts, for vectors of lower-case words")
    replace: dict[str, str] = Field(default={}, description="regular expression -> text put in its place, in order")
    words: str = Field(default=WORDS, description="regular expression of a word; what lies between is left out")
    weighting: Literal["mean", "sif", "idf"] = Field(
        default="mean", description="mean: all alike; sif: a / (a + p(word)); idf: ln(documents / with the word)"
    )
    sif_a: float = Field(default=1e-3, gt=0, description="a of sif; 1e-4 to 1e-3 measured best (arXiv 1702.02540)")
    frequencies: str | None = Field(
        default=None,
        description="file of lines `word count`; null: p(word) by Zipf's law from the order of the vectors' file",
    )
    num_documents: int | None = Field(
        default=None, gt=0, description="how many documents the counts of `frequencies` are out of, for idf"
    )
    remove_component_of: str | None = Field(
        default=None,
        description="file of texts, one a line: the first principal component of their vectors is taken from all",
    )

    @field_validator("words")
    @classmethod
    def _is_expression(cls, words: str) -> str:
        try:
            re.compile(words)
        except re.error as error:
            raise ValueError(f"words is no regular expression: {error}") from None
        return words

    @model_validator(mode="after")
    def _has_counts(self) -> WordVectors:
        if self.weighting == "idf" and (self.frequencies is None or self.num_documents is None):
            raise ValueError("weighting idf needs frequencies (in how many documents each word is) and num_documents")
        return self
