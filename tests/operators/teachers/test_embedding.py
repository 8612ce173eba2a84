"""Embedders as teachers, against sentence-transformers on one text after another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import ValidationError
from sentence_transformers import SentenceTransformer

from operators.errors import InputError
from operators.teachers.choice import load_reader, load_teacher
from tests.checkpoints import tiny_bert
from tests.operators.teachers.rows import ROWS, said, spec_of, table, teacher_of

PROMPTS = {"query": "find the ", "document": "the book: "}


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("teacher") / "bert", prompts=PROMPTS)


def reference(model: Path, query: str, document: str) -> np.ndarray:
    """vectors_RTD by sentence-transformers."""
    theirs = SentenceTransformer(str(model), device="cpu")
    queries = theirs.encode([row[0] for row in ROWS], prompt=query)
    documents = theirs.encode([text for row in ROWS for text in row[1]], prompt=document)
    return np.concatenate([queries[:, None], documents.reshape(len(ROWS), 3, -1)], axis=1)


def test_vectors_of_every_text_are_those_of_sentence_transformers(prompted: Path) -> None:
    spec = spec_of(teacher_of(kind="embedder", model=str(prompted), dtype="float32"))
    inputs = load_reader(spec)(table(ROWS))
    queries, documents = {row[0] for row in ROWS}, {text for row in ROWS for text in row[1]}
    assert (inputs.num_queries, len(inputs.input_ids)) == (len(queries), len(queries) + len(documents))
    outputs = load_teacher(spec)(spec, inputs)
    assert outputs.places_RT is not None
    expected = reference(prompted, PROMPTS["query"], PROMPTS["document"])
    np.testing.assert_allclose(outputs.values[outputs.places_RT], expected, atol=1e-5)


def test_cosines_are_stored_where_scores_are_asked_for(prompted: Path) -> None:
    outputs = said(spec_of(teacher_of(kind="embedder", model=str(prompted), output="scores")), ROWS)
    vectors = reference(prompted, PROMPTS["query"], PROMPTS["document"])
    expected = [[query @ document for document in documents] for query, *documents in vectors]
    np.testing.assert_allclose(outputs.values, expected, atol=1e-5)


def test_a_symmetric_set_has_the_prompt_of_queries_on_both_sides(prompted: Path) -> None:
    teacher = teacher_of(kind="embedder", model=str(prompted), dtype="float16", query={"prompt": "on {task}: "})
    spec = spec_of(teacher, symmetric=True, query={"task": "books"})
    rows = [(query, [query, *documents[1:]]) for query, documents in ROWS]  # a text that is on both sides
    inputs = load_reader(spec)(table(rows))
    assert len(inputs.input_ids) == len({text for query, documents in rows for text in (query, *documents)})
    outputs = load_teacher(spec)(spec, inputs)
    assert outputs.values.dtype == np.float16
    assert outputs.places_RT is not None
    vectors = outputs.values[outputs.places_RT].astype(np.float32)
    expected = reference(prompted, "on books: ", "on books: ")
    np.testing.assert_array_equal(vectors[:, 0], vectors[:, 1])
    np.testing.assert_allclose(vectors[:, [0, 2, 3]], expected[:, [0, 2, 3]], atol=1e-3)


def test_each_side_has_its_role_where_a_set_gives_its_task(tmp_path: Path) -> None:
    prompts = {"query": "find {task}: ", "document": "of {task}: "}
    folder = tiny_bert(tmp_path / "bert")
    fields = {"checkpoint": str(folder), "pooling": "mean", "normalize": True, "max_tokens": 64, "prompts": prompts}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(fields))
    teacher = teacher_of(
        kind="embedder", model=str(tmp_path / "own.yaml"), output="scores", document={"task": "people"}
    )
    outputs = said(spec_of(teacher, query={"task": "books"}, document={"task": "houses"}), ROWS)
    vectors = reference(folder, "find books: ", "of people: ")
    expected = [[query @ document for document in documents] for query, *documents in vectors]
    np.testing.assert_allclose(outputs.values, expected, atol=1e-5)


def test_some_of_the_rows_get_what_all_of_them_get(prompted: Path) -> None:
    spec = spec_of(teacher_of(kind="embedder", model=str(prompted), dtype="float32"))
    inputs = load_reader(spec)(table(ROWS))
    teacher = load_teacher(spec)
    whole, part = teacher(spec, inputs), teacher(spec, inputs.of_rows(7, 12))
    assert whole.places_RT is not None
    assert part.places_RT is not None
    assert part.num_inputs < whole.num_inputs
    np.testing.assert_allclose(part.values[part.places_RT], whole.values[whole.places_RT][7:12], atol=1e-6)


def test_the_fingerprint_is_of_all_that_changes_the_outputs(prompted: Path, tmp_path: Path) -> None:
    base = {"kind": "embedder", "model": str(prompted)}
    other = tiny_bert(tmp_path / "other", prompts=PROMPTS, seed=1)
    different = [
        spec_of(teacher_of(**base)),
        spec_of(teacher_of(**base, output="scores")),
        spec_of(teacher_of(**base, dtype="float32")),
        spec_of(teacher_of(**base, embedder={"max_tokens": 16})),
        spec_of(teacher_of(**base, query={"prompt": "x"})),
        spec_of(teacher_of(**base), symmetric=True),
        spec_of(teacher_of(kind="embedder", model=str(other))),
    ]
    assert len({spec.fingerprint for spec in different}) == len(different)
    same = [teacher_of(**base, embedder={"batch_tokens": 64}), teacher_of(**{**base, "name": "u"})]
    assert {spec_of(teacher).fingerprint for teacher in same} == {different[0].fingerprint}


def test_what_does_not_fit_is_refused(prompted: Path) -> None:
    with pytest.raises(ValidationError, match="embedder.prompt: give it in query and document"):
        teacher_of(kind="embedder", model=str(prompted), embedder={"prompt": "x"})
    with pytest.raises(InputError, match="'t' a set with documents to score: 'set' has texts alone"):
        spec_of(teacher_of(kind="embedder", model=str(prompted), output="scores"), kind="texts", num_negatives=None)
    spec = spec_of(teacher_of(kind="embedder", model=str(prompted)), kind="texts", num_negatives=None)
    assert said(spec, [(query, []) for query, _ in ROWS[:3]]).values.shape == (3, 32)
