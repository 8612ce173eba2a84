"""What a checkpoint with a vision tower says of its shapes, from its config alone, for driver, tokenizing and model.

Two kinds: `two_towers` (CLIP, SigLIP), where an image and a text each go through a model of their own into one space,
and `vision_llm` (LLaVA, LLaVA-NeXT), where an image becomes tokens among those of a prompt. The configs on the hub
leave out what is the default of their class, so transformers reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from operators.errors import InputError

MODEL_TYPES = {"two_towers": ("clip", "siglip"), "vision_llm": ("llava", "llava_next")}
WITH_CLASS_TOKEN = ("clip_vision_model",)  # vision towers whose first state is of no patch
CHANNELS = 3


@dataclass(frozen=True, slots=True)
class VisionFacts:
    """Shapes of a checkpoint."""

    model_type: str
    width: int  # of the vectors
    text_positions: int | None  # tokens that a text (and, of a vision_llm, its image) may have
    image_size: int  # pixels of a tile's side
    patches: int  # along a tile's side
    tile_tokens: int  # states that a tile becomes, before LLaVA-NeXT's unpadding
    grids: tuple[tuple[int, int], ...] = ()  # resolutions (height, width) that LLaVA-NeXT cuts into tiles
    image_token_id: int | None = None  # of a vision_llm: the token that stands for a state of the image

    @property
    def max_pixel_bytes(self) -> int:
        """Most bytes of one prepared image."""
        tiles = max((height * width // self.image_size**2 + 1 for height, width in self.grids), default=1)
        return tiles * CHANNELS * self.image_size**2

    def num_tokens(self, height: int, width: int) -> int:
        """How many tokens an image of this size in pixels becomes."""
        if not self.grids:
            return self.tile_tokens
        from transformers.image_processing_utils import select_best_resolution

        best_height, best_width = select_best_resolution((height, width), [list(grid) for grid in self.grids])
        return self.tile_tokens + _unpadded(
            (height, width),
            (best_height // self.image_size * self.patches, best_width // self.image_size * self.patches),
        )

    @property
    def max_num_tokens(self) -> int:
        """Most tokens of one image: one that fills its grid."""
        return max((self.num_tokens(*grid) for grid in self.grids), default=self.tile_tokens)


def vision_facts(folder: Path, kind: str) -> VisionFacts:
    """The facts of a checkpoint folder; raises InputError for a model that this kind of recipe does not run."""
    import transformers  # seconds; only recipes of these kinds wait for it on the driver

    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot load {folder}/config.json: {error}") from error
    if config.model_type not in MODEL_TYPES[kind]:
        raise InputError(
            f"kind: {kind} runs models of the types {', '.join(MODEL_TYPES[kind])}, and {folder} is {config.model_type}"
        )
    return _two_towers(config) if kind == "two_towers" else _vision_llm(config, folder)


def _two_towers(config: Any) -> VisionFacts:
    vision, text = config.vision_config, config.text_config
    patches = int(vision.image_size) // int(vision.patch_size)
    if config.model_type == "clip":
        width = int(config.projection_dim)
    else:
        width = int(vision.hidden_size)
        if text.projection_size not in (None, width):
            raise InputError(
                f"the towers do not meet: images get {width} dimensions and texts {text.projection_size} (config.json)"
            )
    return VisionFacts(
        config.model_type,
        width,
        int(text.max_position_embeddings),
        int(vision.image_size),
        patches,
        patches**2 + (vision.model_type in WITH_CLASS_TOKEN),
    )


def _vision_llm(config: Any, folder: Path) -> VisionFacts:
    vision, text = config.vision_config, config.text_config
    patches = int(vision.image_size) // int(vision.patch_size)
    has_class_token = vision.model_type in WITH_CLASS_TOKEN
    tile_tokens = patches**2 + has_class_token - (config.vision_feature_select_strategy == "default")
    grids = tuple((int(h), int(w)) for h, w in getattr(config, "image_grid_pinpoints", None) or ())
    if grids and tile_tokens != patches**2:
        raise InputError(
            f"{folder}/config.json: vision_feature_select_strategy {config.vision_feature_select_strategy} does not "
            f"fit its vision tower ({vision.model_type}): a tile has {tile_tokens} states for {patches**2} patches"
        )
    return VisionFacts(
        config.model_type,
        int(text.hidden_size),
        getattr(text, "max_position_embeddings", None),
        int(vision.image_size),
        patches,
        tile_tokens,
        grids,
        int(config.image_token_id),
    )


def _unpadded(size: Sequence[int], grid: Sequence[int]) -> int:
    """States of the tiles of an image of `size`, without those of padding, and one at the end of each line.

    The arithmetic is that of LLaVA-NeXT's `unpad_image`, floats and rounding included: one state more or less and the
    model refuses the image.
    """
    height, width = size
    lines, columns = grid
    if width / height > columns / lines:
        lines -= (lines - int(round(height * (columns / width), 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * (lines / height), 7))) // 2 * 2
    return lines * columns + lines
