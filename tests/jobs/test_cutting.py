"""Work cut by time: sizes that an output keeps, and outputs that were begun before there were such sizes."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from pathlib import Path

import pytest
import yaml

from jobs.embedding.config import EmbedConfig
from jobs.embedding.identity import RECIPES, cut_as, identify
from operators.corpus.listing import list_source
from operators.corpus.source import Source
from operators.corpus.units import plan_units
from operators.embedder.recipe.spec import embedder_spec
from operators.storage import locate
from operators.store.dataset import Identity, claim_identity
from operators.work.fragment import SourceFile
from tests.jobs.running import documents, run_job, snapshot_of, vectors_of, write_config, write_jsonl

SLOW = {"name": "slow", "tokens_per_second": 100.0}


def identified(path: Path) -> tuple[EmbedConfig, Identity]:
    """A config file with its output's fragments, and the identity of that output."""
    config = EmbedConfig.model_validate(yaml.safe_load(path.read_text()))
    spec = embedder_spec(config.model, config.embedder, RECIPES)
    identity, files = identify(config, spec, locate(config.output.path), 0, list_source(config.source))
    assert list(files) == list(list_source(config.source))
    return cut_as(config, identity), identity


def test_a_stream_is_cut_for_all_workers_and_keeps_its_cuts(
    local_ray: None, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = documents(3000)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "docs.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    source = {"path": str(tmp_path / "docs.jsonl.gz")}
    config = write_config(tmp_path, tiny_model, source=source, compute={"workers": [2, 2]}, hardware=SLOW)
    assert run_job("embed", config) == 0
    records = snapshot_of(tmp_path).records
    assert len(records) >= 8
    whole = [record.rows for record in records if not record.fragment.last]
    assert max(whole) < 1.5 * min(whole)
    assert sum(record.rows for record in records) == 3000
    assert len(set(vectors_of(tmp_path)["doc_id"].to_pylist())) == 3000
    capsys.readouterr()
    # another speed and other workers cut a new output otherwise, and not this one
    config = write_config(tmp_path, tiny_model, source=source, compute={"workers": [1, 9]})
    assert run_job("embed", config) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_an_output_without_sizes_goes_on_as_it_was(
    local_ray: None, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(300):  # so many small files are packed
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", documents(2, start=2 * number))
    source = {"path": str(tmp_path / "in")}
    (tmp_path / "vectors").mkdir()
    _, identity = identified(write_config(tmp_path, tiny_model, source=source))
    before = {k: getattr(identity, k) for k in Identity.__dataclass_fields__ if not k.startswith("fragment_")}
    (tmp_path / "vectors" / "dataset.json").write_text(json.dumps({**before, "pack_below_bytes": 65536}))
    config = write_config(tmp_path, tiny_model, source=source, hardware=SLOW)
    assert run_job("embed", config) == 0
    read = Source(path=source["path"], id="id")
    units = {unit.digest for unit in plan_units(list_source(read), read, (), 65536, {})}
    assert {record.fragment.unit.digest for record in snapshot_of(tmp_path).records} == units
    assert "fragment_rows" not in json.loads((tmp_path / "vectors" / "dataset.json").read_text())
    capsys.readouterr()
    assert run_job("embed", config) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_units_of_outputs_without_sizes_have_the_keys_that_they_had() -> None:
    draw = random.Random(7)
    files = [SourceFile(f"/none/{i:06d}.txt", draw.randint(0, 90 << 10), "1") for i in range(3000)]
    sources = {
        "c2fe0ad1bdea8db6": Source(path="/none"),
        "5607bdb349ffbe98": Source(path="/none", image="image", format="image"),
        "f59603947c05ff1c": Source(path="/none", id="id", rows_per_fragment=100),
    }
    for expected, source in sources.items():
        digests = "".join(unit.digest for unit in plan_units(files, source, ("a",), 65536, {}))
        assert hashlib.sha256(digests.encode()).hexdigest()[:16] == expected


def test_what_the_config_says_of_fragments_wins(tmp_path: Path, tiny_model: Path) -> None:
    write_jsonl(tmp_path / "docs.jsonl", documents(2000))
    by_rows, identity = identified(write_config(tmp_path, tiny_model, source={"rows_per_fragment": 30}, hardware=SLOW))
    assert (by_rows.source.max_rows, by_rows.source.max_bytes) == (30, 8 << 20)
    assert identity.cut == (0, 30, 8 << 20)
    by_time, identity = identified(write_config(tmp_path, tiny_model, hardware=SLOW))
    assert 1 < by_time.source.max_rows < 2000
    assert identity.cut == (0, by_time.source.max_rows, by_time.source.max_bytes)


def test_a_gpu_and_a_fast_model_get_the_largest_fragments(tmp_path: Path, tiny_model: Path) -> None:
    write_jsonl(tmp_path / "docs.jsonl", documents(2000))
    on_gpu, _ = identified(write_config(tmp_path, tiny_model, compute={"gpus_per_worker": 1}, hardware=SLOW))
    fast, _ = identified(write_config(tmp_path, tiny_model))
    for config in (on_gpu, fast):
        assert (config.source.max_rows, config.source.max_bytes) == (16384, 8 << 20)


def test_more_workers_have_smaller_fragments(tmp_path: Path, tiny_model: Path) -> None:
    write_jsonl(tmp_path / "docs.jsonl", documents(20_000))
    sizes = []
    for workers in (1, 2, 8):
        config = write_config(
            tmp_path, tiny_model, compute={"workers": [1, workers]}, hardware={**SLOW, "tokens_per_second": 1000.0}
        )
        sizes.append(identified(config)[0].source.max_rows)
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


@pytest.mark.slow
def test_a_run_that_was_overtaken_by_another_with_other_fragments_goes_by_those(
    local_ray: None, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "docs.jsonl", documents(100))
    config = write_config(tmp_path, tiny_model, hardware=SLOW)
    calls = 0

    def claim_second(dataset: object, wanted: Identity) -> Identity:
        nonlocal calls
        calls += 1
        if calls == 1:
            _, other = identified(write_config(tmp_path, tiny_model, source={"rows_per_fragment": 40}))
            claim_identity(locate(str(tmp_path / "vectors")), other)
            write_config(tmp_path, tiny_model, hardware=SLOW)
        return claim_identity(locate(str(tmp_path / "vectors")), wanted)

    monkeypatch.setattr("jobs.embed.claim_identity", claim_second)
    assert run_job("embed", config) == 0
    assert calls == 2
    assert [record.rows for record in snapshot_of(tmp_path).records] == [40, 40, 20]
