"""Which class embeds with a spec: the only place that chooses. Loading torch and a model takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from operators.embedder.spec import EmbedderSpec, verified_folder
from operators.embedder.windows import Windows, check_late

if TYPE_CHECKING:
    from operators.embedder.engine import Embedder
    from operators.embedder.static.engine import StaticEmbedder
    from operators.embedder.vectors import Vectors


def load_embedder(
    spec: EmbedderSpec,
    batch_tokens: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int | None = None,
) -> Embedder | StaticEmbedder:
    """A loaded, self-tested embedder: token ids in, `Vectors` out."""
    if spec.recipe.kind == "static":
        from operators.embedder.static.engine import StaticEmbedder

        return StaticEmbedder(spec, device, threads)
    from operators.embedder.engine import Embedder  # torch and transformers, 5 s that the driver need not wait for

    return Embedder(spec, batch_tokens, device, threads)


def load_chunk_embedder(
    spec: EmbedderSpec,
    batch_tokens: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int | None = None,
) -> Callable[[Windows], Vectors]:
    """The same for late chunking: windows of documents in. Raises InputError for a model that has no late chunks."""
    check_late(spec)
    from operators.embedder.engine import Embedder  # as above

    return Embedder(spec, batch_tokens, device, threads).of_chunks


def flops_of(spec: EmbedderSpec) -> Callable[[NDArray[np.int64]], float]:
    """A function from the lengths of texts in tokens to the FLOPs of embedding them; loads no weights."""
    if spec.recipe.kind == "static":
        return lambda lengths_N: float(lengths_N.sum() * spec.dim)
    from operators.embedder.flops import Flops

    return Flops.of_folder(verified_folder(spec, weights=False), spec.recipe).total
