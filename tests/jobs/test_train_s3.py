"""Training from S3 to S3, killed on the way: the losses of a local run, a whole model, and no secret left behind."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from sentence_transformers import SentenceTransformer

from operators.storage import Location, download, exists, iter_files, locate, read_bytes, write_whole
from tests.jobs.running import run_job, start_job
from tests.jobs.test_train import write_train_config
from tests.jobs.train_kills import kill_driver, losses_of
from tests.s3_servers import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("local_ray")]
STEPS = 200
SECTIONS: dict[str, Any] = {"steps": STEPS, "checkpoints": {"every": 10, "keep": STEPS}, "evaluation": {"every": 100}}


def s3_config(folder: Path, bucket: Location) -> Path:
    """The run of `write_train_config` with the set and the output in the bucket."""
    local = yaml.safe_load(write_train_config(folder, **SECTIONS).read_text())
    options = dict(bucket.options)
    write_whole(bucket / "in" / "pairs.jsonl", (folder / "pairs.jsonl").read_bytes())
    sets = [{**local["sets"][0], "path": f"{bucket.url}/in/pairs.jsonl", "storage_options": options}]
    changed = {"sets": sets, "output": {"path": f"{bucket.url}/run", "storage_options": options}}
    path = folder / "s3.yaml"
    path.write_text(yaml.safe_dump({**local, **changed, "prepared": {"cache_dir": str(folder / "cache")}}))
    return path


def test_a_run_on_s3_goes_on_after_its_driver_was_killed(
    server: S3Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bucket = locate(f"s3://{server.make_bucket()}", server.storage_options)
    config = s3_config(tmp_path, bucket)
    process = start_job("train", config)
    while process.poll() is None and not states_at(bucket / "run"):
        time.sleep(0.1)
    kill_driver(process)
    before = states_at(bucket / "run")
    assert not exists(bucket / "run" / "report.json"), "killed too late"
    assert run_job("train", config) == 0
    report = json.loads(read_bytes(bucket / "run" / "report.json"))
    after = states_at(bucket / "run")
    assert {name: after[name] for name in before} == before, "it went on from the last state"
    assert len(after) == STEPS / 10
    model = tmp_path / "model-of-s3"
    for info in iter_files(bucket / "run" / "model"):
        name = info.url.removeprefix((bucket / "run" / "model").url + "/")
        download(bucket / "run" / "model" / name, model / name)
    assert SentenceTransformer(str(model), device="cpu").encode(["a text"]).shape == (1, 32)
    assert (model / "README.md").exists()
    assert_no_secret(server, bucket, "".join(capfd.readouterr()))
    assert run_job("train", write_train_config(tmp_path, **SECTIONS)) == 0
    # a set's rows come in an order that does not depend on where it is, so the losses are those of local files
    assert report["curve"]["steps"]["loss"] == losses_of(tmp_path / "out")
    assert (model / "model.safetensors").read_bytes() == (tmp_path / "out/model/model.safetensors").read_bytes()


def states_at(output: Location) -> dict[str, float | None]:
    """The states that are whole, with the moment at which each was written."""
    ends = [info for info in iter_files(output / "checkpoints") if info.name == "progress.json"]
    return {info.url.split("/")[-2]: info.modified for info in ends}


def assert_no_secret(server: S3Server, bucket: Location, log: str) -> None:
    """Neither key nor secret in any object, nor in what was printed."""
    contents = {info.url: read_bytes(locate(info.url, bucket.options)) for info in iter_files(bucket)}
    names = {url.rsplit("/", 1)[-1] for url in contents}
    assert names >= {"run.json", "report.json", "report.html", "README.md", "manifest.json", "progress.json"}
    assert "checkpoint_manager_snapshot.json" in names
    assert any("tensorboard" in url for url in contents)
    contents["the log"] = log.encode()
    for secret in (server.key, server.secret):
        assert [where for where, content in contents.items() if secret.encode() in content] == []
