"""What a checkpoint folder says about how it embeds, as the fields of a recipe.

Two layouts: sentence-transformers (modules.json and the folders it names, in the forms of versions 2 to 6) and plain
Hugging Face (config.json alone, which says nothing of pooling, so mean and normalise are assumed, and said).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from operators.embedder.recipe import static_folder
from operators.embedder.recipe.checkpoint import position_limit, read_config, read_json
from operators.errors import InputError

logger = logging.getLogger(__name__)

POOLING_OF_MODE = {
    "mean": "mean",
    "cls": "cls",
    "lasttoken": "last",
    "weightedmean": "weighted_mean",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
ROLE_ALIASES = {"document": ("document", "passage", "corpus"), "query": ("query",)}
TWO_TOWERS = {"clip": 77, "siglip": 64}  # and the positions of their texts, where config.json leaves the default out
UNBOUNDED_TOKENS = 1_000_000  # tokenizers without a limit say 1e30


def read_folder(folder: Path) -> dict[str, Any]:
    """The fields of the recipe of a checkpoint folder, all but `checkpoint`."""
    if static_folder.is_static(folder):
        return static_folder.recipe_fields(folder, _prompts(folder))
    if (folder / "modules.json").is_file():
        return _sentence_transformers(folder)
    config = read_config(folder)
    if config.get("model_type") in TWO_TOWERS:
        return _two_towers(folder, config)
    fields = {"pooling": "mean", "normalize": True, "max_tokens": max_tokens_of(folder, config, None)}
    logger.warning(
        "%s does not say how it embeds: assuming mean pooling, normalised vectors, %d tokens; write a recipe to differ",
        folder,
        fields["max_tokens"],
    )
    return fields


def _two_towers(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """CLIP and SigLIP: what is not in the checkpoint is the same for all of their family."""
    tokenizer = _optional_json(folder / "tokenizer_config.json")
    max_tokens = (config.get("text_config") or {}).get("max_position_embeddings")
    fields = {"kind": "two_towers", "pooling": "own", "normalize": True}
    fields["max_tokens"] = max_tokens or TWO_TOWERS[config["model_type"]]
    if config["model_type"] == "siglip":
        pad_token = tokenizer.get("pad_token")
        fields["pad_token"] = pad_token["content"] if isinstance(pad_token, dict) else pad_token
    return fields


def _sentence_transformers(folder: Path) -> dict[str, Any]:
    modules = read_json(folder / "modules.json")
    kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
    num_dense = kinds.count("Dense")
    if kinds not in (known := ["Transformer", "Pooling", *["Dense"] * num_dense], [*known, "Normalize"]):
        other = next((kind for kind in kinds if kind not in ("Transformer", "Pooling", "Dense", "Normalize")), None)
        what = f"a {other} module" if other else f"the modules {', '.join(kinds)}"
        raise InputError(
            f"{folder} cannot be embedded with: modules.json has {what}, "
            "and only Transformer, Pooling, any number of Dense and then optionally Normalize are supported"
        )
    transformer = folder / str(modules[0].get("path", ""))
    settings = _optional_json(transformer / "sentence_bert_config.json")
    if settings.get("do_lower_case"):
        raise InputError(
            f"{transformer}/sentence_bert_config.json has do_lower_case: true: put a Lowercase normalizer into "
            "tokenizer.json instead"
        )
    end_token = asked_end_token(transformer)
    return {
        **({"end_token": end_token} if end_token is not None else {}),
        **_pooling(folder / str(modules[1]["path"]) / "config.json"),
        "head": tuple(str(module["path"]) for module in modules[2 : 2 + num_dense]),
        "normalize": kinds[-1] == "Normalize",
        "max_tokens": max_tokens_of(transformer, read_config(transformer), settings.get("max_seq_length")),
        "prompts": _prompts(folder),
    }


def asked_end_token(folder: Path) -> str | None:
    """The end token that a tokenizer's settings ask for; transformers >= 5 reads them, and puts none."""
    config = _optional_json(folder / "tokenizer_config.json")
    token = config.get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    return str(token) if config.get("add_eos_token") and token else None


def _pooling(path: Path) -> dict[str, str]:
    config = read_json(path)
    named = config.get("pooling_mode")
    modes = [named] if isinstance(named, str) else named
    if modes is None:
        modes = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    if len(modes) != 1 or modes[0] not in POOLING_OF_MODE:
        raise InputError(
            f"{path} asks for pooling {modes}: supported are mean, cls, lasttoken and weightedmean, one at a time"
        )
    fields = {"pooling": POOLING_OF_MODE[modes[0]]}
    if config.get("include_prompt") is False:
        fields |= {"pool_over": "after_prompt", "count_prompt": "alone"}
    return fields


def _prompts(folder: Path) -> dict[str, str]:
    config = _optional_json(folder / "config_sentence_transformers.json")
    named: dict[str, str] = {name: text or "" for name, text in (config.get("prompts") or {}).items()}
    default = named.get(config.get("default_prompt_name") or "")
    prompts = dict(named)
    for role, aliases in ROLE_ALIASES.items():
        text = next((named[alias] for alias in aliases if alias in named), default)
        if text is not None:
            prompts[role] = text
    return prompts


def max_tokens_of(folder: Path, config: dict[str, Any], max_seq_length: int | None) -> int:
    """sentence-transformers' rule: what it was told, or else what the positions and the tokenizer allow."""
    if max_seq_length:
        return int(max_seq_length)
    model_max_length = _optional_json(folder / "tokenizer_config.json").get("model_max_length")
    limits = [limit for limit in (position_limit(config), model_max_length) if limit and limit < UNBOUNDED_TOKENS]
    if not limits:
        raise InputError(f"{folder} sets no maximum length: set max_tokens, or write a recipe")
    return int(min(limits))


def _optional_json(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.is_file() else {}
