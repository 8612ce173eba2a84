"""What every worker with a vision tower checks before it embeds, beside what all embedders are checked for.

Known images and texts are prepared and embedded alone, together and in another order (operators.embedder.selftest);
a batch then mixes both, with texts of different lengths and images of different shapes.
"""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
from PIL import Image

from operators.embedder import selftest
from operators.embedder.recipe.spec import EmbedderSpec
from operators.embedder.tokens import known_texts
from operators.embedder.vision.reading import ImageReader
from operators.errors import InputError

SIZES = ((96, 64), (40, 120), (64, 64))  # (width, height): landscape, portrait, square


def known_inputs(reader: ImageReader, spec: EmbedderSpec) -> pa.StructArray:
    """The known texts and images as an embedder takes them: the texts first."""
    known_texts.check_tokens(reader.tokenizer, spec)
    images = [_image(number, *size) for number, size in enumerate(SIZES)]
    texts = [*known_texts.TEXTS, *[None] * len(images)]
    named = [None] * len(known_texts.TEXTS) + [{"bytes": image} for image in images]
    if spec.recipe.image_text_prompt is not None:
        texts.append(known_texts.TEXTS[0])
        named.append({"bytes": images[0]})
    rows = reader(pa.table({"text": pa.array(texts, pa.string()), "image": named}))
    if rows.faults:
        raise InputError(f"{spec.model}: self-test: a known image is refused: {next(iter(rows.faults.values()))[1]}")
    return pa.StructArray.from_arrays([rows.input_ids, rows.pixels], ["input_ids", "pixels"])


def check(embedder: selftest.Checked, rows: pa.StructArray) -> None:
    """Raise InputError naming the fault unless the known inputs get the vectors they should."""
    selftest.check(embedder, rows)
    values_ND = embedder(rows.slice(len(known_texts.TEXTS), len(SIZES))).values_ND
    if np.abs(values_ND[1:] - values_ND[:-1]).max() < selftest.NORM_TOLERANCE * np.abs(values_ND).max():
        raise InputError(f"{embedder.spec.model}: self-test: different images get the same vector")


def _image(number: int, width: int, height: int) -> bytes:
    """A PNG of coloured waves, another for each number."""
    y, x = np.mgrid[0:height, 0:width] / 16.0
    waves = [np.sin((number + 1) * x), np.cos(y + number), np.sin(x * y / 4 + 0.7 * number)]
    pixels = np.stack([(wave + 1) * 127 for wave in waves], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
