"""Hashes of files: of contents and names alone, computed once per large file, and right when a file changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from operators.embedder.recipe import fingerprint


@pytest.fixture
def large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint, "CACHED_ABOVE_BYTES", 10)
    path = tmp_path / "weights"
    path.write_bytes(b"a" * 100)
    return path


def test_order_and_place_do_not_matter(tmp_path: Path) -> None:
    files = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for name in ("x", "y"):
            (tmp_path / folder / name).write_text(name)
            files.append(tmp_path / folder / name)
    assert fingerprint.files_digest(files[:2]) == fingerprint.files_digest(files[:1:-1])
    assert fingerprint.files_digest(files[:2]) != fingerprint.files_digest(files[:1])
    files[0].rename(files[0].with_name("z"))
    assert fingerprint.files_digest([files[0].with_name("z"), files[1]]) != fingerprint.files_digest(files[2:])


def test_a_large_file_is_hashed_once(large_file: Path) -> None:
    digest = fingerprint.files_digest([large_file])
    stat = large_file.stat()
    large_file.write_bytes(b"b" * 100)
    os.utime(large_file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint.files_digest([large_file]) == digest  # it was not read again: same path, size and mtime
    os.utime(large_file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert fingerprint.files_digest([large_file]) != digest


def test_a_damaged_cache_entry_is_not_believed(large_file: Path, tmp_path: Path) -> None:
    digest = fingerprint.files_digest([large_file])
    entries = list((tmp_path / "cache").rglob("*.sha256"))
    assert len(entries) == 1
    entries[0].write_text("")
    assert fingerprint.files_digest([large_file]) == digest


def test_without_a_cache_folder(large_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = fingerprint.files_digest([large_file])
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fingerprint.files_digest([large_file]) == digest


def test_facts_have_no_order() -> None:
    assert fingerprint.mapping_digest({"a": 1, "b": "é"}) == fingerprint.mapping_digest({"b": "é", "a": 1})
    assert fingerprint.mapping_digest({"a": 1}) != fingerprint.mapping_digest({"a": "1"})
