"""The section of a teacher: a model whose vectors or scores a student learns from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from operators.embedder.recipe.keywords import ComputeDtype, Device
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.training.config.sets import Side

Output = Literal["vectors", "scores"]
QUERY, DOCUMENT, TASK = "{query}", "{document}", "{task}"
_NAME = r"^[\w.-]+$"


class EmbedderTeacher(BaseModel):
    """An embedder, by its recipe: a vector of each text, or the cosine of the query and each document."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["embedder"]
    name: str = Field(pattern=_NAME, description="what objectives, logs and reports call it")
    model: str = Field(
        min_length=1, description="a recipe in configs/models, a recipe file, a checkpoint folder, or a hub id"
    )
    embedder: EmbedderConfig = Field(
        default_factory=EmbedderConfig, description="what to change of the recipe; prompts are those of query, document"
    )
    query: Side = Field(
        default_factory=lambda: Side(role="query"), description="prompt of the queries; task: null = the set's own"
    )
    document: Side = Field(
        default_factory=lambda: Side(role="document"),
        description="prompt of the documents; a symmetric set has that of `query` on both sides",
    )
    output: Output = Field(default="vectors", description="what is stored; of vectors a training can take cosines too")
    dtype: Literal["float16", "float32"] = Field(default="float16", description="form of the stored vectors")

    @model_validator(mode="after")
    def _sides_have_the_prompts(self) -> EmbedderTeacher:
        given = self.embedder.model_fields_set & {"role", "prompt", "task"}
        if given:
            raise ValueError(f"embedder.{min(given)}: give it in query and document, which differ in it")
        return self


class _Scorer(BaseModel):
    """What all models that read a query and a document together have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=_NAME, description="what objectives, logs and reports call it")
    checkpoint: str = Field(min_length=1, description="folder, hub id, or package:NAME/FOLDER")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub id")
    max_tokens: int | None = Field(
        default=None, ge=8, description="tokens of a query and a document together; null = what the checkpoint allows"
    )
    compute_dtype: ComputeDtype = Field(default="float32", description="number format of the model's arithmetic")
    batch_tokens: int | None = Field(
        default=None, gt=0, description="padded tokens per batch; null: the device's default"
    )
    device: Device = Field(default="auto", description="auto: cuda where there is a GPU")
    trust_remote_code: bool = Field(default=False, description="run Python code that comes with the checkpoint")


class CrossEncoderTeacher(_Scorer):
    """A classifier of (query, document): the logit of its one label, or the log-odds of one of several."""

    kind: Literal["cross_encoder"]
    label: str | int | None = Field(
        default=None, description="of several labels the one that means relevant: its name, or its number"
    )


class JudgeTeacher(_Scorer):
    """A language model that is asked: the log-odds of its first answer against its second."""

    kind: Literal["judge"]
    prompt: str = Field(
        description="what is read, up to the answer, with {query}, {document} and, for the set's instruction, {task}; "
        "marks of a chat are written out"
    )
    answers: tuple[str, str] = Field(
        default=("Yes", "No"), description="relevant and not, each one token after the prompt; a blank may lead"
    )

    @field_validator("prompt")
    @classmethod
    def _has_both(cls, prompt: str) -> str:
        if any(prompt.count(place) != 1 for place in (QUERY, DOCUMENT)):
            raise ValueError(f"expected {QUERY} and {DOCUMENT}, each once")
        return prompt


ScorerTeacher = CrossEncoderTeacher | JudgeTeacher
Teacher = Annotated[EmbedderTeacher | CrossEncoderTeacher | JudgeTeacher, Field(discriminator="kind")]


def output_of(teacher: Teacher) -> Output:
    """What a teacher says of a row."""
    return teacher.output if isinstance(teacher, EmbedderTeacher) else "scores"
