"""The identity of a dataset: claimed once, and defended."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from operators.errors import InputError
from operators.storage import Location
from operators.store.dataset import claim_identity, decode_schema, encode_schema, read_identity
from tests.operators.store.stored_fragments import make_identity


def test_an_identity_is_claimed_once_and_read_back(tmp_path: Path) -> None:
    dataset = Location(str(tmp_path / "vectors"))
    assert read_identity(dataset) is None
    identity = make_identity("int8")
    assert claim_identity(dataset, identity) == identity
    assert read_identity(dataset) == identity
    assert claim_identity(dataset, identity) == identity


def test_scale_and_packing_are_those_of_the_first_run(tmp_path: Path) -> None:
    dataset = Location(str(tmp_path))
    first = claim_identity(dataset, make_identity("int8", scale=0.01, pack_below_bytes=5))
    assert claim_identity(dataset, make_identity("int8", scale=0.02, pack_below_bytes=0)) == first


def test_of_many_runs_at_once_one_decides(tmp_path: Path) -> None:
    dataset = Location(str(tmp_path))
    wanted = [make_identity("int8", scale=0.01 * (i + 1)) for i in range(12)]
    with ThreadPoolExecutor(12) as threads:
        agreed = set(threads.map(lambda identity: claim_identity(dataset, identity), wanted))
    assert len(agreed) == 1
    assert agreed <= set(wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "e" * 64, "model": "other"}, f"holds vectors of none with fingerprint {'f' * 64}.*other"),
        ({"dim": 8}, "with dim 16, this run .* has 8"),
        ({"dtype": "float16"}, "with dtype float32, .* has float16"),
        ({"normalized": False}, "with normalized True"),
        ({"keep_schema": encode_schema(pa.schema([("n", pa.int64())]))}, "keep_schema lang: string, .* has n: int64"),
        ({"keep_schema": encode_schema(pa.schema([]))}, "has no kept columns"),
    ],
)
def test_an_output_of_another_kind_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    dataset = Location(str(tmp_path))
    claim_identity(dataset, make_identity())
    before = (tmp_path / "dataset.json").read_bytes()
    with pytest.raises(InputError, match=f"^choose another output.path: .*{message}"):
        claim_identity(dataset, dataclasses.replace(make_identity(), **change))
    assert (tmp_path / "dataset.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"fingerprint": 1}', "not json"])
def test_a_foreign_file_is_no_dataset(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(InputError, match="is no embeddings dataset"):
        read_identity(Location(str(tmp_path)))


def test_a_later_layout_is_refused(tmp_path: Path) -> None:
    stored = {**dataclasses.asdict(make_identity()), "layout": 2, "unknown": "field"}
    (tmp_path / "dataset.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match="has layout 2; this version writes layout 1"):
        read_identity(Location(str(tmp_path)))


def test_schemas_survive_as_text() -> None:
    schema = pa.schema(
        [("a é", pa.list_(pa.string())), ("b", pa.timestamp("ns", "UTC")), ("c", pa.dictionary(pa.int8(), pa.string()))]
    )
    assert decode_schema(encode_schema(schema)) == schema
