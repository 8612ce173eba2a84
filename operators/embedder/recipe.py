"""How a checkpoint becomes an embedder, as data: recipes, the overrides of a job, and the resolved spec of a run.

    model: NAME | FILE.yaml | FOLDER | HUB ID  -> Recipe  + EmbedderConfig  -> EmbedderSpec

The driver makes the spec and the workers load what it says. It imports neither torch nor transformers, so that a job
that has nothing to do is over in a moment.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from operators.embedder import checkpoint, fingerprint, layouts
from operators.errors import InputError

logger = logging.getLogger(__name__)

ComputeDtype = Literal["float32", "bfloat16", "float16"]
Pooling = Literal["mean", "cls", "last"]
# Part of every fingerprint: raise it when a change of the engine or tokenizing changes the vectors
ENGINE_VERSION = 1


class Recipe(BaseModel):
    """How a checkpoint becomes an embedder; one YAML file in configs/models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str = Field(description="folder, hub id, or package:NAME/FOLDER (a folder inside a Python package)")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub id")
    attention: Literal["as_trained", "bidirectional"] = Field(
        default="as_trained", description="bidirectional: let a causal model's tokens see what follows them"
    )
    pooling: Pooling = Field(description="how token states become one vector")
    normalize: bool = Field(description="scale vectors to length 1")
    max_tokens: int = Field(gt=0, description="tokens read of a text, special tokens and prompt included")
    prompts: dict[str, str] = Field(default={}, description="role (document, query, ...) -> text put before the input")
    end_token: str | None = Field(default=None, description="token put last, after truncation")
    dims: tuple[int, ...] = Field(default=(), description="Matryoshka sizes that the model was trained for")
    compute_dtype: ComputeDtype = Field(default="float32", description="number format of the model's arithmetic")
    trust_remote_code: bool = Field(default=False, description="run Python code that comes with the checkpoint")


class EmbedderConfig(BaseModel):
    """The `embedder` section of a job's config: what to change of the recipe, and where to run it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str = Field(default="document", description="which of the recipe's prompts to use")
    prompt: str | None = Field(default=None, description="text put before each input, instead of the role's prompt")
    max_tokens: int | None = Field(default=None, gt=0, description="tokens read of a text; null: the recipe's")
    dims: int | None = Field(default=None, gt=0, description="keep the first dims of a vector (Matryoshka); null: all")
    compute_dtype: ComputeDtype | None = Field(default=None, description="null: the recipe's")
    batch_tokens: int | None = Field(
        default=None, gt=0, description="padded tokens per batch; null: the device's default"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: cuda where there is a GPU")
    trust_remote_code: bool = Field(default=False, description="run Python code that comes with the checkpoint")


@dataclass(frozen=True, slots=True)
class EmbedderSpec:
    """Everything a worker needs to make the vectors of one run; picklable, a few hundred bytes."""

    model: str  # as the user named it
    recipe: Recipe  # with the overrides applied, and a hub id's revision resolved to a commit
    prompt: str  # the text put before every input
    dim: int  # width of the vectors
    weights_digest: str
    tokenizer_digest: str
    fingerprint: str  # sha256 hex over all that determines the vectors


def load_recipe(model: str, recipes_dir: Path) -> Recipe:
    """The recipe that `model` names: a recipe in `recipes_dir`, a .yaml file, a checkpoint folder, or a hub id."""
    if model.endswith((".yaml", ".yml")):
        return _recipe_file(Path(model).expanduser())
    named = recipes_dir / f"{model}.yaml"
    if re.fullmatch(r"[\w.-]+", model) and named.is_file():
        return _recipe_file(named)
    if model.startswith(checkpoint.PACKAGE_PREFIX):
        return _folder_recipe(model, checkpoint.package_folder(model))
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _folder_recipe(str(folder.resolve()), folder)
    if checkpoint.is_hub_id(model):
        return _folder_recipe(model, checkpoint.snapshot(model, None, weights=False))
    names = ", ".join(sorted(path.stem for path in recipes_dir.glob("*.yaml"))) or "none"
    raise InputError(
        f"unknown model {model!r}: give one of the recipes in {recipes_dir} ({names}), a recipe file (.yaml), "
        "a checkpoint folder (sentence-transformers or Hugging Face layout), or a hub id (owner/name)"
    )


def embedder_spec(model: str, config: EmbedderConfig, recipes_dir: Path) -> EmbedderSpec:
    """Resolve a recipe with a job's overrides, checking all that can be checked without loading the model."""
    recipe = load_recipe(model, recipes_dir)
    folder = checkpoint.locate(recipe.checkpoint, recipe.revision, weights=False)
    model_config = checkpoint.read_config(folder)
    commit = checkpoint.hub_commit(folder) if _on_hub(recipe.checkpoint) else None
    recipe = recipe.model_copy(
        update={
            "max_tokens": config.max_tokens or recipe.max_tokens,
            "compute_dtype": config.compute_dtype or recipe.compute_dtype,
            "trust_remote_code": recipe.trust_remote_code or config.trust_remote_code,
            "revision": commit,
        }
    )
    limit = checkpoint.position_limit(model_config)
    if limit and recipe.max_tokens > limit:
        raise InputError(f"max_tokens {recipe.max_tokens} is more than the {limit} positions of {recipe.checkpoint}")
    checkpoint.check_remote_code(folder, model_config, recipe.trust_remote_code)
    prompt = _prompt(recipe, config)
    dim = _dim(recipe, config.dims, checkpoint.hidden_size(folder, model_config))
    weights = f"{recipe.checkpoint}@{commit}" if commit else weights_digest(folder)
    tokenizer = fingerprint.tokenizer_digest(folder)
    facts = {
        "engine": ENGINE_VERSION,
        "weights": weights,
        "tokenizer": tokenizer,
        "prompt": prompt,
        "dim": dim,
        **recipe.model_dump(include={"attention", "pooling", "normalize", "max_tokens", "end_token", "compute_dtype"}),
    }
    return EmbedderSpec(model, recipe, prompt, dim, weights, tokenizer, fingerprint.mapping_digest(facts))


def weights_digest(folder: Path) -> str:
    """The digest of the files that determine a checkpoint's forward pass."""
    return fingerprint.files_digest([folder / "config.json", *checkpoint.weight_files(folder), *folder.glob("*.py")])


def verified_folder(spec: EmbedderSpec, weights: bool) -> Path:
    """The checkpoint on this machine, after checking that it holds the files that the spec was made from."""
    folder = checkpoint.locate(spec.recipe.checkpoint, spec.recipe.revision, weights)
    same = fingerprint.tokenizer_digest(folder) == spec.tokenizer_digest
    if weights and not _on_hub(spec.recipe.checkpoint):
        same = same and weights_digest(folder) == spec.weights_digest
    if not same:
        raise InputError(
            f"the checkpoint {folder} on this machine is not the one that the run was planned with: "
            "its files changed since, or differ from the driver's; start the job again with one copy everywhere"
        )
    return folder


def _on_hub(name: str) -> bool:
    return checkpoint.is_hub_id(name) and not Path(name).expanduser().is_dir()


def _recipe_file(path: Path) -> Recipe:
    if not path.is_file():
        raise InputError(f"recipe file {path} does not exist")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"recipe {path} is not YAML: {error}") from error
    if not isinstance(fields, dict):
        raise InputError(f"recipe {path} has to be a mapping of keys, such as checkpoint and pooling")
    inside = path.parent / str(fields.get("checkpoint", ""))
    if "checkpoint" in fields and inside.is_dir():
        fields["checkpoint"] = str(inside.resolve())  # relative to the recipe, so that both can be moved together
    try:
        return Recipe(**fields)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"recipe {path}: key {key!r}: {first['msg']}, got {first['input']!r}") from error


def _folder_recipe(name: str, folder: Path) -> Recipe:
    return Recipe(checkpoint=name, **layouts.read_folder(folder))


def _prompt(recipe: Recipe, config: EmbedderConfig) -> str:
    if config.prompt is not None:
        return config.prompt
    if config.role in recipe.prompts:
        return recipe.prompts[config.role]
    if config.role in layouts.ROLE_ALIASES:  # a model without prompts takes documents and queries as they are
        return ""
    roles = ", ".join(sorted({*recipe.prompts, *layouts.ROLE_ALIASES}))
    raise InputError(f"embedder.role {config.role!r} has no prompt in the recipe: its roles are {roles}")


def _dim(recipe: Recipe, wanted: int | None, hidden: int) -> int:
    if wanted is None or wanted == hidden:
        return hidden
    if wanted > hidden:
        raise InputError(f"embedder.dims {wanted} is more than the {hidden} dimensions of {recipe.checkpoint}")
    if recipe.dims and wanted not in recipe.dims:
        raise InputError(f"embedder.dims {wanted} is not one of the sizes the model was trained for: {recipe.dims}")
    if not recipe.dims:
        logger.warning(
            "the recipe offers no smaller sizes: cutting %s to %d may cost quality", recipe.checkpoint, wanted
        )
    return wanted
