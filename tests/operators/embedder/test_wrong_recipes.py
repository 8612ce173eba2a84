"""A recipe that does not fit its checkpoint is refused at start, with a message that names the fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
import yaml

from operators.embedder.engine import Embedder
from operators.embedder.recipe.files import load_recipe
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import embedder_spec
from operators.errors import InputError
from tests import checkpoints

RECIPES = Path(__file__).parents[3] / "configs" / "models"
Weights = dict[str, torch.Tensor]


def start(folder: Path, role: str = "document", **fields: Any) -> Embedder:
    """What a worker does before it embeds."""
    recipe = {"checkpoint": str(folder), "pooling": "mean", "normalize": True, "max_tokens": 64, **fields}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return Embedder(embedder_spec(str(path), EmbedderConfig(device="cpu", role=role), RECIPES), device="cpu")


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(path: Path, edit: Callable[[Weights], Weights]) -> None:
    weights = edit({name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()})
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})


# End tokens


def test_an_end_token_that_is_not_in_the_vocabulary(tmp_path: Path) -> None:
    checkpoints.tiny_decoder(tmp_path)
    with pytest.raises(InputError, match=r"end_token '</s>' is not in the vocabulary"):
        start(tmp_path, pooling="last", end_token="</s>")


def test_an_end_token_that_the_checkpoint_asks_for_and_the_recipe_forgets(tmp_path: Path) -> None:
    checkpoints.tiny_decoder(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", add_eos_token=True)
    with pytest.raises(InputError, match=r"set end_token: '<\|endoftext\|>' in the recipe.*add_eos_token"):
        start(tmp_path, pooling="last")
    start(tmp_path, pooling="last", end_token="<|endoftext|>")
    checkpoints.sentence_transformers_layout(tmp_path, 32, "last")
    assert load_recipe(str(tmp_path), RECIPES).end_token == "<|endoftext|>"


# Attention


def test_causal_where_bidirectional_is_stated(tmp_path: Path) -> None:
    checkpoints.tiny_decoder(tmp_path)
    config = transformers.GPTNeoConfig(
        vocab_size=400, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global"], 2]], bos_token_id=1
    )
    checkpoints.save_model(tmp_path, config)
    with pytest.raises(InputError, match=r"bidirectional has no effect on .* \(gpt_neo\): its tokens still do not see"):
        start(tmp_path, attention="bidirectional")


def test_bidirectional_where_causal_is_stated(tmp_path: Path) -> None:
    checkpoints.tiny_encoder(tmp_path, kind="mpnet")
    with pytest.raises(InputError, match=r"causal has no effect on .* \(mpnet\): its tokens still see later ones"):
        start(tmp_path, attention="causal")


def test_a_saved_mode_is_overruled_by_the_recipe(tmp_path: Path) -> None:
    checkpoints.tiny_decoder(tmp_path, kind="qwen2")
    edit_json(tmp_path / "config.json", is_causal=False)  # as GTE-Qwen2's was changed on the hub, twice
    start(tmp_path, attention="causal", pooling="last")
    with pytest.raises(InputError, match="pooling: cls gives every text the same vector"):
        start(tmp_path, attention="causal", pooling="cls")
    start(tmp_path, pooling="cls")


# Adapters


@pytest.fixture
def adapted(tmp_path: Path) -> Path:
    """A decoder, and in `lora` an adapter trained on its trunk."""
    model = transformers.AutoModel.from_pretrained(checkpoints.tiny_decoder(tmp_path))
    checkpoints.with_lora(model, seed=1).save_pretrained(str(tmp_path / "lora"))
    return tmp_path


def with_adapter(folder: Path, **fields: Any) -> Embedder:
    return start(folder, adapters=["lora"], attention="bidirectional", **fields)


def test_an_adapter_of_another_model(adapted: Path) -> None:
    edit_weights(
        adapted / "lora" / "adapter_model.safetensors",
        lambda weights: {name.replace("layers.", "encoder.block."): weight for name, weight in weights.items()},
    )
    with pytest.raises(InputError, match=r"adapter .* does not match the model: it changes .*encoder.block"):
        with_adapter(adapted)


def test_an_adapter_that_lacks_weights(adapted: Path) -> None:
    edit_weights(
        adapted / "lora" / "adapter_model.safetensors",
        lambda weights: {name: weight for name, weight in weights.items() if "layers.1" not in name},
    )
    with pytest.raises(InputError, match=r"does not match the model: 6 weights are missing .* and 0 are not expected"):
        with_adapter(adapted)


def test_an_adapter_with_more_weights_than_its_config_says(adapted: Path) -> None:
    edit_json(adapted / "lora" / "adapter_config.json", target_modules=["q_proj"])
    with pytest.raises(InputError, match=r"does not match the model: 0 weights are missing .* and 8 are not expected"):
        with_adapter(adapted)


def test_an_adapter_of_another_width(adapted: Path) -> None:
    edit_weights(
        adapted / "lora" / "adapter_model.safetensors",
        lambda weights: {
            name: torch.cat([weight, weight], dim=1) if name.endswith("lora_A.weight") else weight
            for name, weight in weights.items()
        },
    )
    with pytest.raises(InputError, match=r"adapter .* does not fit the model: .*size mismatch"):
        with_adapter(adapted)


def test_an_adapter_without_effect(adapted: Path) -> None:
    edit_weights(
        adapted / "lora" / "adapter_model.safetensors",
        lambda weights: {
            name: torch.zeros_like(weight) if "lora_B" in name else weight for name, weight in weights.items()
        },
    )
    with pytest.raises(InputError, match=r"adapter .* changes nothing"):
        with_adapter(adapted)


def test_adapters_that_are_none(adapted: Path) -> None:
    with pytest.raises(InputError, match=r"is not one: .* has no adapter_config.json"):
        start(adapted, adapters=[str(adapted)])
    with pytest.raises(InputError, match="is an adapter: write a recipe with its base model as checkpoint"):
        load_recipe(str(adapted / "lora"), RECIPES)
    edit_json(adapted / "lora" / "adapter_config.json", peft_type="IA3")
    with pytest.raises(InputError, match="is of the kind IA3: only LORA is supported"):
        with_adapter(adapted)
    (adapted / "lora" / "adapter_model.safetensors").rename(adapted / "lora" / "adapter_model.bin")
    edit_json(adapted / "lora" / "adapter_config.json", peft_type="LORA")
    with pytest.raises(InputError, match="has only pickled weights: convert them to adapter_model.safetensors"):
        with_adapter(adapted)


def test_an_adapter_that_changed_since_the_plan(adapted: Path) -> None:
    spec = with_adapter(adapted).spec
    edit_weights(
        adapted / "lora" / "adapter_model.safetensors",
        lambda weights: {name: 2 * weight for name, weight in weights.items()},
    )
    with pytest.raises(InputError, match="is not the one that the run was planned with"):
        Embedder(spec, device="cpu")
    again = embedder_spec(spec.model, EmbedderConfig(device="cpu"), RECIPES)
    assert again.fingerprint != spec.fingerprint


# Heads


def test_a_head_of_another_width(tmp_path: Path) -> None:
    checkpoints.tiny_bert(tmp_path)
    checkpoints.save_dense(tmp_path / "2_Dense", (48, 16), torch.nn.Identity(), True, seed=0)
    with pytest.raises(InputError, match="head 2_Dense takes vectors 48 wide, but what comes before it in .* is 32"):
        start(tmp_path, head=["2_Dense"])


def test_a_head_whose_weights_are_not_what_its_config_says(tmp_path: Path) -> None:
    checkpoints.tiny_bert(tmp_path)
    checkpoints.save_dense(tmp_path / "2_Dense", (32, 16), torch.nn.Identity(), True, seed=0)
    edit_json(tmp_path / "2_Dense" / "config.json", out_features=8)
    with pytest.raises(InputError, match=r"cannot load the head .*: it does not fit its config.json"):
        start(tmp_path, head=["2_Dense"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "torch.nn.modules.activation.Hardswish"}, "has the activation 'Hardswish': supported"),
        ({"use_residual": True}, "is a Dense module with a residual or for tokens"),
        ({"module_input_name": "token_embeddings"}, "is a Dense module with a residual or for tokens"),
    ],
)
def test_heads_that_do_more(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    checkpoints.tiny_bert(tmp_path)
    checkpoints.save_dense(tmp_path / "2_Dense", (32, 16), torch.nn.Identity(), True, seed=0)
    edit_json(tmp_path / "2_Dense" / "config.json", **changes)
    with pytest.raises(InputError, match=message):
        start(tmp_path, head=["2_Dense"])


def test_heads_that_are_not_there(tmp_path: Path) -> None:
    checkpoints.tiny_decoder(tmp_path)
    with pytest.raises(InputError, match="head .*2_Dense is not there"):
        start(tmp_path, head=["2_Dense"])
    with pytest.raises(InputError, match="head: pooler is not there: mistral has no layer with tanh"):
        start(tmp_path, head=["pooler"])
    checkpoints.tiny_bert(tmp_path)
    edit_weights(
        tmp_path / "model.safetensors",
        lambda weights: {name: weight for name, weight in weights.items() if not name.startswith("pooler")},
    )
    with pytest.raises(InputError, match=r"is incomplete: 2 weights are missing and would be random: pooler"):
        start(tmp_path, head=["pooler"])


def test_a_size_without_a_head(tmp_path: Path) -> None:
    checkpoints.tiny_bert(tmp_path)
    checkpoints.save_dense(tmp_path / "2_Dense_16", (32, 16), torch.nn.Identity(), True, seed=0)
    with pytest.raises(InputError, match=r"a head with \{dims\} in its name needs dims and default_dims"):
        start(tmp_path, head=["2_Dense_{dims}"])
    with pytest.raises(InputError, match=r"embedder.dims 8 is not one of the sizes that have a head: \(16,\)"):
        start(tmp_path, head=["2_Dense_{dims}"], dims=[16], default_dims=8)


def nv_embed(folder: Path, **fields: Any) -> Embedder:
    trunk = {"prefix": "embedding_model.", "config": "text_config", "model_type": "mistral"}
    latents = {"prefix": "latent_attention_model.", "heads": 2}
    return start(folder, **{"trunk": trunk, "pooling": "latent_attention", "latent_attention": latents, **fields})


def test_latent_attention_that_does_not_fit(tmp_path: Path) -> None:
    checkpoints.tiny_nv_embed(tmp_path)
    nv_embed(tmp_path)
    with pytest.raises(InputError, match=r"has no latent attention under 'other\.'"):
        nv_embed(tmp_path, latent_attention={"prefix": "other.", "heads": 2})
    with pytest.raises(InputError, match=r"expected 32 as the model has, and a multiple of 3 heads"):
        nv_embed(tmp_path, latent_attention={"prefix": "latent_attention_model.", "heads": 3})
    with pytest.raises(InputError, match="trunk.config: the checkpoint's config.json has no language_config"):
        nv_embed(tmp_path, trunk={"prefix": "embedding_model.", "config": "language_config", "model_type": "mistral"})
    with pytest.raises(InputError, match="is incomplete: .* weights are missing and would be random"):
        nv_embed(tmp_path, trunk={"prefix": "language_model.", "config": "text_config", "model_type": "mistral"})
    edit_weights(
        tmp_path / "model.safetensors",
        lambda weights: {name: weight for name, weight in weights.items() if not name.endswith("0.norm.bias")},
    )
    with pytest.raises(InputError, match=r"latent attention of .* is not whole: .*norm.bias"):
        nv_embed(tmp_path)


# Prompts


def test_a_prompt_that_grows_together_with_the_text(tmp_path: Path) -> None:
    checkpoints.tiny_bert(tmp_path)
    fields = {"prompts": {"document": "one are"}, "pool_over": "after_prompt"}  # "are" + "A recipe" begins with "area"
    with pytest.raises(InputError, match="self-test: the prompt 'one are' has 2 tokens alone and 1 before a text"):
        start(tmp_path, **fields)
    start(tmp_path, **fields, join="apart")
    start(tmp_path, **{**fields, "prompts": {"document": "one are "}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompts": {"document": "{text} {text}"}}, r"prompts.document has \{text\} twice, which needs join: apart"),
        (
            {"prompts": {"document": '"{text}"'}, "pool_over": "text"},
            r"text after \{text\}: pool_over: text then needs join: apart",
        ),
        ({"prompts": {"document": "{text}{text}{text}"}}, "at most twice, not 3 times"),
        ({"prompts": {"document": "{task}: "}}, "set embedder.task, or task in the recipe"),
        ({"pooling": "token"}, "pooling: token and pooled_token belong together"),
        ({"pooling": "latent_attention"}, "pooling: latent_attention and the section latent_attention belong together"),
        ({"prepend": {"exit_layer": 2}, "prompts": {"document": "x"}}, "has to have <PST> once before"),
        (
            {"prepend": {"exit_layer": 3}, "prompts": {"document": "<PST> "}},
            "prepend.exit_layer 3 does not fit mistral: it has 2 decoder layers",
        ),
        ({"pooling": "token", "pooled_token": "[MASK]"}, r"token '\[MASK\]' is not in the vocabulary"),
    ],
)
def test_recipes_that_contradict_themselves(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    checkpoints.tiny_decoder(tmp_path)
    with pytest.raises(InputError, match=message):
        start(tmp_path, **fields)
