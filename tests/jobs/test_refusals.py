"""What is wrong with a config or an input is said before anything is written: exit code 2, and a line that helps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.command_line.config_file import load_config
from jobs.training.config import TrainConfig
from tests.jobs.running import documents, run_job, write_config, write_jsonl


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object) -> str:
    """Run a job that must be refused; returns the first line of its error."""
    capsys.readouterr()
    assert run_job(*arguments) == 2
    assert not list((folder / "vectors").rglob("*.parquet"))
    return capsys.readouterr().err.splitlines()[0]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("source.colour=red", "source.colour: unknown key (value 'red'); expected one of: path, format"),
        ("compute.workers=[3, 1]", "min <= max"),
        ("output.dtype=float64", "output.dtype"),
        ("source.path=/nowhere/*.jsonl", "check source.path"),
        ("source.path=https://host.example/a.jsonl?X-Amz-Signature=abcdef012", "signed URL"),
        ("source.path=[a.jsonl,'sftp://me:hunter22@host.example/b.jsonl']", "put passwords into storage_options"),
        ("source.text=body", "set source.text to a column that exists: 'body'"),
        ("source.id=key", "set source.id to a column that exists: 'key'"),
        ("output.keep=[lang]", "set output.keep to a column that exists: 'lang'"),
        ("output.keep=[embedding]", "take 'embedding' out of output.keep"),
        ("source.text={title", "does not parse"),
        ("model=nonesuch", "unknown model 'nonesuch'"),
        ("output.path=nofs://x/y", "check the scheme"),
        ("chunking={tokens: 10, overlap: 10}", "overlap"),
    ],
)
def test_a_wrong_config_is_refused(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], override: str, expected: str
) -> None:
    write_jsonl(tmp_path / "docs.jsonl", documents(3))
    config = write_config(tmp_path, tiny_model)
    told = refused(capsys, tmp_path, "embed", config, override)
    assert expected in told
    assert "hunter22" not in told
    assert "abcdef012" not in told


def test_a_text_column_of_numbers_is_refused(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "docs.jsonl", [{"id": 1, "text": 2}])
    assert "set source.text to a column of strings" in refused(
        capsys, tmp_path, "embed", write_config(tmp_path, tiny_model)
    )


def test_an_empty_folder_is_refused(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    config = write_config(tmp_path, tiny_model, source={"path": str(tmp_path / "empty")})
    assert "check source.path" in refused(capsys, tmp_path, "embed", config)


def test_files_of_no_known_format_are_refused(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus.xyz").write_text("x")
    config = write_config(tmp_path, tiny_model, source={"path": str(tmp_path / "corpus.xyz")})
    assert "set source.format" in refused(capsys, tmp_path, "embed", config)


@pytest.mark.usefixtures("without_ray")
def test_an_output_of_another_model_is_refused(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "docs.jsonl", documents(3))
    config = write_config(tmp_path, tiny_model)
    assert run_job("embed", config) == 0
    capsys.readouterr()
    assert run_job("embed", config, "embedder.max_tokens=32") == 2
    assert "choose another output.path" in capsys.readouterr().err


@pytest.mark.usefixtures("local_ray")
def test_duplicate_ids_stop_the_job_before_anything_is_written(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "docs.jsonl", [*documents(5), {"id": "doc-3", "text": "again"}])
    message = refused(capsys, tmp_path, "embed", write_config(tmp_path, tiny_model))
    assert "'doc-3'" in message
    assert "source.duplicates" in message


def test_help_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_job("embed", "--help") == 0
    text = capsys.readouterr().out
    for key in ("source.path", "embedder.dims", "chunking.overlap", "output.dtype", "compute.workers"):
        assert key in text
    assert run_job() == 0
    assert "vacuum" in capsys.readouterr().out


def test_help_lists_the_keys_of_each_kind_of_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_job("train", "--help") == 0
    text = capsys.readouterr().out
    for key in ("sets.objective.loss=triplet", "sets.objective.distance", "teachers.kind=judge", "teachers.answers"):
        assert key in text
    assert "objective:  loss of all sets" in text
    assert "keys as of sets.objective" in text


def test_unknown_keys_of_one_kind_of_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "train.yaml"
    config.write_text(
        "{model: minilm, sets: [{path: x.jsonl}], output: {path: out},\n"
        "objective: {loss: triplet, margins: 1}, teachers: [{kind: judge, lable: 1}]}"
    )
    assert run_job("train", config) == 2
    error = capsys.readouterr().err
    assert (
        "objective.margins: unknown key (value 1); expected one of: matryoshka, flops, loss, margin, distance" in error
    )
    assert "teachers.0.lable: unknown key" in error
    assert "prompt, answers" in error
    assert "sets.0.name: this key is required" in error
    assert "at least 1 item" not in error


def test_overrides_reach_into_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "train.yaml"
    config.write_text("{model: minilm, sets: [{name: one, path: x.jsonl, kind: pairs}], output: {path: out}}")
    assert load_config(TrainConfig, config, ["sets.0.path=y.jsonl"]).sets[0].path == "y.jsonl"
    assert load_config(TrainConfig, config, ["sets.0.query.role=document"]).sets[0].query.role == "document"
    for override in ("sets.1.path=y.jsonl", "sets.path=y.jsonl"):
        assert "is no place in a list of 1: they count from 0" in refused(capsys, tmp_path, "train", config, override)


@pytest.mark.parametrize("objective", ["{temperature: 1}", "{loss: infonce}"])
def test_unknown_kind_of_a_section(tmp_path: Path, capsys: pytest.CaptureFixture[str], objective: str) -> None:
    config = tmp_path / "train.yaml"
    sets = "[{name: pairs, path: x.jsonl, kind: pairs}]"
    config.write_text(f"{{model: minilm, sets: {sets}, output: {{path: out}}, objective: {objective}}}")
    assert "error: objective.loss: expected one of: info_nce, triplet," in refused(capsys, tmp_path, "train", config)


def test_plan_reads_a_sample_and_embeds_nothing(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "docs.jsonl", documents(400))
    hardware = {"name": "test", "tokens_per_second": 1000, "workers": 2, "price_per_hour": 3.6}
    config = write_config(tmp_path, tiny_model, hardware=hardware)
    assert run_job("plan", config) == 0
    plan = json.loads((tmp_path / "vectors" / "plan.json").read_text())
    assert plan["documents"]["value"] == 400
    assert "tokens" in capsys.readouterr().out
    assert not (tmp_path / "vectors" / "data").exists()


@pytest.mark.usefixtures("without_ray")
def test_chunks_longer_than_the_model_reads_are_refused(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "docs.jsonl", documents(3))
    message = refused(capsys, tmp_path, "embed", write_config(tmp_path, tiny_model), "chunking.tokens=300")
    assert "chunking.tokens" in message


@pytest.mark.parametrize(
    "override",
    ["output.storage_options.secret={CANARY-1: [", "CANARY-1", "model.x=CANARY-1", "output.path.x=*CANARY-1"],
)
def test_no_refusal_of_an_override_tells_its_value(
    override: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("model: CANARY-2\noutput: {path: CANARY-2}\n")
    assert run_job("embed", config, override) == 2
    assert "CANARY" not in "".join(capsys.readouterr())


def test_no_refusal_of_a_config_tells_what_it_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    for text in ("secret: {CANARY: [\n", "- secret: CANARY\n", "secret: *CANARY\n"):
        config.write_text(text)
        assert run_job("embed", config) == 2
        assert "CANARY" not in "".join(capsys.readouterr())
