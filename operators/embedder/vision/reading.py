"""Rows with images to what a vision model reads: token ids and pixels, or the reason why a row gets no vector.

A row is an image, a text, or both where the model takes both. Images are fetched and decoded a few at a time; what is
kept of each is its pixels at the model's size.

Shapes: N rows of a call, G of them good.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.corpus.image_fetching import ImageAccess, fetch
from operators.corpus.images import BadImage
from operators.embedder.recipe.spec import EmbedderSpec, verified_folder
from operators.embedder.recipe.templates import Template, filled
from operators.embedder.recipe.vision_facts import VisionFacts, vision_facts
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.embedder.vision.decoding import decode
from operators.embedder.vision.processing import ImageProcessor, Pixels, to_arrow
from operators.errors import InputError

FETCHED_AT_ONCE = 16  # images that are only named: requests in flight, and files in memory
IMAGE_TOKEN = "<image>"


@dataclass(frozen=True, slots=True)
class ImageRows:
    """N rows as the model reads them; the columns hold the good ones."""

    faults: dict[int, tuple[str, str]]  # reason and message of the rows that are not good
    input_ids: pa.ListArray  # list<int32>; empty for an image that goes through a tower of its own
    pixels: pa.StructArray  # operators.embedder.vision.processing.PIXELS_TYPE; null for a text
    num_tokens: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    hashes: list[bytes]
    lost_tokens: int


@dataclass(frozen=True, slots=True)
class _Row:
    ids: NDArray[np.int32]
    num_tokens: int
    pixels: Pixels | None
    truncated: bool
    lost_tokens: int
    hash: bytes


class ImageReader:
    """What prepares images and texts for a recipe with a vision tower; loads tokenizer and image processor."""

    def __init__(self, spec: EmbedderSpec, access: ImageAccess | None = None) -> None:
        folder = verified_folder(spec, weights=False)
        self.facts = vision_facts(folder, spec.recipe.kind)
        self.processor = ImageProcessor(folder, self.facts)
        self.tokenizer = Tokenizer(spec)
        self._access = access or ImageAccess()
        self._threads = ThreadPoolExecutor(FETCHED_AT_ONCE, thread_name_prefix="images")
        self._image_ids, self._both = _image_prompts(spec, self.facts)

    def __call__(self, rows: pa.Table) -> ImageRows:
        """Prepare rows of `operators.corpus.rows`; raises OSError where the storage of a named image fails."""
        texts = rows["text"].to_pylist()
        done: list[_Row] = []
        faults: dict[int, tuple[str, str]] = {}
        for number, (text, image) in enumerate(zip(texts, self._images(rows), strict=True)):
            try:
                done.append(self._row(text, image))
            except BadImage as bad:
                faults[number] = (bad.reason, str(bad))
        ids = [row.ids for row in done]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int32)
        return ImageRows(
            faults,
            pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate([np.empty(0, np.int32), *ids]))),
            to_arrow([row.pixels for row in done]),
            np.array([row.num_tokens for row in done], np.int32),
            np.array([row.truncated for row in done], np.bool_),
            [row.hash for row in done],
            sum(row.lost_tokens for row in done),
        )

    def pixels(self, image: bytes) -> Pixels:
        """The pixels of an encoded image; raises BadImage."""
        decoded = decode(image)
        try:
            return self.processor(decoded)
        except ValueError as error:
            raise BadImage("undecodable_image", f"the image processor refuses it: {error}") from error

    def _images(self, rows: pa.Table) -> Iterator[bytes | BadImage | None]:
        """The encoded image of each row, fetched where it is only named."""
        column = rows["image"] if "image" in rows.column_names else pa.nulls(rows.num_rows)
        for start in range(0, rows.num_rows, FETCHED_AT_ONCE):
            yield from self._threads.map(self._fetched, column.slice(start, FETCHED_AT_ONCE).to_pylist())

    def _fetched(self, image: Mapping[str, Any] | None) -> bytes | BadImage | None:
        try:
            return None if image is None else fetch(image, self._access)
        except BadImage as bad:
            return bad

    def _row(self, text: str | None, image: bytes | BadImage | None) -> _Row:
        if isinstance(image, BadImage):
            raise image
        if image is None:
            assert text is not None, "a row without text and image is rejected where it is read"
            return self._text_row(self.tokenizer, text, hashlib.blake2b(text.encode(), digest_size=16).digest())
        content = hashlib.blake2b(image, digest_size=16)
        if text is not None and self._both is None:
            raise BadImage(
                "text_and_image", "the recipe has no image_text_prompt: it embeds a text or an image, not both"
            )
        pixels = self.pixels(image)
        num_image_tokens = self.facts.num_tokens(pixels.height, pixels.width)
        if self._image_ids is None:
            return _Row(np.empty(0, np.int32), num_image_tokens, pixels, False, 0, content.digest())
        if text is None:
            row = _Row(self._image_ids, 0, None, False, 0, b"")
        else:
            assert self._both is not None
            content.update(b"\0" + text.encode())
            row = self._text_row(self._both, text, b"")
        ids = self._with_image(row.ids, num_image_tokens)
        return dataclasses.replace(row, ids=ids, num_tokens=len(ids), pixels=pixels, hash=content.digest())

    def _with_image(self, ids: NDArray[np.int32], num_image_tokens: int) -> NDArray[np.int32]:
        """The ids with as many image tokens as the image has states, in place of the one that stands for it."""
        places = np.flatnonzero(ids == self.facts.image_token_id)
        if len(places) != 1:
            raise BadImage("image_token_in_text", f"the text holds {IMAGE_TOKEN}, which stands for the image itself")
        counts = np.ones(len(ids), np.int64)
        counts[places[0]] = num_image_tokens
        return np.repeat(ids, counts)

    def _text_row(self, tokenizer: Tokenizer, text: str, digest: bytes) -> _Row:
        tokens = tokenizer(pa.array([text], pa.string()))
        ids = tokens.input_ids.values.to_numpy()
        return _Row(ids, len(ids), None, bool(tokens.truncated[0].as_py()), tokens.lost_tokens, digest)


def _image_prompts(spec: EmbedderSpec, facts: VisionFacts) -> tuple[NDArray[np.int32] | None, Tokenizer | None]:
    """The ids of the prompt for an image alone, and what tokenizes a text beside an image; None where there is none."""
    recipe = spec.recipe
    if recipe.image_prompt is None:
        return None, None
    # one token of each prompt stands for all of the image's
    room = recipe.max_tokens - facts.max_num_tokens + 1
    alone = _tokenizer(spec, Template(filled(recipe.image_prompt, recipe.task, "").prefix, ""), recipe.max_tokens)
    ids = alone(pa.array([""], pa.string())).input_ids.values.to_numpy()
    if np.count_nonzero(ids == facts.image_token_id) != 1:
        raise InputError(f"image_prompt has to hold {IMAGE_TOKEN} once, as the checkpoint's tokenizer knows it")
    if len(ids) > room:
        raise InputError(
            f"max_tokens {recipe.max_tokens} leaves no room for an image: it has up to {facts.max_num_tokens} tokens, "
            f"and image_prompt {len(ids) - 1}"
        )
    if recipe.image_text_prompt is None:
        return ids, None
    return ids, _tokenizer(spec, filled(recipe.image_text_prompt, recipe.task, ""), room)


def _tokenizer(spec: EmbedderSpec, template: Template, max_tokens: int) -> Tokenizer:
    recipe = spec.recipe.model_copy(update={"max_tokens": max_tokens})
    return Tokenizer(dataclasses.replace(spec, templates=(template,), recipe=recipe))
