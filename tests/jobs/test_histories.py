"""Whatever happened to the source between runs: the dataset holds each document once, as one made anew would."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from operators.storage import locate
from operators.store.snapshots import latest_snapshot
from tests.jobs.running import documents, rejected_of, run_job, vectors_of, write_config, write_jsonl

HISTORIES = int(os.environ.get("EMBEDFLEET_HISTORIES", "40"))
FILES = ("a", "b", "c")
# What a file comes to hold: ids, each with the version of its text; None: there is no such file any more.
contents = st.none() | st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=3)
# One file changes before each run, and the run may die when all is written but its snapshot.
steps = st.lists(st.tuples(st.sampled_from(FILES), contents, st.booleans()), min_size=2, max_size=6)


def rows_of(content: list[tuple[int, int]]) -> list[dict[str, str]]:
    """The rows of a file: longer texts for higher ids, another last word for the other version."""
    return [{"id": f"doc-{i}", "text": f"{'time ' * (i + 1)}{'people' if v else 'year'}"} for i, v in content]


@pytest.mark.usefixtures("without_ray")
@given(history=steps)
@settings(
    max_examples=HISTORIES,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_each_id_is_embedded_once_whatever_came_and_went(tiny_model: Path, history: list[Any]) -> None:
    with TemporaryDirectory(prefix="embedfleet-histories-") as name:
        folder = Path(name)
        source = {"path": str(folder / "in"), "duplicates": "keep_first"}
        config = write_config(
            folder,
            tiny_model,
            source=source,
            gates={"max_rejected_fraction": 1.0, "max_dropped_fraction": 1.0},
            output={"keep": []},
        )
        dataset = locate(str(folder / "vectors"))
        files: dict[str, list[tuple[int, int]] | None] = {}
        for changed, content, dies in history:
            files[changed] = content
            (folder / "in" / f"{changed}.jsonl").unlink(missing_ok=True)
            if content is not None:
                write_jsonl(folder / "in" / f"{changed}.jsonl", rows_of(content))
            rows = [row for one in files.values() for row in rows_of(one or [])]
            if not rows:
                continue
            named = {record.key: record.bytes for record in latest_snapshot(dataset).records}
            number = latest_snapshot(dataset).number
            assert run_job("embed", config) == 0
            for key, size in named.items():
                assert (folder / "vectors" / "data" / f"{key}.parquet").stat().st_size == size, "an old snapshot's file"
            found = vectors_of(folder)
            assert sorted(found["doc_id"].to_pylist()) == sorted({row["id"] for row in rows})
            assert sum(record.rows for record in latest_snapshot(dataset).records) == len(rows)
            assert len(rows) - found.num_rows == sum(record.rejected for record in latest_snapshot(dataset).records)
            if dies and latest_snapshot(dataset).number > number:
                (folder / "vectors" / "snapshots" / f"{latest_snapshot(dataset).number:08d}.parquet").unlink()
            elif not dies:
                assert set(rejected_of(folder).values()) <= {"duplicate_id"}


@pytest.mark.usefixtures("without_ray")
def test_a_row_comes_back_when_the_one_that_had_its_id_goes(tmp_path: Path, tiny_model: Path) -> None:
    """And only its unit is embedded again; what an earlier snapshot names stays as it was."""
    source = {"path": str(tmp_path / "in"), "duplicates": "keep_first"}
    config = write_config(
        tmp_path, tiny_model, source=source, gates={"max_rejected_fraction": 1.0, "max_dropped_fraction": 1.0}
    )
    inside = tmp_path / "in"
    write_jsonl(inside / "a.jsonl", documents(10))
    write_jsonl(inside / "b.jsonl", documents(10, start=10))
    assert run_job("embed", config) == 0
    write_jsonl(inside / "c.jsonl", documents(20))
    write_jsonl(inside / "d.jsonl", [*documents(2), *documents(3, start=30)])
    assert run_job("embed", config) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "vectors" / "data").iterdir()}
    (inside / "b.jsonl").unlink()
    assert run_job("embed", config) == 0
    assert sorted(vectors_of(tmp_path)["doc_id"].to_pylist()) == sorted(
        row["id"] for row in [*documents(20), *documents(3, start=30)]
    )
    assert json.loads((tmp_path / "vectors" / "report.json").read_text())["counts"]["rows"] == 20
    assert run_job("verify", config) == 0
    (inside / "a.jsonl").unlink()
    assert run_job("embed", config) == 0
    assert sorted(vectors_of(tmp_path)["doc_id"].to_pylist()) == sorted(
        row["id"] for row in [*documents(20), *documents(3, start=30)]
    )
    assert run_job("verify", config) == 0
    after = {path.name: path.read_bytes() for path in (tmp_path / "vectors" / "data").iterdir()}
    assert {name: after[name] for name in before} == before


@pytest.mark.usefixtures("without_ray")
def test_what_a_dead_run_wrote_counts_only_where_its_ids_still_stand_nowhere_else(
    tmp_path: Path, tiny_model: Path
) -> None:
    """Each run writes its fragments and dies before its snapshot, and the source is another one at the next."""
    source = {"path": str(tmp_path / "in"), "duplicates": "keep_first"}
    config = write_config(
        tmp_path, tiny_model, source=source, gates={"max_rejected_fraction": 1.0, "max_dropped_fraction": 1.0}
    )
    inside, snapshots = tmp_path / "in", tmp_path / "vectors" / "snapshots"
    write_jsonl(inside / "a.jsonl", documents(10))
    write_jsonl(inside / "b.jsonl", documents(12))
    assert run_job("embed", config) == 0
    shutil.rmtree(snapshots)
    (inside / "a.jsonl").unlink()
    assert run_job("embed", config) == 0
    assert sorted(vectors_of(tmp_path)["doc_id"].to_pylist()) == sorted(row["id"] for row in documents(12))
    shutil.rmtree(snapshots)
    write_jsonl(inside / "c.jsonl", documents(12))
    assert run_job("embed", config) == 0
    assert sorted(vectors_of(tmp_path)["doc_id"].to_pylist()) == sorted(row["id"] for row in documents(12))
    written = len(list((tmp_path / "vectors" / "data").iterdir()))
    shutil.rmtree(snapshots)
    assert run_job("embed", config) == 0
    assert len(list((tmp_path / "vectors" / "data").iterdir())) == written, "nothing was to be done"


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("damage", ["cut", "emptied", "removed", "not Parquet"])
def test_a_damaged_file_is_made_anew(damage: str, tmp_path: Path, tiny_model: Path) -> None:
    """Of one kept snapshot too: the command that made it mends it, and nothing else is embedded again."""
    source = {"path": str(tmp_path / "in")}
    config = write_config(tmp_path, tiny_model, source=source)
    for number in range(3):
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", documents(8, start=8 * number))
        assert run_job("embed", config) == 0
    expected = vectors_of(tmp_path).sort_by("doc_id")
    files = sorted((tmp_path / "vectors" / "data").iterdir())
    whole = files[1].read_bytes()
    others = {path: path.stat().st_mtime_ns for path in files if path != files[1]}
    changed = {"cut": whole[: len(whole) // 2], "emptied": b"", "not Parquet": b"x" * (len(whole) - 1)}
    if damage == "removed":
        files[1].unlink()
    else:
        files[1].write_bytes(changed[damage])
    assert run_job("embed", config) == 0
    assert vectors_of(tmp_path).sort_by("doc_id").equals(expected)
    assert {path: path.stat().st_mtime_ns for path in others} == others
    assert run_job("verify", config) == 0


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("folder", ["data", "rejected"])
def test_a_row_comes_back_whatever_is_damaged_beside_it(folder: str, tmp_path: Path, tiny_model: Path) -> None:
    """Neither the ids of the file that went nor those of the rows that were left out need to be readable."""
    gates = {"max_rejected_fraction": 1.0, "max_dropped_fraction": 1.0}
    source = {"path": str(tmp_path / "in"), "duplicates": "keep_first"}
    config = write_config(tmp_path, tiny_model, source=source, gates=gates)
    for name in ("a", "b"):
        write_jsonl(tmp_path / "in" / f"{name}.jsonl", documents(6))
        assert run_job("embed", config) == 0
    damaged = [
        path for path in (tmp_path / "vectors" / folder).iterdir() if folder == "rejected" or "x" not in path.name
    ]
    assert len(damaged) == 1
    damaged[0].write_bytes(bytes(damaged[0].stat().st_size))
    (tmp_path / "in" / "a.jsonl").unlink()
    assert run_job("embed", config) == 0
    assert sorted(vectors_of(tmp_path)["doc_id"].to_pylist()) == sorted(row["id"] for row in documents(6))
