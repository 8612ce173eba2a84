"""Loading a checkpoint's model as a recipe asks for it, whole or refused; weights come from safetensors alone."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError

from operators.embedder.recipe.checkpoint import weight_files
from operators.embedder.recipe.head_files import POOLER
from operators.embedder.recipe.spec import text_config
from operators.errors import InputError

if TYPE_CHECKING:
    from operators.embedder.recipe.recipe import Recipe

HEAD_PREFIXES = ("lm_head.", "score.", "classifier.")  # parts of a checkpoint that embedding does not use
# what from_pretrained raises for a checkpoint that is broken or of a class that it does not know
LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, AttributeError, ImportError, SafetensorError)


def load_model(
    folder: Path, dtype: torch.dtype, recipe: Recipe, kind: Any = transformers.AutoModel
) -> transformers.PreTrainedModel:
    """A checkpoint on the CPU, in eval mode, with the recipe's attention: its trunk, with a pooler if it is the head.

    `kind` is another of transformers' Auto classes where more than the trunk is wanted; all of it has to be there.
    """
    weight_files(folder)
    config = load_config(folder, recipe)
    library_logger = logging.getLogger("transformers")
    level = library_logger.level
    library_logger.setLevel(logging.ERROR)  # what its load report warns of is an InputError below
    transformers.logging.disable_progress_bar()
    try:
        model, info = kind.from_pretrained(
            folder,
            config=config,
            key_mapping=None if recipe.trunk is None else {f"^{re.escape(recipe.trunk.prefix)}": ""},
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=recipe.trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
        )
    except LOAD_ERRORS as error:
        raise InputError(f"cannot load {folder}: {str(error).strip() or type(error).__name__}") from error
    finally:
        library_logger.setLevel(level)
    unused = () if kind is not transformers.AutoModel else HEAD_PREFIXES
    unused = unused if POOLER in recipe.head else (*unused, "pooler.")
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(unused))
    if missing:
        raise InputError(
            f"{folder} is incomplete: {len(missing)} weights are missing and would be random: {', '.join(missing[:5])}"
        )
    if info["mismatched_keys"]:
        raise InputError(f"{folder} does not fit its config.json: {sorted(info['mismatched_keys'])[:3]}")
    if hasattr(model, "pooler") and POOLER not in recipe.head:
        model.pooler = None
    model.config.use_cache = False
    if recipe.attention != "as_trained":
        # The one switch that sdpa, eager and flash attention all honour; per-module flags depend on the batch's padding
        model.config.is_causal = recipe.attention == "causal"
    return model.eval()


def load_config(folder: Path, recipe: Recipe) -> transformers.PreTrainedConfig:
    """The config of a recipe's text model, without its sliding window where the recipe asks for none."""
    try:
        if recipe.trunk is not None:
            fields = text_config(folder, recipe)
            config = transformers.AutoConfig.for_model(**fields)
        else:
            config = transformers.AutoConfig.from_pretrained(
                folder, trust_remote_code=recipe.trust_remote_code, local_files_only=True
            )
    except LOAD_ERRORS as error:
        raise InputError(f"cannot load {folder}: {str(error).strip() or type(error).__name__}") from error
    if recipe.window == "none" and getattr(config, "sliding_window", None) is not None:
        layer_types = getattr(config, "layer_types", None)
        # Layers of two kinds (Gemma 3) differ in more than the window, so there it is made to hold every text
        config.sliding_window = config.max_position_embeddings if layer_types else None
    return config
