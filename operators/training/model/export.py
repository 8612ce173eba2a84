"""A trained encoder as a model folder that `embed` and `SentenceTransformer(...)` load, and that says where it is from.

FOLDER/config.json, model.safetensors, tokenizer files    the trunk, adapters merged; with its head over the vocabulary
                                                           where that was trained (mntp, causal_lm, GRIT, SPLADE)
FOLDER/modules.json, 1_Pooling/, 2_Dense/, ...             the sentence-transformers layout, where it can say it all
FOLDER/recipe.yaml                                         our recipe, which always can
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import tokenizers
import torch
import transformers
import yaml

from operators.embedder.model.heads import Dense
from operators.embedder.recipe import checkpoint
from operators.embedder.recipe.files import OWN_RECIPE
from operators.embedder.recipe.fingerprint import TOKENIZER_FILES
from operators.embedder.recipe.recipe import Recipe
from operators.training.model.encoder import Encoder

_MODES = {"mean": "mean", "cls": "cls", "last": "lasttoken", "weighted_mean": "weightedmean"}
_HERE = {"checkpoint", "revision", "adapters", "merge_adapters", "head", "dims", "default_dims"}


def export(encoder: Encoder, folder: Path, widths: Sequence[int] = ()) -> None:
    """Write the model folder; the encoder is not to be trained any further.

    `widths` are those that its vectors were trained to be cut to, beside the recipe's own.
    """
    recipe = encoder.spec.recipe
    source = checkpoint.locate(recipe.checkpoint, recipe.revision)
    folder.mkdir(parents=True, exist_ok=True)
    trunk = encoder.merged_trunk()
    _save_model(encoder, trunk, folder)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    head = [] if encoder.head is None else [part for part in encoder.head.children() if isinstance(part, Dense)]
    names = tuple(f"{number}_Dense" for number in range(2, 2 + len(head)))
    for name, part in zip(names, head, strict=True):
        _write_dense(folder / name, part)
    if encoder.token_head is not None:
        _add_latents(folder, encoder)
    _write_recipe(folder, encoder, names, widths)
    if says_it_all(encoder):
        _write_end_token(folder, recipe)
        _write_layout(folder, encoder, names, int(trunk.config.hidden_size))


def _save_model(encoder: Encoder, trunk: transformers.PreTrainedModel, folder: Path) -> None:
    whole = encoder.language_model
    if whole is None:
        # of a part of a checkpoint transformers would write the names that it had there
        trunk.save_pretrained(folder, save_original_format=encoder.spec.recipe.trunk is None)
        return
    if _changes_attention(encoder):
        whole.config.is_causal = True  # whoever generates reads config.json alone; embedders read the recipe
    whole.to("cpu", torch.float32).save_pretrained(folder)


def _changes_attention(encoder: Encoder) -> bool:
    """Whether the model generates with one attention and embeds with another (GRIT)."""
    return encoder.generates and not encoder.is_causal


def says_it_all(encoder: Encoder) -> bool:
    """Whether the sentence-transformers layout can say what the recipe does."""
    recipe = encoder.spec.recipe
    plain_prompts = all(isinstance(prompt, str) and "{" not in prompt for prompt in recipe.prompts.values())
    return (
        recipe.pooling in _MODES
        and recipe.layers == (-1,)
        and recipe.pool_over in ("all", "after_prompt")
        and recipe.latent_attention is None
        and recipe.text_style == "as_is"
        and plain_prompts
        and not _changes_attention(encoder)
    )


def _write_dense(folder: Path, part: Dense) -> None:
    folder.mkdir()
    weights = {f"linear.{name}": value.detach().cpu().contiguous() for name, value in part.linear.named_parameters()}
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    activation = f"torch.nn.modules.activation.{type(part.activation).__name__}"
    if isinstance(part.activation, torch.nn.Identity):
        activation = "torch.nn.modules.linear.Identity"
    facts = {
        "in_features": part.linear.in_features,
        "out_features": part.linear.out_features,
        "bias": part.linear.bias is not None,
        "activation_function": activation,
    }
    _write_json(folder / "config.json", facts)


def _add_latents(folder: Path, encoder: Encoder) -> None:
    """Put the latent attention beside the trunk's weights, where the recipe looks for it."""
    part = encoder.spec.recipe.latent_attention
    assert part is not None, "an encoder with a token head has latent attention"
    assert encoder.token_head is not None, "the same"
    file = folder / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    for name, value in encoder.token_head.state_dict().items():
        weights[f"{part.prefix}{name}"] = value.detach().cpu().contiguous()
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})


def _write_recipe(folder: Path, encoder: Encoder, head: tuple[str, ...], widths: Sequence[int]) -> None:
    recipe = encoder.spec.recipe
    facts: dict[str, Any] = {"checkpoint": "."}
    facts |= recipe.model_dump(mode="json", exclude=_HERE, exclude_defaults=True)
    facts.pop("trunk", None)  # which was a part of its checkpoint, and is the whole of this one
    if head:
        facts["head"] = list(head)
    sizes = {dim for dim in (*(() if head else recipe.dims), *widths) if dim <= encoder.spec.dim}
    if sizes:
        facts["dims"] = sorted({*sizes, encoder.spec.dim}, reverse=True)
    (folder / OWN_RECIPE).write_text(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _write_end_token(folder: Path, recipe: Recipe) -> None:
    """Have the tokenizer itself put the recipe's end token last: other readers know nothing of recipes."""
    file = folder / "tokenizer.json"
    if recipe.end_token is None or not file.is_file():
        return
    backend = tokenizers.Tokenizer.from_file(str(file))
    encoding = backend.encode("a", add_special_tokens=True)
    if encoding.tokens[-1:] == [recipe.end_token]:
        return
    own = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
    first, last = encoding.tokens[: own[0]], encoding.tokens[own[-1] + 1 :]
    pieces = [*first, "$A", *last, recipe.end_token]
    names = {name: backend.token_to_id(name) for name in (*first, *last, recipe.end_token)}
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=" ".join(pieces), special_tokens=list(names.items())
    )
    backend.save(str(file))


def _write_layout(folder: Path, encoder: Encoder, head: tuple[str, ...], hidden: int) -> None:
    """The files by which sentence-transformers knows how to embed."""
    recipe = encoder.spec.recipe
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *((name, "Dense") for name in head)]
    kinds += [(f"{len(kinds)}_Normalize", "Normalize")] * recipe.normalize
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    _write_json(folder / "modules.json", modules)
    (folder / "1_Pooling").mkdir()
    mode = _MODES[recipe.pooling]
    facts = {"word_embedding_dimension": hidden, "pooling_mode": mode, "include_prompt": recipe.pool_over == "all"}
    _write_json(folder / "1_Pooling" / "config.json", facts)
    if recipe.normalize:
        (folder / kinds[-1][0]).mkdir()
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": recipe.max_tokens, "do_lower_case": False})
    _write_json(
        folder / "config_sentence_transformers.json", {"prompts": dict(recipe.prompts), "default_prompt_name": None}
    )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
