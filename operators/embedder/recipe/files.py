"""Recipes as they are found: by name, in a .yaml file, in a checkpoint folder, or on a hub."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pydantic
import yaml

from operators.embedder.recipe import checkpoint, layouts, remote_folder
from operators.embedder.recipe.recipe import Recipe
from operators.errors import InputError

logger = logging.getLogger(__name__)

OWN_RECIPE = "recipe.yaml"  # in a checkpoint folder: says more than any layout can


def load_recipe(model: str, recipes_dir: Path) -> Recipe:
    """The recipe that `model` names: a recipe in `recipes_dir`, a .yaml file, a checkpoint folder, or a hub id.

    Only a recipe in `recipes_dir` may say trust_remote_code: others travel with checkpoints, and are data.
    """
    named = recipes_dir / f"{model}.yaml"
    if re.fullmatch(r"[\w.-]+", model) and named.is_file():
        return _recipe_file(named)
    recipe = _brought_recipe(model, recipes_dir)
    if recipe.trust_remote_code:
        logger.warning(
            "the recipe of %s asks for trust_remote_code, which only the job's config or a recipe in %s may switch on",
            model,
            recipes_dir,
        )
    return recipe.model_copy(update={"trust_remote_code": False})


def _brought_recipe(model: str, recipes_dir: Path) -> Recipe:
    """The recipe of a model that is not one of `recipes_dir` by name."""
    if model.endswith((".yaml", ".yml")):
        return _recipe_file(Path(model).expanduser())
    if model.startswith(checkpoint.PACKAGE_PREFIX):
        return _folder_recipe(model, checkpoint.package_folder(model))
    if remote_folder.is_url(model):
        folder = checkpoint.locate_root(model, weights=False)
        if not (folder / OWN_RECIPE).is_file():
            return _folder_recipe(model, folder)
        return _recipe_file(folder / OWN_RECIPE).model_copy(update={"checkpoint": model})
    folder = Path(model).expanduser()
    if (folder / OWN_RECIPE).is_file():  # of a model that was trained here
        return _recipe_file(folder / OWN_RECIPE)
    if folder.is_dir():
        return _folder_recipe(str(folder.resolve()), folder)
    if checkpoint.is_hub_id(model):
        return _folder_recipe(model, checkpoint.snapshot(model, None, weights=False))
    names = ", ".join(sorted(path.stem for path in recipes_dir.glob("*.yaml"))) or "none"
    raise InputError(
        f"unknown model {model!r}: give one of the recipes in {recipes_dir} ({names}), a recipe file (.yaml), "
        "a checkpoint folder (sentence-transformers or Hugging Face layout), or a hub id (owner/name)"
    )


def _recipe_file(path: Path) -> Recipe:
    if not path.is_file():
        raise InputError(f"recipe file {path} does not exist")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"recipe {path} is not YAML: {error}") from error
    if not isinstance(fields, dict):
        raise InputError(f"recipe {path} has to be a mapping of keys, such as checkpoint and pooling")
    _resolve(fields, "checkpoint", path.parent)
    if isinstance(settings := fields.get("word_vectors"), dict):
        for key in ("frequencies", "remove_component_of"):
            _resolve(settings, key, path.parent)
    if isinstance(adapters := fields.get("adapters"), list):
        fields["adapters"] = [_resolved(str(name), path.parent) for name in adapters]
    try:
        return Recipe(**fields)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        where = f"key {key!r}: {first['msg']}, got {first['input']!r}" if key else first["msg"]
        raise InputError(f"recipe {path}: {where}") from error


def _resolve(fields: dict[str, object], key: str, folder: Path) -> None:
    if fields.get(key):
        fields[key] = _resolved(str(fields[key]), folder)


def _resolved(name: str, folder: Path) -> str:
    """A path that leads from the recipe to something, made absolute, so that both can be moved together."""
    inside = folder / name
    return str(inside.resolve()) if inside.exists() else name


def _folder_recipe(name: str, folder: Path) -> Recipe:
    return Recipe(checkpoint=name, **layouts.read_folder(folder))
