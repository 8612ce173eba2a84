"""Teachers' outputs on storage: written piece by piece, read by row, in any order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from operators.errors import InputError
from operators.storage import locate
from operators.storage.cache import Cache
from operators.teachers.outputs import (
    PIECE_ROWS,
    OutputManifest,
    Outputs,
    StoredPiece,
    TeacherRows,
    cosines,
    cut_pieces,
    encoded,
    joined,
    read_outputs,
    write_outputs,
    write_piece,
    written_pieces,
)

ROWS, DEV_ROWS, WIDTH, TEXTS = 2 * PIECE_ROWS + 100, 10, 4, 3
PIECES = cut_pieces({"train": ROWS, "dev": DEV_ROWS})


def write(folder: Path, output: str, array: np.ndarray) -> TeacherRows:
    """Outputs of the training split from [rows, ...]; the other split has those of its first rows."""
    records: list[StoredPiece] = []
    place = locate(str(folder))
    for piece in PIECES:
        own = array[piece.start : piece.start + piece.rows]
        if output == "vectors":
            different, places = np.unique(own.reshape(-1, own.shape[-1]), axis=0, return_inverse=True)
            contents = encoded(different), encoded(places.reshape(-1, TEXTS).astype(np.int32))
        else:
            contents = encoded(own), None
        records.append(write_piece(place, piece, *contents, num_inputs=len(own), num_tokens=7 * len(own)))
    assert sorted(written_pieces(place), key=repr) == sorted(records, key=repr)
    assert read_outputs(place) is None
    width = array.shape[-1] if output == "vectors" else None
    manifest = OutputManifest(
        fingerprint="f", teacher="t", output=output, num_documents=TEXTS - 1, width=width, pieces=tuple(records)
    )
    write_outputs(place, manifest)
    assert read_outputs(place) == manifest
    assert manifest.num_tokens == 7 * (ROWS + DEV_ROWS)
    return TeacherRows(place, manifest, "train", Cache.at(None))


@pytest.fixture
def asked() -> np.ndarray:
    return np.random.default_rng(1).permutation(ROWS)[:500]


def test_vectors_come_back_by_row(tmp_path: Path, asked: np.ndarray) -> None:
    vectors = np.random.default_rng(0).integers(-9, 10, (ROWS, TEXTS, WIDTH)).astype(np.float16)
    rows = write(tmp_path, "vectors", vectors)
    assert len(rows) == ROWS
    found = rows.vectors(asked)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, vectors[asked].astype(np.float32))
    np.testing.assert_array_equal(rows.scores(asked), cosines(found))
    assert rows.vectors(asked[:0]).shape == (0, TEXTS, WIDTH)
    with pytest.raises(IndexError, match=f"rows 0 to {ROWS - 1} are there"):
        rows.vectors(np.array([ROWS]))


def test_scores_come_back_by_row(tmp_path: Path, asked: np.ndarray) -> None:
    scores = np.random.default_rng(0).normal(size=(ROWS, TEXTS - 1)).astype(np.float32)
    rows = write(tmp_path, "scores", scores)
    np.testing.assert_array_equal(rows.scores(asked), scores[asked])
    with pytest.raises(InputError, match="give a teacher with output: vectors; t has scores alone"):
        rows.vectors(asked)


def test_a_damaged_file_is_found(tmp_path: Path) -> None:
    rows = write(tmp_path, "scores", np.zeros((ROWS, TEXTS - 1), np.float32))
    (file,) = tmp_path.glob(f"train-{PIECE_ROWS:012d}-*.npy")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    rows.scores(np.arange(PIECE_ROWS))
    with pytest.raises(InputError, match="content is not what was written"):
        rows.scores(np.array([PIECE_ROWS]))


def test_cosines_are_those_of_the_first_text_and_the_others() -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 3, 7)).astype(np.float32)
    vectors[2, 1] = 0
    expected = np.zeros((5, 2))
    for row in range(5):
        for place in range(2):
            one, other = vectors[row, 0].astype(float), vectors[row, 1 + place].astype(float)
            length = np.linalg.norm(one) * np.linalg.norm(other)
            expected[row, place] = one @ other / length if length else 0
    np.testing.assert_allclose(cosines(vectors), expected, atol=1e-6)


def test_pieces_of_outputs_are_joined() -> None:
    one = Outputs(np.ones((2, 3), np.float16), np.array([[0, 1], [1, 1]], np.int32), 2, 10)
    two = Outputs(np.zeros((1, 3), np.float16), np.array([[0, 0]], np.int32), 1, 5)
    both = joined([one, two])
    assert both.places_RT is not None
    assert both.places_RT.tolist() == [[0, 1], [1, 1], [2, 2]]
    assert both.places_RT.dtype == np.int32
    assert (both.values.shape, both.num_inputs, both.num_tokens) == ((3, 3), 3, 15)
    both.values[2, 0] = np.inf
    assert both.first_bad_row() == 2
