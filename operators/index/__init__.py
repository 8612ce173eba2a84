"""Vectors to searchable shards: choose, train, build, measure, search, update (docs/index.md)."""

from operators.index.open import Index, open_index

__all__ = ["Index", "open_index"]
