"""What a checkpoint folder says about how it embeds, as the fields of a recipe.

Two layouts: sentence-transformers (modules.json and the folders it names, in the forms of versions 2 to 6) and plain
Hugging Face (config.json alone, which says nothing of pooling, so mean and normalise are assumed, and said).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from operators.embedder.recipe import folder_keys, static_folder
from operators.embedder.recipe.checkpoint import hidden_size, position_limit, read_config, read_json
from operators.embedder.recipe.head_files import head_width
from operators.embedder.recipe.keywords import Similarity
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
# Of a Transformer module, by the age of the layout; the first that is there counts
SETTINGS_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
ARGUMENTS = {
    ("model_args", "model_kwargs"): folder_keys.MODEL_ARGUMENTS,
    ("tokenizer_args", "processor_kwargs"): folder_keys.TOKENIZER_ARGUMENTS,
    ("config_args", "config_kwargs"): folder_keys.CONFIG_ARGUMENTS,
}
_LENGTH_OF_TASK = {"query": "query_length", "document": "document_length"}
TWO_TOWERS = {"clip": 77, "siglip": 64}  # and the positions of their texts, where config.json leaves the default out
UNBOUNDED_TOKENS = 1_000_000  # tokenizers without a limit say 1e30


def read_folder(folder: Path) -> dict[str, Any]:
    """The fields of the recipe of a checkpoint folder, all but `checkpoint`."""
    if static_folder.is_static(folder):
        return static_folder.recipe_fields(folder) | _whole(folder, static_folder.width(folder))
    if (folder / "modules.json").is_file():
        return _sentence_transformers(folder)
    config = read_config(folder)
    if config.get("model_type") in TWO_TOWERS:
        return _two_towers(folder, config)
    fields = {
        "pooling": "mean",
        "normalize": True,
        "max_tokens": max_tokens_of(folder, config, None),
        "truncation_side": truncation_side(folder),
    }
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
    if truncation_side(folder) != "right":
        raise InputError(f"{folder} has truncation_side: left, which is not supported for texts beside images")
    fields = {"kind": "two_towers", "pooling": "own", "normalize": True}
    fields["max_tokens"] = max_tokens or TWO_TOWERS[config["model_type"]]
    if config["model_type"] == "siglip":
        pad_token = tokenizer.get("pad_token")
        fields["pad_token"] = pad_token["content"] if isinstance(pad_token, dict) else pad_token
    return fields


def _sentence_transformers(folder: Path) -> dict[str, Any]:
    modules = read_json(folder / "modules.json")
    kinds = [_kind(folder, module) for module in modules]
    num_dense = kinds.count("Dense")
    if kinds not in (known := ["Transformer", "Pooling", *["Dense"] * num_dense], [*known, "Normalize"]):
        other = next((kind for kind in kinds if kind not in ("Transformer", "Pooling", "Dense", "Normalize")), None)
        what = f"a {other} module" if other else f"the modules {', '.join(kinds)}"
        raise InputError(
            f"{folder} cannot be embedded with: modules.json has {what}, "
            "and only Transformer, Pooling, any number of Dense and then optionally Normalize are supported"
        )
    transformer = folder / str(modules[0].get("path", ""))
    head = tuple(str(module["path"]) for module in modules[2 : 2 + num_dense])
    if kinds[-1] == "Normalize":
        path = folder / str(modules[-1]["path"]) / "config.json"
        folder_keys.check_keys(path, _optional_json(path), (), folder_keys.NORMALIZE)
    end_token = asked_end_token(transformer)
    return {
        **({"end_token": end_token} if end_token is not None else {}),
        **_pooling(folder / str(modules[1]["path"]) / "config.json"),
        "head": head,
        "normalize": kinds[-1] == "Normalize",
        **transformer_fields(transformer),
        **_whole(folder, head_width(folder, head, hidden_size(transformer, read_config(transformer)))),
    }


def _kind(folder: Path, module: Mapping[str, Any]) -> str:
    """The class of a module; one that is not of sentence-transformers itself goes by its whole name."""
    folder_keys.check_keys(folder / "modules.json", module, ("path", "type"), folder_keys.MODULE)
    package, _, kind = str(module["type"]).rpartition(".")
    return kind if package.partition(".")[0] == "sentence_transformers" else str(module["type"])


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
        modes = [key for key, value in config.items() if key.startswith("pooling_mode_") and value] or ["mean"]
    named_modes = [key for key in config if key.startswith("pooling_mode")]
    folder_keys.check_keys(path, config, ("include_prompt", *named_modes), folder_keys.POOLING)
    if len(modes) != 1 or modes[0] not in POOLING_OF_MODE:
        raise InputError(
            f"{path} asks for pooling {modes}: supported are mean, cls, lasttoken and weightedmean, one at a time"
        )
    fields = {"pooling": POOLING_OF_MODE[modes[0]]}
    if config.get("include_prompt") is False:
        fields |= {"pool_over": "after_prompt", "count_prompt": "alone"}
    return fields


def _whole(folder: Path, width: int) -> dict[str, Any]:
    """What config_sentence_transformers.json says of a model whose vectors are `width` wide."""
    path = folder / "config_sentence_transformers.json"
    config = _optional_json(path)
    used = ("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim")
    folder_keys.check_keys(path, config, used, folder_keys.FOLDER)
    similarity, dims = config.get("similarity_fn_name") or "cosine", config.get("truncate_dim")
    if similarity not in get_args(Similarity):
        raise InputError(f"{path} has similarity_fn_name: {similarity!r}: known are {', '.join(get_args(Similarity))}")
    fields = {"prompts": _prompts(path, config), "similarity": similarity}
    return {**fields, **({"default_dims": int(dims)} if dims and dims < width else {})}


def _prompts(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    named: dict[str, str] = {name: text or "" for name, text in (config.get("prompts") or {}).items()}
    default_name = config.get("default_prompt_name")
    if default_name and default_name not in named:
        raise InputError(f"{path} has default_prompt_name: {default_name!r}, which is none of its prompts")
    default = named.get(default_name or "")
    prompts = dict(named)
    for role, aliases in ROLE_ALIASES.items():
        text = next((named[alias] for alias in aliases if alias in named), default)
        if text is not None:
            prompts[role] = text
        hidden = [alias for alias in aliases[1:] if named.get(alias)]
        if named.get(role) == "" and hidden:
            logger.warning(
                "%s has an empty prompt %s, so the role %s gets none, as in sentence-transformers; "
                "set embedder.role=%s for its prompt %r",
                *(path, role, role, hidden[0], named[hidden[0]]),
            )
    return prompts


def transformer_fields(folder: Path) -> dict[str, Any]:
    """What the folder of a Transformer module says of lengths and truncation; InputError for what is not known."""
    path = next((path for name in SETTINGS_FILES if (path := folder / name).is_file()), folder / SETTINGS_FILES[0])
    settings = _optional_json(path)
    if settings.get("do_lower_case"):
        raise InputError(f"{path} has do_lower_case: true: put a Lowercase normalizer into tokenizer.json instead")
    arguments: dict[str, Any] = {}
    for names, fixed in ARGUMENTS.items():
        for name in names:
            used = ("model_max_length", "truncation_side") if fixed is folder_keys.TOKENIZER_ARGUMENTS else ()
            folder_keys.check_keys(f"{path}: {name}", settings.get(name) or {}, used, fixed)
            arguments |= settings.get(name) or {}
    processing = settings.get("processing_kwargs") or {}
    text = processing.get("text") or {}
    folder_keys.check_keys(f"{path}: processing_kwargs.text", text, ("max_length",), folder_keys.TEXT)
    folder_keys.check_keys(f"{path}: processing_kwargs.common", processing.get("common") or {}, (), folder_keys.COMMON)
    modalities = settings.get("modality_config")
    if modalities:
        modality = modalities.get("text") or {"text": "missing"}
        folder_keys.check_keys(f"{path}: modality_config.text", modality, (), folder_keys.TEXT_MODALITY)
    own = ("max_seq_length", "do_lower_case", "processing_kwargs", "modality_config", *_LENGTH_OF_TASK.values())
    known = (*own, *(name for names in ARGUMENTS for name in names))
    folder_keys.check_keys(path, settings, known, folder_keys.TRANSFORMER)
    told = text.get("max_length") or arguments.get("model_max_length") or settings.get("max_seq_length")
    lengths = {} if text.get("max_length") else {role: settings.get(key) for role, key in _LENGTH_OF_TASK.items()}
    side = arguments.get("truncation_side") or truncation_side(folder)
    return {
        "max_tokens": max_tokens_of(folder, read_config(folder), told),
        "role_max_tokens": {
            alias: int(length) for role, length in lengths.items() if length for alias in ROLE_ALIASES[role]
        },
        "truncation_side": side,
    }


def truncation_side(folder: Path) -> str:
    """The end at which a folder's tokenizer cuts: of its settings, else of what tokenizer.json was saved with."""
    named = _optional_json(folder / "tokenizer_config.json").get("truncation_side")
    if named:
        return str(named)
    return str((_optional_json(folder / "tokenizer.json").get("truncation") or {}).get("direction", "right")).lower()


def max_tokens_of(folder: Path, config: dict[str, Any], max_seq_length: int | None) -> int:
    """sentence-transformers' rule: what it was told, or else what the positions and the tokenizer allow."""
    if max_seq_length:
        return int(max_seq_length)
    tokenizer = _optional_json(folder / "tokenizer_config.json")
    model_max_length = tokenizer.get("model_max_length", tokenizer.get("max_len"))  # max_len: of version 2
    limits = [limit for limit in (position_limit(config), model_max_length) if limit and limit < UNBOUNDED_TOKENS]
    if not limits:
        raise InputError(f"{folder} sets no maximum length: set max_tokens, or write a recipe")
    return int(min(limits))


def _optional_json(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.is_file() else {}
