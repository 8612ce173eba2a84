"""Which class embeds with a spec: the only place that chooses. Loading torch and a model takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.corpus.image_fetching import ImageAccess
from operators.corpus.source import Source
from operators.embedder.recipe.checkpoint import hidden_size, read_config
from operators.embedder.recipe.keywords import Device
from operators.embedder.recipe.spec import EmbedderSpec, verified_folder
from operators.embedder.tokens.windows import check_late
from operators.errors import InputError

if TYPE_CHECKING:
    from operators.embedder.engine import Embedder
    from operators.embedder.sparse.engine import SparseEmbedder
    from operators.embedder.static.engine import StaticEmbedder
    from operators.embedder.tokens.tokenizing import Tokenizer
    from operators.embedder.vectors import Vectors
    from operators.embedder.vision.language_model import VisionLanguageEmbedder
    from operators.embedder.vision.reading import ImageReader
    from operators.embedder.vision.towers import TwoTowerEmbedder


def load_embedder(
    spec: EmbedderSpec,
    batch_tokens: int | None = None,
    device: Device = "auto",
    threads: int | None = None,
    packing: bool = False,
) -> Embedder | SparseEmbedder | StaticEmbedder | TwoTowerEmbedder | VisionLanguageEmbedder:
    """A loaded, self-tested embedder: token ids (and pixels) in, `Vectors` out."""
    if packing and spec.recipe.kind != "transformer":
        raise InputError(f"leave out embedder.packing: {spec.model} is of kind {spec.recipe.kind}, which is not packed")
    # torch and transformers are 5 s that the driver need not wait for
    if spec.recipe.kind == "static":
        from operators.embedder.static.engine import StaticEmbedder

        return StaticEmbedder(spec, device, threads)
    if spec.recipe.kind == "two_towers":
        from operators.embedder.vision.towers import TwoTowerEmbedder

        return TwoTowerEmbedder(spec, batch_tokens, device, threads)
    if spec.recipe.kind == "vision_llm":
        from operators.embedder.vision.language_model import VisionLanguageEmbedder

        return VisionLanguageEmbedder(spec, batch_tokens, device, threads)
    if spec.recipe.sparse is not None:
        from operators.embedder.sparse.engine import SparseEmbedder

        return SparseEmbedder(spec, batch_tokens, device, threads, packing)
    from operators.embedder.engine import Embedder

    return Embedder(spec, batch_tokens, device, threads, packing)


def load_embedder_of_few(
    spec: EmbedderSpec, tokenizer: Tokenizer, threads: int | None = None
) -> Callable[[pa.ListArray], Vectors]:
    """An embedder of texts that starts in no time where the model allows it, and else `load_embedder`'s."""
    from operators.embedder.plain import load_plain_embedder

    plain = load_plain_embedder(spec, tokenizer)
    return plain if plain is not None else load_embedder(spec, threads=threads)


def load_chunk_embedder(
    spec: EmbedderSpec,
    batch_tokens: int | None = None,
    device: Device = "auto",
    threads: int | None = None,
    packing: bool = False,
) -> Callable[..., Vectors]:
    """The same for late chunking: windows of documents in (`Embedder.of_chunks`).

    Raises InputError for a model that has no late chunks.
    """
    check_late(spec)
    from operators.embedder import selftest
    from operators.embedder.engine import Embedder
    from operators.embedder.tokens.tokenizing import Tokenizer

    embedder = Embedder(spec, batch_tokens, device, threads, packing)
    selftest.check_chunks(embedder, Tokenizer(spec))
    return embedder.of_chunks


def load_image_reader(spec: EmbedderSpec, source: Source) -> ImageReader | None:
    """What prepares the images of a source for a model; None where there are none."""
    if source.image is None:
        return None
    from operators.embedder.vision.reading import ImageReader

    return ImageReader(spec, ImageAccess.of(source.paths, source.storage_options, source.private_image_hosts))


def flops_of(spec: EmbedderSpec, of_images: bool = False) -> Callable[[NDArray[np.int64]], float]:
    """A function from the lengths of texts (or images) in tokens to the FLOPs of embedding them; loads no weights."""
    if spec.recipe.kind in ("two_towers", "vision_llm"):
        from operators.embedder.vision.flops import VisionFlops

        flops = VisionFlops.of_folder(verified_folder(spec, weights=False), spec.recipe.kind)
        return flops.total(spec.recipe.kind, of_images)
    if spec.recipe.kind == "static":
        return lambda lengths_N: float(lengths_N.sum() * spec.dim)
    from operators.embedder.model.flops import Flops

    folder = verified_folder(spec, weights=False)
    trunk = Flops.of_folder(folder, spec.recipe).total
    sparse = spec.recipe.sparse
    if sparse is None:
        return trunk
    width = hidden_size(folder, read_config(folder))
    return lambda lengths_N: trunk(lengths_N) + sparse.flops(lengths_N, spec.sparse_dim, width)
