"""What a model is judged on: the `tasks:` section of a config, one entry a task.

tasks:
  - {name: stsb, kind: sts, path: stsb/test.tsv, at_least: {cosine_spearman: 0.82}}
  - {name: cranfield, kind: retrieval, path: cranfield}
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from operators.corpus.source import format_of

Kind = Literal["retrieval", "reranking", "sts", "pairs", "classification", "clustering", "bitext"]

# MTEB's main score of each kind
MAIN_METRICS: dict[Kind, str] = {
    "retrieval": "ndcg_at_10",
    "reranking": "map_at_1000",
    "sts": "cosine_spearman",
    "pairs": "ap",
    "classification": "accuracy",
    "clustering": "v_measure",
    "bitext": "f1",
}
_COLUMNS: dict[Kind, tuple[str, ...]] = {
    "retrieval": (),
    "reranking": ("query", "positive", "negative"),
    "sts": ("sentence1", "sentence2", "score"),
    "pairs": ("sentence1", "sentence2", "label"),
    "classification": ("text", "label"),
    "clustering": ("text", "label"),
    "bitext": ("sentence1", "sentence2"),
}
_RANKED = ("ndcg", "map", "recall", "precision", "mrr", "hit_rate")
_METRICS: dict[Kind, tuple[str, ...]] = {
    "retrieval": (),
    "reranking": (),
    "sts": ("cosine_spearman", "cosine_pearson"),
    "pairs": ("ap", "f1", "precision", "recall", "accuracy"),
    "classification": ("accuracy", "f1", "f1_weighted", "ap"),
    "clustering": ("v_measure", "ami"),
    "bitext": ("f1", "precision", "recall", "accuracy"),
}
_FOLDS = 5  # as in MTEB
# Keys that mean something for some kinds only
_ONLY_FOR: dict[str, tuple[Kind, ...]] = {
    "qrels": ("retrieval",),
    "index": ("retrieval",),
    "index_snapshot": ("retrieval",),
    "ignore_identical_ids": ("retrieval",),
    "k": ("retrieval", "reranking"),
    "query_prompt": ("retrieval", "reranking"),
    "train": ("classification",),
    "samples_per_label": ("classification",),
    "folds": ("classification",),
    "experiments": ("classification", "clustering"),
    "max_texts": ("clustering",),
    "texts_per_experiment": ("clustering",),
}


class Task(BaseModel):
    """One evaluation set and how it is scored; every default is MTEB's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, description="what to call it in the output; once in a config")
    kind: Kind = Field(description="what is measured, with MTEB's metrics of that name")
    path: str = Field(
        min_length=1,
        description="retrieval: a BEIR folder (corpus.jsonl, queries.jsonl, qrels.tsv or qrels/SPLIT.tsv); "
        "classification: a folder with TRAIN and SPLIT files, or one file, which is cross-validated; else a file, or a "
        "folder with a SPLIT file: .tsv (never quoted), .csv (RFC 4180) or .jsonl; .gz and .zst may follow",
    )
    split: str = Field(default="test", min_length=1, description="part to score, where path is a folder")
    train: str = Field(default="train", min_length=1, description="part that classifiers learn from")
    qrels: str | None = Field(default=None, description="file of judgements; null = qrels.tsv or qrels/SPLIT.tsv")
    columns: tuple[str, ...] | None = Field(
        default=None,
        description="columns to read, in the order of the defaults: [sentence1, sentence2, score] (sts), "
        "[sentence1, sentence2, label] (pairs), [text, label] (classification, clustering), "
        "[sentence1, sentence2] (bitext), [query, positive, negative] (reranking)",
    )
    role: str = Field(
        default="document", description="which of the recipe's prompts texts get; queries always get that for queries"
    )
    prompt: str | None = Field(default=None, description="prompt of each text, in place of the role's")
    query_prompt: str | None = Field(default=None, description="prompt of each query, in place of the recipe's")
    instruction: str | None = Field(default=None, description="what {task} in a prompt stands for; null: the recipe's")
    k: tuple[int, ...] = Field(default=(1, 3, 5, 10, 20, 100, 1000), description="ranks at which results are judged")
    ignore_identical_ids: bool = Field(
        default=False, description="drop a document with its query's own id from the results (ArguAna, Quora)"
    )
    index: str | None = Field(
        default=None, description="search this index (an index job's output) in place of embedding the corpus"
    )
    index_snapshot: int | None = Field(default=None, ge=1, description="snapshot of the index; null = the newest")
    samples_per_label: int = Field(default=8, ge=1, description="texts of each label that a classifier learns from")
    experiments: int = Field(default=10, ge=1, description="classifiers or clusterings whose scores are averaged")
    folds: int | None = Field(
        default=None, ge=2, description="cross-validate in so many folds; null = 5 for one file, none for a folder"
    )
    max_texts: int | None = Field(default=None, ge=2, description="texts to embed for clustering, drawn; null = all")
    texts_per_experiment: int = Field(default=16384, ge=2, description="texts of a clustering, drawn with replacement")
    seed: int = Field(default=42, ge=0, description="of every draw")
    at_least: dict[str, float] = Field(
        default_factory=dict,
        description="gate: least value of a metric, such as {ndcg_at_10: 0.4}; below it exit code 3",
    )
    storage_options: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="fsspec options of the files (endpoint_url, ...), never stored"
    )

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns to read."""
        return self.columns or _COLUMNS[self.kind]

    @property
    def is_file(self) -> bool:
        """Whether the path is that of a file of rows, by its name."""
        return format_of(self.path, "auto") is not None

    @property
    def num_folds(self) -> int | None:
        """Folds of a classification; None: it learns from a train part."""
        return self.folds or (_FOLDS if self.is_file else None)

    @property
    def depth(self) -> int:
        """Results to find of each query, the query itself included where it is dropped."""
        return max(self.k) + self.ignore_identical_ids

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the metrics that this task can have."""
        ranked = tuple(f"{name}_at_{k}" for name in _RANKED for k in self.k)
        return ranked if self.kind in ("retrieval", "reranking") else _METRICS[self.kind]

    @property
    def main_metric(self) -> str:
        """The one metric that stands for the task: MTEB's main score, or its like at the largest k."""
        wanted = MAIN_METRICS[self.kind]
        return wanted if wanted in self.metrics else f"{wanted.rpartition('_')[0]}_{max(self.k)}"

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Task:
        for key, kinds in _ONLY_FOR.items():
            if key in self.model_fields_set and self.kind not in kinds:
                raise ValueError(f"{key}: a task of kind {self.kind} has no such key, only {' and '.join(kinds)}")
        width = len(_COLUMNS[self.kind])
        if self.columns is not None and len(self.columns) != width:
            raise ValueError(f"columns: expected {width} names ({', '.join(_COLUMNS[self.kind]) or 'none'})")
        if not self.k or min(self.k) < 1:
            raise ValueError("k: expected ranks of 1 and more")
        for metric in self.at_least:
            if metric not in self.metrics:
                raise ValueError(f"at_least: unknown metric {metric!r}; expected one of: {', '.join(self.metrics)}")
        return self
