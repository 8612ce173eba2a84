"""The embed job end to end on a small corpus: what comes out, what a second run does, what bad input does."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.jobs.running import documents, rejected_of, run_job, snapshot_of, vectors_of, write_config, write_jsonl


@pytest.mark.usefixtures("local_ray")
def test_every_row_gets_its_vector_and_verify_agrees(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{**row, "lang": "en" if i % 2 else "de"} for i, row in enumerate(documents(100))]
    write_jsonl(tmp_path / "docs.jsonl", rows)
    config = write_config(tmp_path, tiny_model, source={"rows_per_fragment": 30}, output={"keep": ["lang"]})
    assert run_job("embed", config) == 0
    table = vectors_of(tmp_path)
    assert sorted(table["doc_id"].to_pylist()) == sorted(row["id"] for row in rows)
    assert table.schema.names[:6] == ["doc_id", "chunk", "text_hash", "num_tokens", "truncated", "embedding"]
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 32)
    by_id = {row["id"]: row["lang"] for row in rows}
    assert table["lang"].to_pylist() == [by_id[doc_id] for doc_id in table["doc_id"].to_pylist()]
    assert [record.rows for record in snapshot_of(tmp_path).records] == [30, 30, 30, 10]
    stored = yaml.safe_load((tmp_path / "vectors" / "config.yaml").read_text())
    assert stored["config"]["source"]["rows_per_fragment"] == 30
    assert len(stored["fingerprint"]) == 64
    report = json.loads((tmp_path / "vectors" / "report.json").read_text())
    assert report["counts"]["rows"] == 100
    assert run_job("verify", config) == 0


@pytest.mark.usefixtures("without_ray")
def test_vectors_are_those_of_sentence_transformers(tmp_path: Path, tiny_model: Path) -> None:
    from sentence_transformers import SentenceTransformer

    rows = [*documents(60), {"id": "long", "text": "time " * 100}]
    write_jsonl(tmp_path / "docs.jsonl", rows)
    assert run_job("embed", write_config(tmp_path, tiny_model, source={"rows_per_fragment": 17})) == 0
    table = vectors_of(tmp_path)
    report = json.loads((tmp_path / "vectors" / "report.json").read_text())
    assert report["lost_by_file"] == {str(tmp_path / "docs.jsonl"): 100 - 62}
    assert "chunking.tokens" in report["notes"][0]
    texts = {row["id"]: row["text"] for row in rows}
    expected = SentenceTransformer(str(tiny_model), device="cpu").encode(
        [texts[i] for i in table["doc_id"].to_pylist()]
    )
    ours = np.stack(table["embedding"].to_numpy(zero_copy_only=False))
    assert (np.einsum("nd,nd->n", ours, expected) >= 0.9999).all()


@pytest.mark.usefixtures("without_ray")
def test_a_second_run_opens_and_loads_nothing(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "docs.jsonl", documents(20))
    config = write_config(tmp_path, tiny_model)
    assert run_job("embed", config) == 0

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a finished job started Ray, or the stages in its own process")

    monkeypatch.setattr("jobs.embed._place", refuse)
    (tmp_path / "docs.jsonl").chmod(0o000)
    capsys.readouterr()
    assert run_job("embed", config) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert snapshot_of(tmp_path).number == 1


@pytest.mark.usefixtures("without_ray")
def test_touching_one_file_embeds_only_that_file(tmp_path: Path, tiny_model: Path) -> None:
    for i in range(40):
        write_jsonl(tmp_path / "in" / f"{i:02d}.jsonl", documents(3, start=3 * i))
    config = write_config(tmp_path, tiny_model, source={"path": str(tmp_path / "in" / "*.jsonl")})
    assert run_job("embed", config) == 0
    before = {record.key for record in snapshot_of(tmp_path).records}
    assert len(before) == 40
    write_jsonl(tmp_path / "in" / "07.jsonl", [{"id": "new", "text": "a new text"}])
    assert run_job("embed", config) == 0
    after = snapshot_of(tmp_path)
    assert after.number == 2
    assert len(after.keys - before) == 1
    assert len(before - after.keys) == 1
    report = json.loads((tmp_path / "vectors" / "report.json").read_text())
    assert report["counts"]["rows"] == 1
    ids = vectors_of(tmp_path)["doc_id"].to_pylist()
    assert "new" in ids
    assert not {"doc-21", "doc-22", "doc-23"} & set(ids)
    assert len(list((tmp_path / "vectors" / "data").iterdir())) == 41  # snapshot 1 still has its own
    assert run_job("vacuum", config, "vacuum.grace_hours=0", "vacuum.keep_snapshots=1") == 0
    assert len(list((tmp_path / "vectors" / "data").iterdir())) == 40
    assert run_job("verify", config) == 0


@pytest.mark.usefixtures("without_ray")
def test_bad_rows_are_rejected_one_by_one_and_nothing_else_is_lost(tmp_path: Path, tiny_model: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    good = json.dumps({"id": "good", "text": "a text"}).encode()
    lines = [
        good,
        b'{"id": "null", "text": null}',
        b'{"id": "absent"}',
        b'{"id": "blank", "text": " \\t\\u00a0\\n"}',
        b'{"id": "number", "text": 5}',
        b'{"id": "broken", "text": "x',
        b'{"id": "latin", "text": "caf\xe9"}',
        b'{"id": null, "text": "no id"}',
        b'{"id": 7, "text": "an integer id"}',
        b'{"id": "../a/\\"b\\" \xf0\x9f\x98\x80", "text": "an odd id"}',
        b'{"id": "controls", "text": "nul \\u0000 and bell \\u0007"}',
        b"",
        b"[1, 2]",
    ]
    (source / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    whole = gzip.compress(
        b"".join(json.dumps({"id": f"z{i}", "text": f"text {i}"}).encode() + b"\n" for i in range(5000))
    )
    (source / "b.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (source / "c.parquet").write_bytes(b"PAR1 this is no parquet file")
    pq.write_table(pa.table({"id": [100, 101], "text": ["one", "two"]}), source / "d.parquet")
    pq.write_table(pa.table({"id": ["only-id"], "body": ["no text column"]}), source / "e.parquet")
    (source / "f.csv").write_text('id,text\ncsv1,"a, b"\ncsv2,too,many\ncsv3,c\n')
    gates = {"max_rejected_fraction": 1.0}
    config = write_config(tmp_path, tiny_model, source={"path": str(source)}, gates=gates)
    assert run_job("embed", config) == 3  # two files are broken, which no config allows by itself
    assert run_job("embed", config, "gates.max_unreadable_files=2") == 3  # all of c.parquet is lost
    assert run_job("embed", config, "gates.max_unreadable_files=2", "gates.max_lost_bytes=28") == 0
    ids = set(vectors_of(tmp_path)["doc_id"].to_pylist())
    rejected = rejected_of(tmp_path)
    assert {"good", "7", '../a/"b" \U0001f600', "controls", "100", "101", "csv1", "csv3"} <= ids
    assert {k: v for k, v in rejected.items() if k in ("null", "absent", "blank", "number")} == {
        "null": "null_text",
        "absent": "null_text",
        "blank": "blank_text",
        "number": "wrong_type",
    }
    assert rejected["a.jsonl#5"] == "malformed_json"
    assert rejected["a.jsonl#6"] == "invalid_utf8"
    assert rejected["a.jsonl#7"] == "missing_id"
    assert rejected["a.jsonl#12"] == "malformed_json"
    assert rejected["f.csv#1"] == "malformed_csv"
    assert rejected["only-id"] == "missing_column"
    assert rejected["c.parquet#0"] == "unreadable_file"
    cut = [key for key, reason in rejected.items() if str(key).startswith("b.jsonl.gz") and reason == "unreadable_file"]
    survived = sum(1 for doc_id in ids if doc_id.startswith("z"))
    assert len(cut) == 1
    assert survived > 500
    assert run_job("verify", config) == 0


@pytest.mark.usefixtures("without_ray")
def test_too_many_rejected_rows_miss_the_gate_but_keep_the_output(tmp_path: Path, tiny_model: Path) -> None:
    write_jsonl(tmp_path / "docs.jsonl", [*documents(5), {"id": "empty", "text": ""}])
    config = write_config(tmp_path, tiny_model)
    assert run_job("embed", config) == 3
    assert vectors_of(tmp_path).num_rows == 5
    assert run_job("embed", config) == 3  # still so


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize(
    "dtype", ["int8", pytest.param("float16", marks=pytest.mark.slow), pytest.param("binary", marks=pytest.mark.slow)]
)
def test_smaller_forms_of_vectors_verify(tmp_path: Path, tiny_model: Path, dtype: str) -> None:
    write_jsonl(tmp_path / "docs.jsonl", documents(50))
    config = write_config(tmp_path, tiny_model, source={"rows_per_fragment": 20}, output={"dtype": dtype})
    assert run_job("embed", config) == 0
    kind = {"float16": pa.float16(), "int8": pa.int8(), "binary": pa.uint8()}[dtype]
    width = 4 if dtype == "binary" else 32
    assert vectors_of(tmp_path).schema.field("embedding").type == pa.list_(kind, width)
    assert run_job("verify", config, "verify.min_cosine=0.99") == 0
