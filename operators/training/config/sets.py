"""The `sets:` of a training config: where pairs, triples, scored pairs, lists or single texts are, and how they train.

Whatever the kind, a row ends up as one query and K documents (`operators.training.data.cleaning`):

    pairs     query, positive                           documents = [positive]
    triples   query, positive, negatives                documents = [positive, negative_1 .. negative_N]
    scored    two texts with a score, or with a label   documents = [second text]
    lists     query, candidates and their scores        documents = [candidate_1 .. candidate_K]
    texts     single texts (SimCSE, MNTP)               documents = []
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from operators.corpus.formats import READ_FAULTS
from operators.corpus.inspect import head_schema
from operators.corpus.source import Source, template_fields
from operators.embedder.recipe.fingerprint import mapping_digest
from operators.errors import InputError
from operators.training.config.objectives import Objective
from operators.work.fragment import SourceFile

Kind = Literal["pairs", "triples", "scored", "lists", "texts"]
PREPARER_VERSION = 1  # part of every fingerprint; goes up with a change to what prepared rows hold

_DEFAULT_COLUMNS: dict[Kind, dict[str, str]] = {
    "pairs": {"query": "query", "positive": "positive"},
    "triples": {"query": "query", "positive": "positive", "negatives": "negative"},
    "scored": {"query": "sentence1", "positive": "sentence2", "score": "score"},
    "lists": {"query": "query", "candidates": "candidates", "scores": "scores"},
    "texts": {"query": "text"},
}
_BYTES_PER_UNIT = 32 << 20  # a reading task has a worker for some seconds


class Columns(BaseModel):
    """Which column holds what; null = the name that the kind of set has by default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    query: str | None = Field(
        default=None,
        description='the query, first text (scored) or text (texts); or a template such as "{title}\\n{text}". '
        "Default: query, of scored sentence1, of texts text",
    )
    positive: str | None = Field(
        default=None,
        description="the positive or second text, or a template; of a column with lists each text is a row of its own. "
        "Default: positive, of scored sentence2",
    )
    negatives: str | tuple[str, ...] | None = Field(
        default=None, description="hard negatives: one or several columns of texts or lists of texts. Default: negative"
    )
    candidates: str | tuple[str, ...] | None = Field(
        default=None, description="the documents of a list, as for negatives. Default: candidates"
    )
    scores: str | None = Field(default=None, description="a list with a score for each candidate. Default: scores")
    score: str | None = Field(default=None, description="a number for the two texts. Default: score")
    label: str | None = Field(default=None, description="in place of score: a class of the two texts, one of `labels`")


class Side(BaseModel):
    """How the texts of one side are put to the model; fields as in `embedder`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str | None = Field(
        default=None, description="which of the recipe's prompts; null = query for queries, document for documents"
    )
    prompt: str | tuple[str, ...] | None = Field(default=None, description="in place of the role's prompt")
    task: str | None = Field(default=None, description="the instruction: what {task} in a prompt stands for")


class TrainingSet(BaseModel):
    """One data set of a training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[\w.-]+$", description="what metrics and reports call it")
    path: str | tuple[str, ...] = Field(
        description="file, folder, glob or a list of them; local, s3:// or any fsspec URL"
    )
    kind: Kind = Field(description="what a row is")
    format: Literal["auto", "parquet", "jsonl", "csv", "tsv", "text"] = Field(
        default="auto", description="auto goes by file names (.gz and .zst may follow)"
    )
    storage_options: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="fsspec options of the files (endpoint_url, ...), never stored"
    )
    columns: Columns = Field(default_factory=Columns)
    query: Side = Field(default_factory=lambda: Side(role="query"), description="prompt of the queries")
    document: Side = Field(default_factory=lambda: Side(role="document"), description="prompt of the documents")
    symmetric: bool = Field(default=False, description="documents get the queries' prompt (STS, bitext, duplicates)")
    in_batch_negatives: bool | None = Field(
        default=None,
        description="contrast with the other rows of the batch, which then share no text; null = yes for pairs, "
        "triples and texts, unless labels are the documents",
    )
    num_negatives: int | None = Field(
        default=None, ge=1, description="hard negatives of a row; null = 1, of labels as documents all others"
    )
    num_candidates: int = Field(default=8, ge=2, description="documents of a list")
    choose: Literal["first", "draw"] = Field(
        default="first", description="where a row has more negatives or candidates: the first, or drawn once by seed"
    )
    fewer: Literal["repeat", "skip"] | None = Field(
        default=None,
        description="where a row has fewer, but any: repeat its own in turn, or skip the row; null = repeat negatives, "
        "skip lists. A row without any is skipped",
    )
    labels: tuple[str, ...] = Field(
        default=(), description="the classes of columns.label in order, or the texts of labels_as_documents"
    )
    labels_as_documents: bool = Field(
        default=False,
        description="positives are class labels (classification, clustering): they repeat, so rows are not contrasted "
        "with each other; negatives are the other `labels`, of triples their own",
    )
    score_range: tuple[float, float] | None = Field(
        default=None, description="scores of a scored set are mapped from here to 0..1; rows outside are skipped"
    )
    objective: Objective | None = Field(default=None, description="its loss; null = that of the run")
    weight: float | None = Field(
        default=None, gt=0, description="share of the steps, relative to the other sets; null = its number of batches"
    )
    dev_fraction: float = Field(
        default=0, ge=0, lt=1, description="rows held back, by a hash of the query: no query is on both sides"
    )
    max_chars: int = Field(default=100_000, ge=1, description="characters of a text beyond which it is too long")
    too_long: Literal["cut", "skip"] = Field(default="cut", description="cut the text there, or skip the row")

    @field_validator("labels", mode="before")
    @classmethod
    def _as_text(cls, labels: Any) -> Any:
        return tuple(map(str, labels)) if isinstance(labels, (list, tuple)) else labels

    @model_validator(mode="after")
    def _consistent(self) -> TrainingSet:
        for fault in self._faults():
            raise ValueError(fault)
        self.source()  # whose own checks of paths and templates are ours
        return self

    def _faults(self) -> Iterable[str]:
        allowed = {*_DEFAULT_COLUMNS[self.kind], *(["label"] if self.kind == "scored" else [])}
        for name in self.columns.model_fields_set - allowed:
            yield f"columns.{name}: {self.kind} have {', '.join(sorted(allowed))}"
        if self.columns.score and self.columns.label:
            yield "columns: give score or label, not both"
        if self.columns.label and len(self.labels) < 2:
            yield "labels: list the classes of columns.label in order"
        if self.labels_as_documents and self.kind not in ("pairs", "triples"):
            yield "labels_as_documents: expected of pairs or triples"
        if self.labels_as_documents and self.kind == "pairs" and len(self.labels) < 2:
            yield "labels: list the labels, of which all but a row's own are its negatives"
        if len(set(self.labels)) < len(self.labels):
            yield "labels: each is listed once"
        if self.labels_as_documents and self.in_batch_negatives:
            yield "in_batch_negatives: labels repeat, so that other rows' labels are no negatives; set it to false"
        if self.in_batch_negatives and self.kind == "scored":
            yield "in_batch_negatives: a scored pair has no negatives"
        if self.num_negatives is not None and not (self.kind == "triples" or self.labels_as_documents):
            yield f"num_negatives: {self.kind} have no hard negatives"
        if self.symmetric and "document" in self.model_fields_set:
            yield "document: a symmetric set has the prompt of `query` on both sides"
        if self.score_range is not None and (self.kind != "scored" or not self.score_range[0] < self.score_range[1]):
            yield "score_range: expected [low, high] of a scored set"

    def column(self, name: str) -> str:
        """The column, or template, that holds the query, positive, score, scores or label."""
        chosen = getattr(self.columns, name)
        return str(chosen if chosen is not None else _DEFAULT_COLUMNS[self.kind][name])

    @property
    def document_columns(self) -> tuple[str, ...]:
        """The columns with a row's negatives or candidates."""
        name = {"triples": "negatives", "lists": "candidates"}.get(self.kind)
        if name is None:
            return ()
        chosen = getattr(self.columns, name) or _DEFAULT_COLUMNS[self.kind][name]
        return (chosen,) if isinstance(chosen, str) else tuple(chosen)

    @property
    def has_positive(self) -> bool:
        """Whether a row has a positive, or second text, of its own."""
        return self.kind in ("pairs", "triples", "scored")

    @property
    def num_documents(self) -> int:
        """K: how many documents every row has."""
        if self.kind == "lists":
            return self.num_candidates
        if self.kind == "texts":
            return 0
        if self.labels_as_documents and self.kind == "pairs":
            return 1 + min(self.num_negatives or len(self.labels), len(self.labels) - 1)
        return 1 + (self.num_negatives or 1) if self.kind == "triples" else 1

    @property
    def has_in_batch_negatives(self) -> bool:
        """Whether rows are contrasted with each other, so that a batch may hold no text twice."""
        if self.in_batch_negatives is not None:
            return self.in_batch_negatives
        return self.kind in ("pairs", "triples", "texts") and not self.labels_as_documents

    @property
    def repeats(self) -> bool:
        """Whether a row with too few negatives or candidates repeats its own."""
        return self.fewer == "repeat" if self.fewer is not None else self.kind != "lists"

    @property
    def document_side(self) -> Side:
        """The prompt of the documents."""
        return self.query if self.symmetric else self.document

    @property
    def wanted(self) -> dict[str, str]:
        """The config key of each column that has to be there."""
        keys = {name: "query" for name in template_fields(self.column("query")) or (self.column("query"),)}
        if self.has_positive:
            keys |= {
                name: "positive" for name in template_fields(self.column("positive")) or (self.column("positive"),)
            }
        keys |= {name: "negatives" if self.kind == "triples" else "candidates" for name in self.document_columns}
        if self.kind == "lists":
            keys[self.column("scores")] = "scores"
        if self.kind == "scored":
            keys |= {self.columns.label: "label"} if self.columns.label else {self.column("score"): "score"}
        return keys

    def source(self) -> Source:
        """The files as a source of documents, for listing and cutting them into units."""
        return Source(
            path=self.path,
            format=self.format,
            text=self.column("query"),
            id=next(iter(self.wanted)),  # with an id, a JSONL file is cut without a pass over it to count its lines
            duplicates="keep_all",
            bytes_per_fragment=_BYTES_PER_UNIT,
            storage_options=self.storage_options,
        )

    def fingerprint(self, files: Iterable[SourceFile], seed: int) -> str:
        """A hash of all that determines the prepared rows: the files, and what is done with them."""
        facts = self.model_dump(
            include={"kind", "format", "num_candidates", "choose", "labels", "labels_as_documents", "score_range"}
            | {"dev_fraction", "max_chars", "too_long"}
        )
        facts |= {"version": PREPARER_VERSION, "documents": self.num_documents, "repeats": self.repeats}
        facts |= {"columns": sorted(self.wanted.items()), "seed": seed if self.choose == "draw" else None}
        facts["texts"] = [self.column("query"), self.column("positive") if self.has_positive else None]
        facts["files"] = mapping_digest({file.path: [file.size, file.version] for file in files})
        return mapping_digest(facts)[:32]


def typed_columns(files: Iterable[SourceFile], training_set: TrainingSet) -> pa.Schema:
    """The types of those columns that are no plain text (lists, numbers, classes), by the first file that reads.

    Raises InputError for a column that is not there, naming those that are, and for files without any row.
    """
    for file in files:
        try:
            head = head_schema(file, training_set.source())
        except READ_FAULTS:
            continue
        if head is not None and len(head):
            return _typed(head, file, training_set)
    raise InputError(f"check the path of the set {training_set.name!r}: no file there has a row that reads")


def _typed(head: pa.Schema, file: SourceFile, training_set: TrainingSet) -> pa.Schema:
    fields = []
    for name, key in training_set.wanted.items():
        if name not in head.names:
            raise InputError(
                f"set columns.{key} of the set {training_set.name!r} to a column that exists: {name!r} is not in "
                f"{file.path}, which has {', '.join(head.names)}"
            )
        kind = head.field(name).type
        if key in ("score", "scores"):
            numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)
            fields.append(
                (name, pa.float64() if numbers else pa.list_(pa.float64()) if _is_list(kind) else pa.string())
            )
        elif key == "label":
            fields.append((name, pa.int64() if pa.types.is_integer(kind) else pa.string()))
        elif _is_list(kind):
            fields.append((name, pa.list_(pa.string())))
    return pa.schema(fields)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
