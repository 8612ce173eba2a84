"""Hashes that say which vectors these are: of a checkpoint's files, and of everything that determines a vector.

A large file is hashed once per machine: its hash is kept under $XDG_CACHE_HOME/embedfleet by path, size and mtime.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

# Files that change what a text's token ids are, or an image's pixels
TOKENIZER_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
)
CACHED_ABOVE_BYTES = 4 << 20  # smaller files are hashed faster than a cache entry is checked


def files_digest(files: Iterable[Path]) -> str:
    """SHA-256 over the names and contents of files; their folder and order do not matter."""
    total = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        total.update(f"{path.name}\0{_file_sha256(path)}\n".encode())
    return total.hexdigest()


def tokenizer_digest(folder: Path) -> str:
    """The digest of the tokenizer's files that a checkpoint folder has."""
    return files_digest(path for name in TOKENIZER_FILES if (path := folder / name).is_file())


def mapping_digest(facts: Mapping[str, object]) -> str:
    """SHA-256 over JSON-able facts, independent of their order."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def cache_folder(kind: str) -> Path:
    """Where this machine keeps what it can make again; it need not exist."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "embedfleet" / kind


def _file_sha256(path: Path) -> str:
    stat = path.stat()
    if stat.st_size <= CACHED_ABOVE_BYTES:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    identity = [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
    entry = cache_folder("hashes") / f"{mapping_digest({'file': identity})}.sha256"
    known = _read_entry(entry)
    if known:
        return known
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    _write_entry(entry, digest)
    return digest


def _read_entry(entry: Path) -> str | None:
    try:
        known = entry.read_text()
    except OSError:
        return None
    return known if len(known) == 64 else None


def _write_entry(entry: Path, digest: str) -> None:
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        part = entry.with_suffix(f".{os.getpid()}")
        part.write_text(digest)
        part.replace(entry)  # atomic: another worker reads the whole entry or none
    except OSError:
        return  # a read-only or full home costs hashing again, nothing else
