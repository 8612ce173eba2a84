"""The work of a few seconds is done without Ray, with the same outcome as on it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.embedding import in_process, small
from jobs.embedding.backlog import Backlog
from jobs.embedding.config import EmbedConfig
from jobs.embedding.identity import RECIPES
from operators.corpus.listing import list_source
from operators.corpus.units import plan_units
from operators.embedder.recipe.spec import embedder_spec
from operators.storage import locate
from operators.store.snapshots import Snapshot
from tests.jobs.running import (
    ROOT,
    documents,
    rejected_of,
    run_job,
    snapshot_of,
    start_job,
    vectors_of,
    write_config,
    write_jsonl,
)
from tests.jobs.test_poison import fragile_checkpoint

MARKER = "running-in-process"


def config_of(folder: Path, model: Path, **sections: Any) -> Path:
    """A config that leaves the workers to the job, as the README's does."""
    path = write_config(folder, model, **sections)
    values = yaml.safe_load(path.read_text())
    del values["compute"]
    path.write_text(yaml.safe_dump(values))
    return path


def run_alone(job: str, config: Path) -> tuple[int, str, set[str]]:
    """Run a job in a Python of its own: exit code, output, and whether it imported Ray and transformers."""
    code = (
        "import sys\nfrom jobs.command_line.main import main\n"
        f"code = main([{job!r}, {str(config)!r}])\n"
        "print('imported:', *({'ray', 'transformers'} & set(sys.modules)))\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    return done.returncode, done.stdout + done.stderr, set(last.removeprefix("imported:").split())


def comparable(table: pa.Table) -> list[dict[str, Any]]:
    """Rows without the vectors, which another batch rounds otherwise."""
    return table.drop_columns(["embedding"]).to_pylist()


def test_it_gives_what_ray_gives(tmp_path: Path, tiny_model: Path, local_ray: None) -> None:
    rows = [*documents(60), {"id": "empty", "text": ""}, {"id": None, "text": "no id"}]
    settings: dict[str, Any] = {"gates": {"max_rejected_fraction": 1.0}, "output": {"keep": ["lang"]}}
    rows = [{**row, "lang": "en"} for row in rows]
    for name in ("alone", "ray"):
        write_jsonl(tmp_path / name / "docs.jsonl", rows)
    config = config_of(tmp_path / "alone", tiny_model, **settings)
    code, output, imported = run_alone("embed", config)
    assert (code, imported) == (0, set()), output
    assert not (tmp_path / "alone" / "vectors" / MARKER).exists()
    assert run_job("embed", write_config(tmp_path / "ray", tiny_model, **settings)) == 0
    alone, on_ray = vectors_of(tmp_path / "alone"), vectors_of(tmp_path / "ray")
    paths = {"source_path": str(tmp_path / "ray" / "docs.jsonl")}
    assert [{**row, **paths} for row in comparable(alone)] == comparable(on_ray)
    cosines = [
        sum(a * b for a, b in zip(one, other, strict=True))
        for one, other in zip(alone["embedding"].to_pylist(), on_ray["embedding"].to_pylist(), strict=True)
    ]
    assert min(cosines) >= 0.9999
    assert set(rejected_of(tmp_path / "alone").values()) == set(rejected_of(tmp_path / "ray").values())
    assert run_job("verify", config) == 0
    assert run_job("embed", config) == 0
    assert snapshot_of(tmp_path / "alone").number == 1


def test_verify_says_what_it_says_on_ray(
    tmp_path: Path, tiny_model: Path, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a sound dataset, and of one with ids that come twice."""
    rows = [*documents(40), *documents(2, start=7)]
    write_jsonl(tmp_path / "docs.jsonl", rows)
    keep_all = {"source": {"duplicates": "keep_all", "rows_per_fragment": 10}}
    assert run_alone("embed", config_of(tmp_path, tiny_model, **keep_all))[0] == 0
    for settings, expected in ((keep_all, 0), ({"source": {"rows_per_fragment": 10}}, 3)):
        code, output, imported = run_alone("verify", config_of(tmp_path, tiny_model, **settings))
        assert (code, imported) == (expected, set()), output
        capsys.readouterr()
        assert run_job("verify", write_config(tmp_path, tiny_model, **settings)) == expected
        on_ray = capsys.readouterr().out
        assert steady(on_ray) == steady(output.split("imported:")[0])
    assert on_ray.count("is in the dataset more than once") == 2


def test_verify_finds_vectors_that_are_no_longer_what_was_written(tmp_path: Path, tiny_model: Path) -> None:
    write_jsonl(tmp_path / "docs.jsonl", documents(20))
    config = config_of(tmp_path, tiny_model, source={"rows_per_fragment": 10})
    assert run_alone("embed", config)[0] == 0
    [record, *_] = snapshot_of(tmp_path).records
    data = tmp_path / "vectors" / "data" / f"{record.key}.parquet"
    table = pq.read_table(data)
    doubled = pc.multiply(pc.list_flatten(table["embedding"]), 2.0).cast(pa.float32())
    vectors = pa.FixedSizeListArray.from_arrays(doubled.combine_chunks(), 32)
    pq.write_table(table.set_column(table.schema.get_field_index("embedding"), "embedding", vectors), data)
    code, output, _ = run_alone("verify", config)
    assert code == 3, output
    assert record.key in output


def steady(output: str) -> list[str]:
    """The lines of a report without the cosine, which another number of threads rounds otherwise."""
    return sorted(re.sub(r"cosine [0-9.]+", "cosine", line) for line in output.strip().splitlines())


@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_forms_of_the_vectors(dtype: str, tmp_path: Path, tiny_model: Path) -> None:
    write_jsonl(tmp_path / "docs.jsonl", documents(30))
    code, output, imported = run_alone("embed", config_of(tmp_path, tiny_model, output={"dtype": dtype}))
    assert (code, imported) == (0, set()), output
    assert vectors_of(tmp_path).num_rows == 30


def test_duplicate_ids_are_refused_and_nothing_is_written(tmp_path: Path, tiny_model: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", documents(5))
    write_jsonl(tmp_path / "b.jsonl", documents(2, start=4))
    source = {"path": [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]}
    code, output, _ = run_alone("embed", config_of(tmp_path, tiny_model, source=source))
    assert code == 2
    assert "1 rows have an id that came before ('doc-4')" in output
    assert not (tmp_path / "vectors").exists()


def test_of_duplicate_ids_the_first_is_kept(tmp_path: Path, tiny_model: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", documents(5))
    write_jsonl(tmp_path / "b.jsonl", documents(3, start=3))
    source = {"path": [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")], "duplicates": "keep_first"}
    config = config_of(tmp_path, tiny_model, source=source, gates={"max_rejected_fraction": 1.0})
    code, output, _ = run_alone("embed", config)
    assert code == 0, output
    assert rejected_of(tmp_path) == {"doc-3": "duplicate_id", "doc-4": "duplicate_id"}
    assert vectors_of(tmp_path)["doc_id"].to_pylist() == [f"doc-{i}" for i in range(6)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"hardware": {"name": "slow", "workers": 1, "tokens_per_second": 10.0}}, False),
        ({"hardware": {"name": "fast", "workers": 1, "tokens_per_second": 1e6}}, True),
        ({"compute": {"workers": [1, 1]}}, False),
        ({"compute": {"gpus_per_worker": 1}}, False),
        ({"compute": {"cpus_per_worker": 2}}, True),
        ({"embedder": {"device": "cuda"}}, False),
    ],
)
def test_what_is_brief(
    changes: dict[str, Any], expected: bool, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It follows from the model and the source, from a speed that the config states, and from what it asks of Ray."""
    monkeypatch.setattr(small, "_has_ray", lambda: False)
    write_jsonl(tmp_path / "docs.jsonl", documents(200))
    values = yaml.safe_load(config_of(tmp_path, tiny_model).read_text())
    config = EmbedConfig.model_validate({**values, **changes})
    spec = embedder_spec(config.model, config.embedder, RECIPES)
    dataset = locate(config.output.path)
    units = tuple(plan_units(list_source(config.source), config.source, (), 0, {}))
    assert in_process.is_brief(config, spec, dataset, Backlog(Snapshot(0, ()), units, {})) is expected
    (tmp_path / "vectors").mkdir()
    (tmp_path / "vectors" / MARKER).touch()
    assert not in_process.is_brief(config, spec, dataset, Backlog(Snapshot(0, ()), units, {}))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_document_that_kills_the_process_is_found_by_the_next_run(tmp_path: Path) -> None:
    model = fragile_checkpoint(tmp_path / "model", "government")
    rows = documents(40)
    rows[12]["text"] = "the government of the people"
    write_jsonl(tmp_path / "docs.jsonl", rows)
    config = config_of(tmp_path, model, embedder={"trust_remote_code": True}, gates={"max_rejected_fraction": 1.0})
    first = start_job("embed", config)
    output, _ = first.communicate(timeout=300)
    assert first.returncode == 1, output
    assert (tmp_path / "vectors" / MARKER).exists()
    second = start_job("embed", config)
    output, _ = second.communicate(timeout=500)
    assert second.returncode == 0, output
    assert rejected_of(tmp_path) == {"doc-12": "kills_worker"}
    assert vectors_of(tmp_path).num_rows == 39
    assert not (tmp_path / "vectors" / MARKER).exists()
    assert json.loads((tmp_path / "vectors" / "report.json").read_text())["counts"]["deaths"] >= 2
