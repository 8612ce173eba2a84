"""Which dataset a config makes: the identity that its output must have."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

from jobs.embedding.config import EmbedConfig
from jobs.embedding.cutting import fragment_size
from operators.corpus.chunking_config import CHUNKER_VERSION
from operators.corpus.inspect import inspect_source
from operators.embedder.recipe.fingerprint import mapping_digest
from operators.embedder.recipe.recipe import VISION_KINDS
from operators.embedder.recipe.spec import EmbedderSpec, verified_folder
from operators.embedder.recipe.vision_facts import vision_facts
from operators.embedder.tokens.windows import check_late
from operators.errors import InputError
from operators.storage import Location
from operators.store.dataset import Identity, check_identity, encode_schema, read_identity
from operators.work.fragment import SourceFile

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "models"
_FILES_TO_INSPECT = 8
MOST_PIXEL_BYTES = 1 << 30  # of one fragment's images at the model's size


def identify(
    config: EmbedConfig, spec: EmbedderSpec, dataset: Location, pack_below_bytes: int, files: Iterator[SourceFile]
) -> tuple[Identity, Iterator[SourceFile]]:
    """The identity of the output, and the listing unharmed.

    An output that exists keeps its own; raises InputError where it belongs to another model or other settings. For a
    new one the head of the source is opened, to check the columns, learn the types of the kept ones and choose the size
    of fragments.
    """
    if config.chunking.late:
        check_late(spec)
    present = read_identity(dataset)
    if present is not None and tuple(present.keep.names) == config.output.keep:
        wanted = _identity(config, spec, present.keep_schema, present.pack_below_bytes)
        check_identity(dataset, present, wanted)
        return present, files
    head = list(itertools.islice(files, _FILES_TO_INSPECT))
    keep = inspect_source(head, config.source, config.output.keep)
    wanted = _identity(config, spec, encode_schema(keep), pack_below_bytes)
    files = itertools.chain(head, files)
    if present is not None:
        check_identity(dataset, present, wanted)
        return wanted, files
    size, files = fragment_size(config, spec, files)
    return dataclasses.replace(wanted, fragment_rows=size.rows, fragment_bytes=size.bytes), files


def cut_as(config: EmbedConfig, identity: Identity) -> EmbedConfig:
    """The config with the fragments of an output, where it does not say itself how large they are."""
    if config.source.is_cut_by_config or not identity.fragment_rows:
        return config
    size = {"rows_per_fragment": identity.fragment_rows, "bytes_per_fragment": identity.fragment_bytes}
    return config.model_copy(update={"source": config.source.model_copy(update=size)})


def _identity(config: EmbedConfig, spec: EmbedderSpec, keep_schema: str, pack_below_bytes: int) -> Identity:
    _check_images(config, spec)
    if not spec.dim and config.output.dtype != "float32":
        raise InputError(f"leave out output.dtype: {spec.model} has sparse vectors alone, with float32 weights")
    if config.output.dtype == "binary" and spec.dim % 8:
        raise InputError(
            f"set output.dtype to another form: binary packs 8 components a byte, the model has {spec.dim}"
        )
    return Identity(
        fingerprint=dataset_fingerprint(config, spec),
        model=spec.model,
        dim=spec.dim,
        dtype=config.output.dtype,
        normalized=spec.recipe.normalize,
        scale=None,
        keep_schema=keep_schema,
        pack_below_bytes=pack_below_bytes,
        sparse_dim=spec.sparse_dim,
        similarity=spec.recipe.similarity,
    )


def _check_images(config: EmbedConfig, spec: EmbedderSpec) -> None:
    """Refuse images for a model that reads texts alone, and fragments that would not fit between two stages."""
    if config.source.image is None:
        return
    if spec.recipe.kind not in VISION_KINDS:
        raise InputError(f"leave out source.image, or take a model that sees: {spec.model} embeds texts alone")
    if config.chunking.tokens is not None:
        raise InputError("leave out chunking.tokens: with source.image a row is embedded whole")
    fitting = MOST_PIXEL_BYTES // vision_facts(verified_folder(spec, weights=False), spec.recipe.kind).max_pixel_bytes
    if config.source.max_rows > fitting:
        raise InputError(
            f"set source.rows_per_fragment to {fitting} or less: {config.source.max_rows} images for "
            f"{spec.model} could take more than {MOST_PIXEL_BYTES >> 20} MB between the stages"
        )


def dataset_fingerprint(config: EmbedConfig, spec: EmbedderSpec) -> str:
    """The fingerprint of all that determines the vectors of a dataset."""
    facts = {
        "embedder": spec.fingerprint,
        "chunking": {"version": CHUNKER_VERSION, **config.chunking.model_dump()},
        "dtype": config.output.dtype,
    }
    return mapping_digest(facts)
