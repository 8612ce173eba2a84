"""Encoded images to RGB pixels, as the image processors of transformers take them; what does not decode is told.

The EXIF orientation is applied and every mode (palette, CMYK, alpha, 16 bits) becomes RGB, as transformers' own
`load_image` does. Only common formats are tried: others would start programs (EPS) or are not of photographs.
"""

from __future__ import annotations

import io
import struct
import warnings

from PIL import Image, ImageOps

from operators.corpus.images import BadImage

Image.init()  # all plugins, else a format of this list may be unknown; builds of Pillow lack some of them
FORMATS = tuple(
    name for name in ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF") if name in Image.OPEN
)
MAX_PIXELS = 89_478_485  # PIL's own limit (256 MB of RGB), above which it takes a file for a decompression bomb
MAX_ASPECT = 200  # a longer strip becomes huge when its short side is scaled to the model's; Qwen2-VL has this limit
# what PIL's decoders raise for files that are broken or cut off
_DECODE_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    ZeroDivisionError,
    struct.error,
    Image.DecompressionBombError,
)


def decode(data: bytes) -> Image.Image:
    """An RGB image, upright; raises BadImage naming the fault of an image that cannot be embedded."""
    if not data:
        raise BadImage("empty_image", "the image has no bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of corrupt EXIF data, and of sizes that are refused here
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_size(*image.size)
            return ImageOps.exif_transpose(image).convert("RGB")
        except Image.DecompressionBombError as error:
            raise BadImage("image_too_large", _one_line(error)) from error
        except _DECODE_FAULTS as error:
            raise BadImage("undecodable_image", _one_line(error)) from error


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise BadImage("empty_image", f"the image has {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise BadImage("image_too_large", f"the image has {width} x {height} pixels, more than {MAX_PIXELS}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadImage("image_too_narrow", f"the image has {width} x {height} pixels: one side is over {MAX_ASPECT} x")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
