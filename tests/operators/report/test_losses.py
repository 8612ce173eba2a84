"""Which files lost tokens, and what a user is told to set."""

from __future__ import annotations

from operators.report.losses import MOST_FILES, OTHERS, loss_note, lost_by_file
from operators.store.fragments import FragmentRecord
from operators.work.fragment import Extent, Fragment, SourceFile, Unit


def record(lost_tokens: int, *paths: str, part: int = 0) -> FragmentRecord:
    unit = Unit.of(tuple(Extent(SourceFile(path, 10, "1")) for path in paths), "")
    return FragmentRecord(Fragment(unit, part, True), 10, 10, 0, 100, 0, lost_tokens, 3, 1000, "")


def test_fragments_of_a_file_are_added_and_the_worst_file_comes_first() -> None:
    records = [record(5, "/a"), record(0, "/b"), record(7, "/c"), record(4, "/a", part=1), record(1, "/d", "/e", "/f")]
    assert list(lost_by_file(records).items()) == [("/a", 9), ("/c", 7), ("/d and 2 more", 1)]


def test_many_files_are_summed_up() -> None:
    records = [record(100 - i, f"/{i}") for i in range(MOST_FILES + 3)]
    found = lost_by_file(records)
    assert len(found) == MOST_FILES + 1
    assert found[OTHERS] == sum(100 - i for i in range(MOST_FILES, MOST_FILES + 3))
    assert sum(found.values()) == sum(each.lost_tokens for each in records)


def test_note_names_the_keys_that_would_help() -> None:
    (note,) = loss_note(60, 40, 256, is_chunked=False)
    assert note.startswith("60.0 % of the text got no vector")
    assert all(key in note for key in ("max_tokens (256)", "chunking.tokens", "chunking.late", "embedder.max_tokens"))
    assert loss_note(0, 40, 256, is_chunked=False) == ()
    assert loss_note(1, 40, 256, is_chunked=True) == ()
