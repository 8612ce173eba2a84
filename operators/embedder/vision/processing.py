"""Images to the pixels that a model takes, by the checkpoint's own image processor, left as bytes.

The processor resizes, crops, cuts into tiles and pads here, on a CPU and in 8 bits a channel; what travels to the model
is a quarter of its floats (150 kB for CLIP's 224 x 224). Scaling to floats is done beside the model (`Scaling`), as the
processor would have done it.

Shapes: T tiles of an image (1 but for LLaVA-NeXT), C channels, S pixels of a side.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from operators.embedder.recipe.vision_facts import CHANNELS, VisionFacts
from operators.errors import InputError

if TYPE_CHECKING:
    import torch

# tiles_TCSS as bytes, and the height and width of the image that they were made of
PIXELS_TYPE = pa.struct([("data", pa.large_binary()), ("height", pa.int32()), ("width", pa.int32())])
PROBE_SIZES = ((40, 60), (64, 64), (90, 20))


@dataclass(frozen=True, slots=True)
class Pixels:
    """One image as the model takes it."""

    tiles_TCSS: NDArray[np.uint8]
    height: int  # of the image itself
    width: int


@dataclass(frozen=True, slots=True)
class Scaling:
    """From bytes to the floats that a model was trained on."""

    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, tiles_TCSS: torch.Tensor) -> torch.Tensor:
        """The tiles in float32, where they are."""
        import torch

        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=tiles_TCSS.device).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return (tiles_TCSS.to(torch.float32) * self.factor - mean) / std


class ImageProcessor:
    """A checkpoint's image processor; raises InputError where it does not make what the model takes."""

    def __init__(self, folder: Path, facts: VisionFacts) -> None:
        self._processor = _load(folder)
        self._facts = facts
        self.scaling = _scaling(self._processor)
        for height, width in PROBE_SIZES:
            self._check(self(Image.new("RGB", (width, height))), folder)

    def __call__(self, image: Image.Image) -> Pixels:
        """The pixels of an RGB image."""
        made = self._processor(images=[image], do_rescale=False, do_normalize=False)["pixel_values"][0]
        tiles_TCSS = np.asarray(made)
        if tiles_TCSS.ndim == 3:
            tiles_TCSS = tiles_TCSS[None]
        return Pixels(np.ascontiguousarray(tiles_TCSS), image.height, image.width)

    def _check(self, pixels: Pixels, folder: Path) -> None:
        side = self._facts.image_size
        made = pixels.tiles_TCSS.shape[1:]
        if made != (CHANNELS, side, side):
            raise InputError(
                f"{folder}: its image processor makes {' x '.join(map(str, made))} values of an image, and the model "
                f"takes {CHANNELS} x {side} x {side}: check size and crop_size in preprocessor_config.json"
            )
        if pixels.tiles_TCSS.dtype != np.uint8:
            raise InputError(f"{folder}: its image processor makes {pixels.tiles_TCSS.dtype} and not bytes of an image")


def to_arrow(images: list[Pixels | None]) -> pa.StructArray:
    """A column of PIXELS_TYPE, null where there is no image."""
    rows = [
        None
        if pixels is None
        else {"data": pixels.tiles_TCSS.tobytes(), "height": pixels.height, "width": pixels.width}
        for pixels in images
    ]
    return pa.array(rows, PIXELS_TYPE)


def tiles_of(data: pa.LargeBinaryScalar, side: int) -> NDArray[np.uint8]:
    """tiles_TCSS of one row of PIXELS_TYPE, without a copy; read only."""
    return np.frombuffer(data.as_buffer(), np.uint8).reshape(-1, CHANNELS, side, side)


def _load(folder: Path) -> Any:
    import transformers

    try:
        # Pillow's resampling, whatever else is installed: torchvision's differs by a grey value here and there
        return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(f"cannot load the image processor of {folder} (preprocessor_config.json): {error}") from error


def _scaling(processor: Any) -> Scaling:
    factor = float(processor.rescale_factor) if processor.do_rescale else 1.0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    return Scaling(factor, _per_channel(mean), _per_channel(std))


def _per_channel(value: float | list[float]) -> tuple[float, ...]:
    return (float(value),) * CHANNELS if isinstance(value, (int, float)) else tuple(map(float, value))
