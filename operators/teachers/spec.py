"""What a teacher is for one prepared set: its prompts filled in, its files found, and the fingerprint of its outputs.

The driver makes it and the workers load what it says; no model is loaded here, nor torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from operators.embedder.recipe import checkpoint, fingerprint, layouts
from operators.embedder.recipe.recipe import Recipe
from operators.embedder.recipe.spec import EmbedderSpec, embedder_spec, weights_digest
from operators.errors import InputError
from operators.teachers.config import (
    TASK,
    CrossEncoderTeacher,
    EmbedderTeacher,
    JudgeTeacher,
    Output,
    ScorerTeacher,
    Teacher,
)
from operators.training.config.sets import Side, TrainingSet

# Part of every fingerprint: raise it when a change of the code changes what the same teacher says
OUTPUT_VERSION = 1


@dataclass(frozen=True, slots=True)
class TextSpec:
    """An embedder as the teacher of one set."""

    teacher: EmbedderTeacher
    query: EmbedderSpec
    document: EmbedderSpec
    fingerprint: str

    @property
    def output(self) -> Output:
        """What is stored."""
        return self.teacher.output


@dataclass(frozen=True, slots=True)
class PairSpec:
    """A scorer of pairs as the teacher of one set."""

    teacher: ScorerTeacher  # with max_tokens set, and a hub id's revision a commit
    task: str | None  # what {task} in a judge's prompt stands for
    label: int | None  # of a cross-encoder with several
    weights_digest: str
    tokenizer_digest: str
    fingerprint: str

    @property
    def output(self) -> Output:
        """What is stored."""
        return "scores"


TeacherSpec = TextSpec | PairSpec


def teacher_spec(teacher: Teacher, training_set: TrainingSet, set_fingerprint: str, recipes_dir: Path) -> TeacherSpec:
    """Resolve a teacher for a set. Raises InputError for what can be found wrong without loading the model."""
    if isinstance(teacher, EmbedderTeacher):
        if teacher.output == "scores":
            _check_documents(teacher, training_set)
        return _text_spec(teacher, training_set, set_fingerprint, recipes_dir)
    _check_documents(teacher, training_set)
    return _pair_spec(teacher, training_set, set_fingerprint)


def _check_documents(teacher: Teacher, training_set: TrainingSet) -> None:
    if not training_set.num_documents:
        raise InputError(
            f"give the teacher {teacher.name!r} a set with documents to score: {training_set.name!r} has texts alone"
        )


def _text_spec(teacher: EmbedderTeacher, training_set: TrainingSet, of_set: str, recipes_dir: Path) -> TextSpec:
    def resolved(own: Side, of_student: Side, role: str) -> EmbedderSpec:
        changed = {"prompt": own.prompt, "task": own.task if own.task is not None else of_student.task}
        config = teacher.embedder.model_copy(update={**changed, "role": own.role or role})
        return embedder_spec(teacher.model, config, recipes_dir)

    query = resolved(teacher.query, training_set.query, "query")
    document = query if training_set.symmetric else resolved(teacher.document, training_set.document, "document")
    if not query.dim:
        raise InputError(
            f"give the teacher {teacher.name!r} a model with dense vectors: {teacher.model} has sparse ones"
        )
    facts = {
        "version": OUTPUT_VERSION,
        "set": of_set,
        "query": query.fingerprint,
        "document": document.fingerprint,
        "output": teacher.output,
        "dtype": teacher.dtype if teacher.output == "vectors" else None,
    }
    return TextSpec(teacher, query, document, fingerprint.mapping_digest(facts)[:32])


def _pair_spec(teacher: ScorerTeacher, training_set: TrainingSet, of_set: str) -> PairSpec:
    root = checkpoint.locate_root(teacher.checkpoint, teacher.revision, weights=False)
    folder = checkpoint.weights_folder(root)
    config = checkpoint.read_config(folder)
    checkpoint.check_remote_code(folder, config, teacher.trust_remote_code)
    commit = checkpoint.hub_commit(folder) if checkpoint.is_hub_id(teacher.checkpoint) else None
    allowed = layouts.max_tokens_of(folder, config, teacher.max_tokens)
    limit = checkpoint.position_limit(config)
    if limit is not None and allowed > limit:
        raise InputError(f"max_tokens {allowed} is more than the {limit} positions of {teacher.checkpoint}")
    changed = {"max_tokens": allowed, "revision": commit}
    label, task = None, None
    if isinstance(teacher, JudgeTeacher):
        task = _task(teacher, training_set)
    else:
        label = _label(teacher, config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"})
    teacher = teacher.model_copy(update=changed)
    weights = f"{teacher.checkpoint}@{commit}" if commit else weights_digest(root, recipe_of(teacher))
    spec = PairSpec(teacher, task, label, weights, fingerprint.tokenizer_digest(folder), "")
    facts = {
        "version": OUTPUT_VERSION,
        "set": of_set,
        "weights": spec.weights_digest,
        "tokenizer": spec.tokenizer_digest,
        "task": task,
        "label": label,
        **teacher.model_dump(include={"kind", "prompt", "answers", "max_tokens", "compute_dtype"}),
    }
    return dataclasses.replace(spec, fingerprint=fingerprint.mapping_digest(facts)[:32])


def _task(teacher: JudgeTeacher, training_set: TrainingSet) -> str | None:
    if TASK not in teacher.prompt:
        return None
    if training_set.query.task is None:
        raise InputError(f"set query.task of the set {training_set.name!r}: the judge's prompt has {TASK}")
    return training_set.query.task


def _label(teacher: CrossEncoderTeacher, names: dict[str, str]) -> int | None:
    """The number of the label that means relevant; None where there is one alone."""
    by_number = {int(number): name for number, name in names.items()}
    found = [number for number, name in by_number.items() if teacher.label in (number, name)]
    if found:
        return found[0] if len(by_number) > 1 else None
    if len(by_number) == 1 and teacher.label is None:
        return None
    labels = ", ".join(f"{number} ({name})" for number, name in sorted(by_number.items()))
    raise InputError(f"set label of the teacher {teacher.name!r} to one of {labels}; it is {teacher.label!r}")


def recipe_of(teacher: ScorerTeacher) -> Recipe:
    """The teacher's checkpoint in the form in which models are loaded; nothing is pooled."""
    return Recipe(
        checkpoint=teacher.checkpoint,
        revision=teacher.revision,
        pooling="last",
        normalize=False,
        max_tokens=teacher.max_tokens or 1,
        compute_dtype=teacher.compute_dtype,
        trust_remote_code=teacher.trust_remote_code,
    )


def scorer_folder(spec: PairSpec, weights: bool) -> Path:
    """The checkpoint on this machine; raises InputError where its files are not those that the driver saw."""
    root = checkpoint.locate_root(spec.teacher.checkpoint, spec.teacher.revision, weights)
    folder = checkpoint.weights_folder(root)
    same = fingerprint.tokenizer_digest(folder) == spec.tokenizer_digest
    if weights and "@" not in spec.weights_digest:
        same = same and weights_digest(root, recipe_of(spec.teacher)) == spec.weights_digest
    if not same:
        raise InputError(
            f"the checkpoint {folder} on this machine is not the one that the run was planned with: "
            "its files changed since, or differ from the driver's; start the job again with one copy everywhere"
        )
    return folder
