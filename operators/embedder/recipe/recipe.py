"""How a checkpoint becomes an embedder, as data: recipes, and what a job's config changes of them.

model: NAME | FILE.yaml | FOLDER | HUB ID  -> Recipe  + EmbedderConfig  -> EmbedderSpec (operators.embedder.recipe.spec)
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from operators.embedder.recipe.head_files import DIMS
from operators.embedder.recipe.keywords import ComputeDtype, Device, Pooling, PoolOver, Side, Similarity
from operators.embedder.recipe.sparse_head import SparseHead
from operators.embedder.recipe.templates import TEXT, Template, TextStyle, as_tuple
from operators.embedder.recipe.word_vectors.settings import WordVectors
from operators.errors import InputError


class Trunk(BaseModel):
    """Where the text model of a checkpoint is that holds it as a part of something larger."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefix: str = Field(description="what its weights' names begin with, such as embedding_model.")
    config: str = Field(description="key of config.json that has its config, such as text_config")
    model_type: str = Field(description="what transformers calls it, such as mistral")


class LatentHead(BaseModel):
    """Where the latent attention of a checkpoint is (NV-Embed); its other sizes are those of its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefix: str = Field(description="what its weights' names begin with, such as latent_attention_model.")
    heads: int = Field(gt=0, description="attention heads")


class Prepend(BaseModel):
    """Token prepending: a placeholder before the text gets the last token's state, layer by layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: str = Field(default="<PST>", min_length=1, description="placeholder in the prompts, new to the tokenizer")
    start_layer: int = Field(default=1, ge=1, description="the first layer ahead of which it is set; 0 is the model's")
    exit_layer: int = Field(ge=2, description="the first layer ahead of which it is not set any more")


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
    "similarity",
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
# What of a recipe a static embedder has
_OF_STATIC = {
    "kind",
    "checkpoint",
    "revision",
    "pooling",
    "normalize",
    "max_tokens",
    "prompts",
    "similarity",
    "task",
    "text_style",
    "dims",
    "default_dims",
    "word_vectors",
}


class Recipe(BaseModel):
    """How a checkpoint becomes an embedder; one YAML file in configs/models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["transformer", "static", "two_towers", "vision_llm"] = Field(
        default="transformer",
        description="static: the mean of the tokens' vectors in a table, without a model; two_towers: texts and images "
        "each by a tower of their own (CLIP, SigLIP); vision_llm: a language model that sees (LLaVA, E5-V)",
    )
    checkpoint: str = Field(
        description="folder, hub id, or package:NAME/FOLDER (a folder inside a Python package); a file of word vectors"
    )
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub id")
    trunk: Trunk | None = Field(default=None, description="null: the checkpoint is the text model, or a language model")
    adapters: tuple[str, ...] = Field(
        default=(),
        description="LoRA adapters in the order of training: folders, or hub ids with an optional @revision",
    )
    merge_adapters: bool = Field(
        default=True, description="false: the last adapter's weights stay beside the model's, slower and closer to them"
    )
    attention: Literal["as_trained", "causal", "bidirectional"] = Field(
        default="as_trained",
        description="bidirectional: let a causal model's tokens see what follows them; causal: the reverse",
    )
    window: Literal["as_trained", "none"] = Field(
        default="as_trained", description="none: every token sees the whole text in spite of a sliding window"
    )
    padding: Side = Field(
        default="right", description="side of the padding in a batch; only code that comes with a checkpoint may mind"
    )
    layers: tuple[int, ...] = Field(
        default=(-1,),
        min_length=1,
        description="hidden states that are pooled, averaged: 0 the embeddings, 1 the first layer's ... -1 the last's",
    )
    pooling: Pooling = Field(
        description="how token states become one vector; weighted_mean: by place in the text; own: of two_towers; "
        "none: no dense vector"
    )
    pool_over: PoolOver = Field(
        default="all",
        description="tokens that are pooled; after_prompt: without prompt and what is before it; text: its own alone",
    )
    pooled_token: str | None = Field(default=None, description="with pooling token: whose state it is, such as [MASK]")
    latent_attention: LatentHead | None = Field(default=None, description="with pooling latent_attention: where it is")
    prepend: Prepend | None = Field(default=None, description="token prepending; null: none")
    head: tuple[str, ...] = Field(
        default=(),
        description="after pooling: pooler (BERT's own) or folders of Dense modules; {dims} in a name: the size",
    )
    sparse: SparseHead | None = Field(default=None, description="sparse vectors, in the same pass")
    normalize: bool = Field(description="scale vectors to length 1")
    max_tokens: int = Field(gt=0, description="tokens read of a text, special tokens and prompt included")
    role_max_tokens: dict[str, PositiveInt] = Field(
        default={}, description="role -> tokens read of a text in that role, in place of max_tokens"
    )
    truncation_side: Side = Field(
        default="right", description="left: a text that is too long loses its beginning, with the prompt before it"
    )
    prompts: dict[str, str | tuple[str, ...]] = Field(
        default={},
        description="role (document, query, ...) -> text put before the input, or around {text}, with {task} and "
        "{examples}; a list: one reading each, their vectors averaged",
    )
    join: Literal["together", "apart"] = Field(
        default="together", description="whether prompt and text are tokenized as one string or each by itself"
    )
    count_prompt: Literal["boundary", "alone"] = Field(
        default="boundary",
        description="tokens of a prompt left out of pooling: that end in it, or of it alone (sentence-transformers)",
    )
    text_style: TextStyle = Field(
        default="as_is",
        description='lowercase; sentence: end with a full stop, and have no double quotes or "?" at the end',
    )
    task: str | None = Field(default=None, description="what {task} in a prompt stands for")
    example: str | None = Field(default=None, description="how one of {examples} is written, with {its keys}")
    examples: tuple[dict[str, str], ...] = Field(default=(), description="in-context examples, in order")
    special_tokens: Literal["own", "none"] = Field(
        default="own", description="none: leave out those that the tokenizer itself puts around a text, such as <s>"
    )
    end_token: str | None = Field(default=None, description="token put last, after truncation")
    pad_token: str | None = Field(
        default=None, description="of two_towers: token that fills every text up to max_tokens, as SigLIP was trained"
    )
    image_prompt: str | None = Field(
        default=None, description="of a vision_llm: what is read for an image, with <image> where it stands"
    )
    image_text_prompt: str | None = Field(
        default=None, description="the same for a row with both, with <image> and {text}; null: such rows are rejected"
    )
    similarity: Similarity = Field(
        default="cosine", description="how two vectors are compared in evaluate, and in an index with metric: auto"
    )
    dims: tuple[int, ...] = Field(default=(), description="Matryoshka sizes that the model was trained for")
    default_dims: int | None = Field(
        default=None, description="the size where embedder.dims is null; null: the largest"
    )
    compute_dtype: ComputeDtype = Field(default="float32", description="number format of the model's arithmetic")
    trust_remote_code: bool = Field(
        default=False,
        description="run Python code that comes with the checkpoint; only recipes in configs/models may say so",
    )
    word_vectors: WordVectors | None = Field(default=None, description="how `checkpoint`, a file of vectors, is read")

    @model_validator(mode="after")
    def _is_static(self) -> Recipe:
        if self.word_vectors is not None and self.kind != "static":
            raise ValueError("word_vectors belong to kind: static")
        if self.kind == "static":
            defaults = type(self).model_fields
            others = [key for key, value in self if key not in _OF_STATIC and value != defaults[key].default]
            if self.pooling != "mean" or others:
                raise ValueError(f"kind: static is a mean of vectors: leave out {', '.join(others) or self.pooling}")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        _check_vision(self)
        if (self.pooling == "token") != (self.pooled_token is not None):
            raise ValueError("pooling: token and pooled_token belong together")
        if (self.pooling == "latent_attention") != (self.latent_attention is not None):
            raise ValueError("pooling: latent_attention and the section latent_attention belong together")
        if self.pooling == "none" and (self.sparse is None or self.head or self.dims):
            raise ValueError("pooling: none is for recipes with sparse vectors alone, without head and dims")
        if self.sparse is not None and self.layers != (-1,):
            raise ValueError("sparse vectors are made of the last layer's states: leave out layers")
        if self.sparse is not None and (self.trunk or self.adapters or self.prepend or self.latent_attention):
            raise ValueError(
                "sparse vectors are made by a checkpoint that is whole: leave out trunk, prepend and latent_attention, "
                "and merge adapters into it"
            )
        for role, prompt in self.prompts.items():
            for template in as_tuple(prompt):
                check_template(self, Template.parse(template), f"prompts.{role}")
        if any(DIMS in name for name in self.head) and not (self.dims and self.default_dims):
            raise ValueError(f"a head with {DIMS} in its name needs dims and default_dims")
        return self


def _check_vision(recipe: Recipe) -> None:
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


class EmbedderConfig(BaseModel):
    """The `embedder` section of a job's config: what to change of the recipe, and where to run it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str = Field(default="document", description="which of the recipe's prompts to use")
    prompt: str | tuple[str, ...] | None = Field(default=None, description="in place of the role's prompt")
    task: str | None = Field(default=None, description="what {task} in a prompt stands for; null: the recipe's")
    examples: tuple[dict[str, str], ...] | None = Field(
        default=None, description="in-context examples for {examples}; null: the recipe's"
    )
    max_tokens: int | None = Field(default=None, gt=0, description="tokens read of a text; null: the recipe's")
    dims: int | None = Field(
        default=None, gt=0, description="size of a vector (Matryoshka: its head, or the first dims); null: the recipe's"
    )
    compute_dtype: ComputeDtype | None = Field(default=None, description="null: the recipe's")
    batch_tokens: int | None = Field(
        default=None, gt=0, description="padded tokens per batch; null: the device's default"
    )
    packing: bool = Field(
        default=False,
        description="true: the texts of a batch one after another, without padding; refused where that is not the same",
    )
    device: Device = Field(default="auto", description="auto: cuda where there is a GPU")
    trust_remote_code: bool = Field(default=False, description="run Python code that comes with the checkpoint")


def check_template(recipe: Recipe, template: Template, key: str) -> None:
    """Raise InputError for a template whose text could not be found again in the tokens, where that is needed."""
    if recipe.prepend is not None and template.prefix.count(recipe.prepend.token) != 1:
        raise InputError(f"{key} has to have {recipe.prepend.token} once before {{text}}, for prepend")
    if recipe.join == "apart":
        return
    if recipe.truncation_side == "left" and (template.suffix or template.copies == 2):
        raise InputError(f"{key} has text after {{text}}: truncation_side: left then needs join: apart")
    if template.copies == 2:
        raise InputError(f"{key} has {{text}} twice, which needs join: apart")
    if template.suffix and recipe.pool_over == "text":
        raise InputError(f"{key} has text after {{text}}: pool_over: text then needs join: apart")
