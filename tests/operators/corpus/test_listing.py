"""Which files belong to a source."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from operators.corpus.listing import list_source
from operators.corpus.source import Source, format_of
from operators.errors import InputError


def names(folder: Path, *paths: str, **source: Any) -> list[str]:
    """Names below `folder` of the files that are listed."""
    absolute = tuple(str(folder / path) for path in paths)
    listed = list_source(Source(path=absolute if len(absolute) > 1 else absolute[0], **source))
    return [str(Path(file.path).relative_to(folder)) for file in listed]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name in ("a.jsonl", "b.csv", "sub/c.parquet", "sub/d.jsonl.gz", "sub/deep/e.md", "image.png", "noending"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return tmp_path


def test_folders_globs_and_lists(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert sorted(names(corpus, "")) == ["a.jsonl", "b.csv", "sub/c.parquet", "sub/d.jsonl.gz", "sub/deep/e.md"]
    assert "skipped 2 files" in caplog.text
    assert names(corpus, "*.jsonl") == ["a.jsonl"]
    assert sorted(names(corpus, "**/*.jsonl*")) == ["a.jsonl", "sub/d.jsonl.gz"]
    assert names(corpus, "sub", "a.jsonl")[-1] == "a.jsonl"


def test_a_file_is_listed_once_though_named_twice(corpus: Path) -> None:
    assert sorted(names(corpus, "sub", "sub/deep", "sub/*.parquet")) == [
        "sub/c.parquet",
        "sub/d.jsonl.gz",
        "sub/deep/e.md",
    ]


def test_the_listing_knows_sizes_and_notices_changes(corpus: Path) -> None:
    source = Source(path=str(corpus / "a.jsonl"))
    (before,) = list_source(source)
    assert (before.path, before.size) == (str(corpus / "a.jsonl"), 1)
    assert list(list_source(source)) == [before]
    (corpus / "a.jsonl").write_text("xy")
    (after,) = list_source(source)
    assert after.version != before.version


@pytest.mark.parametrize("path", ["missing", "*.xyz", "missing/*.jsonl"])
def test_a_path_that_matches_nothing_is_an_error(corpus: Path, path: str) -> None:
    with pytest.raises(InputError, match="check source.path: no file found at"):
        names(corpus, path)
    with pytest.raises(InputError, match="check source.path"):
        names(corpus, "a.jsonl", path)


def test_a_format_that_cannot_be_told(corpus: Path) -> None:
    with pytest.raises(InputError, match=r"set source.format: none of the 1 files .*noending"):
        names(corpus, "noending")
    assert names(corpus, "noending", format="text") == ["noending"]


@pytest.mark.parametrize(
    ("name", "declared", "expected"),
    [
        ("a.JSONL", "auto", ("jsonl", None)),
        ("a.json.gz", "auto", ("jsonl", "gzip")),
        ("a.csv.zst", "auto", ("csv", "zstd")),
        ("a.pq", "auto", ("parquet", None)),
        ("a.gz", "auto", None),
        ("a.gz", "tsv", ("tsv", "gzip")),
        ("README", "text", ("text", None)),
    ],
)
def test_formats_by_name(name: str, declared: str, expected: object) -> None:
    assert format_of(name, declared) == expected
