"""The resolved spec of a run: a recipe with a job's overrides, checked, and the fingerprint of its vectors.

The driver makes it and the workers load what it says. Neither torch nor transformers is imported (but for models that
see, whose configs need the defaults of their classes), so that a job that has nothing to do is over in a moment.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from operators.embedder.recipe import checkpoint, fingerprint, layouts, static_folder
from operators.embedder.recipe.adapter_files import adapter_digest, pinned
from operators.embedder.recipe.files import load_recipe
from operators.embedder.recipe.head_files import DIMS, head_weights, head_width
from operators.embedder.recipe.recipe import VISION_KINDS, EmbedderConfig, Recipe, check_template
from operators.embedder.recipe.sparse_head import head_files
from operators.embedder.recipe.templates import Template, as_tuple, filled, render_examples
from operators.embedder.recipe.vision_facts import vision_facts
from operators.embedder.recipe.word_vectors.conversion import conversion_key, converted_folder
from operators.errors import InputError

logger = logging.getLogger(__name__)

# Part of every fingerprint: raise it when a change of the engine or tokenizing changes the vectors
ENGINE_VERSION = 2
# What of a recipe does not change vectors, or is in the fingerprint in another form (digests, templates)
_NOT_IN_FINGERPRINT = {
    "checkpoint",
    "revision",
    "adapters",
    "prompts",
    "task",
    "example",
    "examples",
    "dims",
    "default_dims",
    "role_max_tokens",
    "truncation_side",
    "similarity",
    "padding",
    "trust_remote_code",
}


@dataclass(frozen=True, slots=True)
class EmbedderSpec:
    """Everything a worker needs to make the vectors of one run; picklable, a few hundred bytes."""

    model: str  # as the user named it
    recipe: Recipe  # with the overrides applied, and a hub id's revision resolved to a commit
    templates: tuple[Template, ...]  # the readings of every text
    dim: int  # width of the vectors; 0: the recipe has sparse vectors alone
    weights_digest: str  # the head's included
    tokenizer_digest: str
    fingerprint: str  # sha256 hex over all that determines the vectors
    adapter_digests: tuple[str, ...] = ()
    sparse_dim: int = 0  # ids that a sparse vector can have; 0: the recipe has none


def embedder_spec(model: str, config: EmbedderConfig, recipes_dir: Path) -> EmbedderSpec:
    """Resolve a recipe with a job's overrides, checking all that can be checked without loading the model."""
    recipe = load_recipe(model, recipes_dir)
    if recipe.kind == "static":
        return _static_spec(model, recipe, config)
    root = checkpoint.locate_root(recipe.checkpoint, recipe.revision, weights=False)
    folder = checkpoint.weights_folder(root)
    model_config = text_config(folder, recipe)
    commit = checkpoint.hub_commit(folder) if _on_hub(recipe.checkpoint) else None
    recipe = recipe.model_copy(
        update={
            "max_tokens": config.max_tokens or recipe.role_max_tokens.get(config.role, recipe.max_tokens),
            "compute_dtype": config.compute_dtype or recipe.compute_dtype,
            "trust_remote_code": recipe.trust_remote_code or config.trust_remote_code,
            "revision": commit,
            "adapters": tuple(pinned(name) for name in recipe.adapters),
            "task": config.task if config.task is not None else recipe.task,
            "examples": config.examples if config.examples is not None else recipe.examples,
        }
    )
    width, limit = _width_and_positions(recipe, folder, model_config)
    if limit and recipe.max_tokens > limit:
        raise InputError(f"max_tokens {recipe.max_tokens} is more than the {limit} positions of {recipe.checkpoint}")
    checkpoint.check_remote_code(folder, model_config, recipe.trust_remote_code)
    recipe, dim = _sized(recipe, config.dims, root, width)
    templates = templates_of(recipe, config)
    if recipe.kind in VISION_KINDS and len(templates) > 1:
        raise InputError(f"give one prompt: kind: {recipe.kind} does not average several readings")
    sparse_dim = _sparse_dim(recipe, templates, folder, model_config)
    weights = f"{recipe.checkpoint}@{commit}" if commit else weights_digest(root, recipe)
    adapters = tuple(adapter_digest(name) for name in recipe.adapters)
    tokenizer = fingerprint.tokenizer_digest(folder)
    facts = {
        "engine": ENGINE_VERSION,
        "weights": weights,
        "adapters": adapters,
        "tokenizer": tokenizer,
        "templates": [dataclasses.astuple(template) for template in templates],
        "dim": dim,
        **({"truncation_side": "left"} if recipe.truncation_side == "left" else {}),  # right: as ever
        **recipe.model_dump(exclude=_NOT_IN_FINGERPRINT),
    }
    digest = fingerprint.mapping_digest(facts)
    return EmbedderSpec(model, recipe, templates, dim, weights, tokenizer, digest, adapters, sparse_dim)


def text_config(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """The config of a recipe's text model, which may be a part of the checkpoint."""
    config = checkpoint.read_config(folder)
    if recipe.trunk is None:
        return config
    return checkpoint.trunk_config(config, recipe.trunk.config, recipe.trunk.model_type)


def _width_and_positions(recipe: Recipe, folder: Path, model_config: dict[str, Any]) -> tuple[int, int | None]:
    """How wide the checkpoint's vectors are before any head, and how many tokens it reads; None for no limit."""
    if recipe.kind in VISION_KINDS:
        facts = vision_facts(folder, recipe.kind)
        return facts.width, facts.text_positions
    return checkpoint.hidden_size(folder, model_config), checkpoint.position_limit(model_config)


def _static_spec(model: str, recipe: Recipe, config: EmbedderConfig) -> EmbedderSpec:
    """Resolve a static embedder; word vectors are converted here, so that a wrong file stops the job at once."""
    if config.compute_dtype not in (None, "float32"):
        raise InputError(f"leave out embedder.compute_dtype {config.compute_dtype}: {model} is static, in float32")
    root = _root(recipe, weights=True)  # a table says how wide it is only itself
    folder = checkpoint.weights_folder(root)
    commit = checkpoint.hub_commit(folder) if _on_hub(recipe.checkpoint) else None
    task = config.task if config.task is not None else recipe.task
    max_tokens = config.max_tokens or recipe.max_tokens
    recipe = recipe.model_copy(update={"max_tokens": max_tokens, "revision": commit, "task": task})
    recipe, dim = _sized(recipe, config.dims, root, static_folder.width(folder))
    templates = templates_of(recipe, config)
    if len(templates) > 1:
        raise InputError(f"give one prompt: {model} is static, and the mean of several readings is that of one")
    weights, tokenizer = _digest_of(recipe, root), fingerprint.tokenizer_digest(folder)
    facts = {
        "static": static_folder.STATIC_VERSION,
        "weights": weights,
        "tokenizer": tokenizer,
        "templates": [dataclasses.astuple(template) for template in templates],
        "dim": dim,
        **recipe.model_dump(include={"normalize", "max_tokens", "text_style"}),
    }
    return EmbedderSpec(model, recipe, templates, dim, weights, tokenizer, fingerprint.mapping_digest(facts))


def _root(recipe: Recipe, weights: bool) -> Path:
    """The local folder of a recipe's checkpoint; word vectors are converted into one."""
    if recipe.word_vectors is not None:
        return converted_folder(recipe.checkpoint, recipe.word_vectors)
    return checkpoint.locate_root(recipe.checkpoint, recipe.revision, weights)


def _digest_of(recipe: Recipe, root: Path) -> str:
    if recipe.word_vectors is not None:
        return conversion_key(recipe.checkpoint, recipe.word_vectors)
    if recipe.kind == "static":
        return static_folder.digest(checkpoint.weights_folder(root))
    return weights_digest(root, recipe)


def weights_digest(root: Path, recipe: Recipe) -> str:
    """The digest of the files that determine a checkpoint's forward pass, and of its heads."""
    folder = checkpoint.weights_folder(root)
    trunk = fingerprint.files_digest([folder / "config.json", *checkpoint.weight_files(folder), *folder.glob("*.py")])
    heads = [*head_weights(root, recipe.head), *([file] for file in head_files(root, recipe.sparse))]
    parts = [fingerprint.files_digest(files) for files in heads]
    return fingerprint.mapping_digest({"trunk": trunk, "head": parts}) if parts else trunk


def verified_folder(spec: EmbedderSpec, weights: bool) -> Path:
    """The checkpoint on this machine, after checking that it holds the files that the spec was made from."""
    root = _root(spec.recipe, weights)
    folder = checkpoint.weights_folder(root)
    same = fingerprint.tokenizer_digest(folder) == spec.tokenizer_digest
    if weights and not _on_hub(spec.recipe.checkpoint):
        same = same and _digest_of(spec.recipe, root) == spec.weights_digest
    if weights:
        same = same and tuple(adapter_digest(name) for name in spec.recipe.adapters) == spec.adapter_digests
    if not same:
        raise InputError(
            f"the checkpoint {folder} on this machine is not the one that the run was planned with: "
            "its files changed since, or differ from the driver's; start the job again with one copy everywhere"
        )
    return folder


def _on_hub(name: str) -> bool:
    return checkpoint.is_hub_id(name) and not Path(name).expanduser().is_dir()


def templates_of(recipe: Recipe, config: EmbedderConfig) -> tuple[Template, ...]:
    """The readings of a text in a job's role, with the recipe's task and examples filled in."""
    examples = render_examples(recipe.example, recipe.examples, recipe.task)
    templates = tuple(filled(prompt, recipe.task, examples) for prompt in as_tuple(_prompt(recipe, config)))
    if not templates:
        raise InputError("embedder.prompt is an empty list: give one or more prompts, or an empty text")
    for template in templates:
        check_template(recipe, template, "embedder.prompt")
    return templates


def _prompt(recipe: Recipe, config: EmbedderConfig) -> str | tuple[str, ...]:
    if config.prompt is not None:
        return config.prompt
    if config.role in recipe.prompts:
        return recipe.prompts[config.role]
    if config.role in layouts.ROLE_ALIASES:  # a model without prompts takes documents and queries as they are
        return ""
    roles = ", ".join(sorted({*recipe.prompts, *layouts.ROLE_ALIASES}))
    raise InputError(f"embedder.role {config.role!r} has no prompt in the recipe: its roles are {roles}")


def _sparse_dim(recipe: Recipe, templates: tuple[Template, ...], folder: Path, config: dict[str, Any]) -> int:
    if recipe.sparse is None:
        return 0
    if len(templates) > 1:
        raise InputError(f"give one prompt a role: sparse vectors of {len(templates)} readings are not averaged")
    size = config.get("vocab_size")
    if not isinstance(size, int):
        raise InputError(f"{folder}/config.json has no vocab_size, which sparse vectors need")
    return size


def _sized(recipe: Recipe, wanted: int | None, root: Path, hidden: int) -> tuple[Recipe, int]:
    """The recipe with the head for the wanted size, and the width of its vectors."""
    if recipe.pooling == "none":
        if wanted is not None:
            raise InputError(f"leave out embedder.dims {wanted}: {recipe.checkpoint} has sparse vectors alone")
        return recipe, 0
    wanted = wanted or recipe.default_dims
    if any(DIMS in name for name in recipe.head):
        if wanted not in recipe.dims:
            raise InputError(f"embedder.dims {wanted} is not one of the sizes that have a head: {recipe.dims}")
        recipe = recipe.model_copy(update={"head": tuple(name.replace(DIMS, str(wanted)) for name in recipe.head)})
    width = head_width(root, recipe.head, hidden)
    if wanted is None or wanted == width:
        return recipe, width
    if wanted > width:
        raise InputError(f"embedder.dims {wanted} is more than the {width} dimensions of {recipe.checkpoint}")
    if recipe.dims and wanted not in recipe.dims:
        raise InputError(f"embedder.dims {wanted} is not one of the sizes the model was trained for: {recipe.dims}")
    if not recipe.dims:
        logger.warning(
            "the recipe offers no smaller sizes: cutting %s to %d may cost quality", recipe.checkpoint, wanted
        )
    return recipe, wanted
