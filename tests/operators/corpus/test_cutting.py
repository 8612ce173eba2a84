"""The size of fragments from a sample of the source: times, numbers and limits."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from operators.corpus.cutting import (
    FRAGMENTS_PER_WORKER,
    LEAST_SECONDS,
    SECONDS,
    FragmentSize,
    Rows,
    choose_size,
    sample_rows,
)
from operators.corpus.source import Source
from operators.work.fragment import SourceFile
from tests.operators.corpus.reading_files import source_file

SOURCE = Source(path="/none")
SEEN = Rows(np.full(100, 1000, np.int64), storage_bytes=50_000)  # rows of 1,000 bytes of text, compressed to half


def size(
    seconds_a_row: float, total_bytes: int, workers: int = 2, kinds: frozenset[str] = frozenset({"jsonl.gzip"})
) -> FragmentSize:
    return choose_size(SEEN, np.full(100, seconds_a_row), total_bytes, workers, SOURCE, set(kinds))


def test_a_large_corpus_is_cut_by_time() -> None:
    assert size(0.1, 10**9) == FragmentSize(round(SECONDS / 0.1), round(SECONDS / 0.1 * 1000))


def test_a_small_corpus_gives_every_worker_several() -> None:
    rows = 1_000_000 / 50_000 * 100
    assert size(0.1, 1_000_000).rows == pytest.approx(rows / FRAGMENTS_PER_WORKER / 2, abs=1)
    assert size(0.1, 1_000_000, workers=1).rows == pytest.approx(rows / FRAGMENTS_PER_WORKER, abs=1)


def test_fragments_have_a_least_time() -> None:
    assert size(0.1, 50_000, workers=64).rows == round(LEAST_SECONDS / 0.1)


def test_a_fast_model_has_the_largest_and_a_very_slow_one_single_rows() -> None:
    assert size(1e-6, 10**12) == FragmentSize(16384, 8 << 20)
    assert size(100.0, 10**9) == FragmentSize(1, 1024)
    assert choose_size(Rows(np.zeros(0, np.int64), 0), np.zeros(0), 10**9, 2, SOURCE, {"csv"}) == FragmentSize(
        16384, 8 << 20
    )


def test_byte_ranges_are_of_what_is_in_the_file() -> None:
    seen = Rows(np.full(100, 1000, np.int64), storage_bytes=1_000_000)  # nine tenths stand beside the text
    found = choose_size(seen, np.full(100, 0.1), 10**9, 2, SOURCE, {"jsonl"})
    assert found == FragmentSize(round(SECONDS / 0.1), round(SECONDS / 0.1 * 10_000))


def test_images_go_by_rows_alone() -> None:
    images = Source(path="/none", image="image")
    assert choose_size(SEEN, np.full(100, 0.3), 10**9, 2, images, {"image"}) == FragmentSize(100, 64 << 20)
    assert choose_size(SEEN, np.full(100, 1e-6), 10**9, 2, images, {"image"}) == FragmentSize(512, 64 << 20)


def test_files_that_are_one_document_each_are_not_opened() -> None:
    files = [SourceFile(f"/none/{i}.txt", 100 + i, "1") for i in range(1000)]
    seen = sample_rows(files, SOURCE)
    assert seen.content_bytes_R.tolist() == [100 + i for i in range(1000)]
    assert seen.storage_bytes == sum(file.size for file in files)


def test_a_sample_of_compressed_lines_tells_how_well_they_compress(tmp_path: Path) -> None:
    def lines(start: int) -> list[str]:
        draw = random.Random(start)
        texts = (draw.randbytes(2 * (i % 40 + 1)).hex() for i in range(3000))
        return [json.dumps({"text": text, "other": "x" * 100}) + "\n" for text in texts]

    paths = [tmp_path / f"{i}.jsonl.gz" for i in range(20)]
    for number, path in enumerate(paths):
        path.write_bytes(gzip.compress("".join(lines(number)).encode()))
    seen = sample_rows([source_file(path) for path in paths], Source(path=str(tmp_path)))
    assert 8 * 256 <= len(seen.content_bytes_R) < 3000 * 20
    whole: NDArray[np.int64] = np.array([4 * (i % 40 + 1) for i in range(3000)])
    assert seen.content_bytes_R.mean() == pytest.approx(whole.mean(), rel=0.1)
    per_byte = seen.content_bytes_R.sum() / seen.storage_bytes
    assert per_byte == pytest.approx(whole.sum() / paths[0].stat().st_size, rel=0.5)
