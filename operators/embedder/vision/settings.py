"""Which keys of a recipe belong to a model that sees, and together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from operators.embedder.templates import TEXT

if TYPE_CHECKING:
    from operators.embedder.recipe import Recipe

VISION_KINDS = ("two_towers", "vision_llm")
# What of a recipe such a model has; of the rest it has the defaults
_OF_VISION = {
    "kind",
    "checkpoint",
    "revision",
    "pooling",
    "normalize",
    "max_tokens",
    "prompts",
    "join",
    "task",
    "text_style",
    "end_token",
    "pad_token",
    "image_prompt",
    "image_text_prompt",
    "dims",
    "default_dims",
    "compute_dtype",
}


def check_vision(recipe: Recipe) -> None:
    """Raise ValueError naming the keys of a recipe that do not belong together."""
    if (recipe.kind == "two_towers") != (recipe.pooling == "own"):
        raise ValueError("kind: two_towers and pooling: own belong together")
    if recipe.pad_token is not None and recipe.kind != "two_towers":
        raise ValueError("pad_token is for kind: two_towers")
    if (recipe.kind == "vision_llm") != (recipe.image_prompt is not None):
        raise ValueError("kind: vision_llm and image_prompt belong together")
    if recipe.image_prompt is not None and TEXT in recipe.image_prompt:
        raise ValueError("image_prompt is for an image alone: a prompt with {text} is an image_text_prompt")
    if recipe.image_text_prompt is not None and (
        recipe.image_prompt is None or recipe.image_text_prompt.count(TEXT) != 1
    ):
        raise ValueError("image_text_prompt has to hold {text} once, and needs image_prompt")
    if recipe.kind not in VISION_KINDS:
        return
    if recipe.pooling not in ("own", "last", "mean"):
        raise ValueError(f"kind: {recipe.kind} has pooling own, last or mean, not {recipe.pooling}")
    defaults = type(recipe).model_fields
    others = [key for key, value in recipe if key not in _OF_VISION and value != defaults[key].default]
    if others:
        raise ValueError(f"kind: {recipe.kind} is embedded as trained: leave out {', '.join(others)}")
    if any(not isinstance(prompt, str) for prompt in recipe.prompts.values()):
        raise ValueError(f"kind: {recipe.kind} has one prompt a role, not a list")
