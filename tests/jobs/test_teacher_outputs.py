"""Teachers' outputs computed on Ray: aligned with the rows, once, gone on with, on S3, and after processes died."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import safetensors.torch
import torch
import transformers
from sentence_transformers import CrossEncoder, SentenceTransformer

from jobs.command_line.config_file import check_config
from jobs.embedding.config import Compute
from jobs.teachers.outputs import TeacherOutputs, compute_teacher_outputs, plan_teacher_outputs
from jobs.teachers.work import Wanted
from jobs.teachers.workers import Setup, TeacherWorker, read, work_row
from jobs.training.config import TrainConfig
from jobs.training.data import PreparedSet, prepare_sets
from operators.errors import InputError
from operators.storage import iter_files, locate, write_whole
from operators.storage.cache import Cache
from operators.teachers.config import Teacher
from operators.teachers.outputs import PIECE_ROWS
from operators.training.data.prepared import Split
from operators.work.guard import PATIENCE, AttemptLedger
from tests.checkpoints import tiny_bert, tiny_decoder
from tests.operators.teachers.rows import teacher_of, text
from tests.operators.teachers.test_cross_encoder import classifier
from tests.operators.teachers.test_judge import alone
from tests.s3_servers import S3Server

pytestmark = pytest.mark.usefixtures("local_ray")

ONE = Compute(workers=(1, 1))
TWO = Compute(workers=(2, 2))


def rows_of(start: int, end: int) -> list[dict[str, Any]]:
    """Triples with texts that come again."""
    return [
        {"query": f"{text(i % 300, 9)} {i}", "positive": text(i % 37, 9), "negative": [text(50 + i % 41, 9)]}
        for i in range(start, end)
    ]


def prepared_set(source: str, output: str, options: dict[str, Any] | None = None, **settings: Any) -> PreparedSet:
    """A set of triples in which a tenth is held back."""
    shared = {"storage_options": options or {}}
    chosen = {"name": "triples", "path": source, "kind": "triples", "dev_fraction": 0.1, **shared, **settings}
    values = {"sets": [chosen], "batch": {"size": 16}, "output": {"path": output, **shared}}
    return prepare_sets(check_config(TrainConfig, {"model": "minilm", **values}, []))[0]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> PreparedSet:
    """A set of two pieces for training, and one held back."""
    folder = tmp_path_factory.mktemp("set")
    (folder / "rows.jsonl").write_bytes(lines(rows_of(0, 2600)))
    found = prepared_set(str(folder / "rows.jsonl"), str(folder / "run"))
    assert PIECE_ROWS < found.manifest.rows("train") < 2 * PIECE_ROWS
    return found


def texts_of(prepared: PreparedSet, split: Any, rows: np.ndarray) -> list[list[str]]:
    taken = prepared.rows(split, Cache.at(None)).take(rows).to_pylist()
    return [[row["query"], *row["documents"]] for row in taken]


@pytest.fixture(scope="module")
def embedder(tiny_model: Path) -> Teacher:
    return teacher_of(kind="embedder", name="small", model=str(tiny_model))


@pytest.fixture(scope="module")
def said(prepared: PreparedSet, embedder: Teacher) -> TeacherOutputs:
    """What a teacher says of the set, as the cost was estimated before."""
    (cost,) = plan_teacher_outputs([(prepared, embedder)])
    (outputs,) = compute_teacher_outputs([(prepared, embedder)], ONE)
    assert cost is not None
    assert cost.rows == prepared.manifest.counts.kept
    assert cost.inputs == pytest.approx(outputs.manifest.num_inputs, rel=0.1)
    assert cost.tokens == pytest.approx(outputs.manifest.num_tokens, rel=0.1)
    assert str(cost).startswith(f"{cost.rows:,} rows: about {cost.inputs:,} texts and ")
    return outputs


@pytest.mark.parametrize(("split", "rows"), [("train", [2300, 5, 2047, 2048, 5]), ("dev", [100, 0])])
def test_vectors_are_aligned_with_the_rows_of_the_set(
    split: Split, rows: list[int], prepared: PreparedSet, said: TeacherOutputs, tiny_model: Path
) -> None:
    theirs = SentenceTransformer(str(tiny_model), device="cpu")
    expected = np.stack([theirs.encode(row) for row in texts_of(prepared, split, np.array(rows))])
    found = said.rows(split, Cache.at(None))
    assert len(found) == prepared.manifest.rows(split)
    np.testing.assert_allclose(found.vectors(np.array(rows)), expected, atol=1e-3)  # of float16
    cosines = [[row[0] @ row[1], row[0] @ row[2]] for row in expected]
    np.testing.assert_allclose(found.scores(np.array(rows)), cosines, atol=1e-3)
    # Documents come again and again: of the three texts of a row about one is new.
    assert said.manifest.num_inputs < 1.2 * prepared.manifest.counts.kept


def test_what_is_there_is_not_computed_again(prepared: PreparedSet, said: TeacherOutputs, embedder: Teacher) -> None:
    folder = Path(said.folder.path)
    every = np.arange(prepared.manifest.rows("train"))
    before = said.rows("train", Cache.at(None)).vectors(every)
    (folder / "manifest.json").unlink()  # of a run that was stopped after two of its three pieces
    (folder / f"train-{0:012d}.json").unlink()
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir() if f"train-{0:012d}" not in path.name}
    (again,) = compute_teacher_outputs([(prepared, embedder)], ONE)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert again.manifest == said.manifest
    np.testing.assert_array_equal(again.rows("train", Cache.at(None)).vectors(every), before)

    part = Path(prepared.folder.path) / prepared.manifest.parts[0].table.name
    content = part.read_bytes()
    try:
        part.write_bytes(b"x" * len(content))  # nothing that would read
        assert compute_teacher_outputs([(prepared, embedder)], ONE) == (again,)
        assert plan_teacher_outputs([(prepared, embedder)]) == (None,)
    finally:
        part.write_bytes(content)


@pytest.mark.slow
def test_several_teachers_say_what_each_says_alone(prepared: PreparedSet, tmp_path: Path) -> None:
    folder = classifier(tmp_path / "scorer", 1)
    decoder = tiny_decoder(tmp_path / "judge", kind="qwen2", auto=transformers.AutoModelForCausalLM)
    scorer = teacher_of(kind="cross_encoder", name="pairs", checkpoint=str(folder))
    prompt = "{query} is about {document}:"
    judge = teacher_of(kind="judge", name="judge", checkpoint=str(decoder), prompt=prompt, answers=("Y", "N"))
    found = compute_teacher_outputs([(prepared, scorer), (prepared, judge)], TWO)
    asked = np.array([2300, 5, 2047, 2048, 5])
    scores_BK, judged_BK = (outputs.rows("train", Cache.at(None)).scores(asked) for outputs in found)
    texts = texts_of(prepared, "train", asked)
    pairs = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())
    logits = pairs.predict([(row[0], document) for row in texts for document in row[1:]], show_progress_bar=False)
    np.testing.assert_allclose(scores_BK.reshape(-1), logits, atol=1e-4)
    odds = [[alone(decoder, prompt, row[0], document) for document in row[1:]] for row in texts]
    np.testing.assert_allclose(judged_BK, odds, atol=1e-3)


def test_a_row_that_kills_processes_is_named(prepared: PreparedSet, embedder: Teacher) -> None:
    wanted = Wanted.of(prepared, embedder)
    piece, ledger = wanted.pieces[1], AttemptLedger()
    key = f"{wanted.spec.fingerprint}:{piece.key}"
    for _ in range(PATIENCE + 3):  # attempts that ended when the same row was in work
        ledger.begin(key, piece.rows)
        ledger.mark(key, 17, 18)
    setup = Setup((wanted,), 1, None, ledger)
    with pytest.raises(InputError, match=rf"look at number {PIECE_ROWS + 17} of the train rows of 'triples'.*'small'"):
        TeacherWorker(setup)(read(work_row(0, piece), setup))


def test_a_row_without_a_vector_is_named(prepared: PreparedSet, tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "bert")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    word = transformers.AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("mother")
    weights["embeddings.word_embeddings.weight"][word] = torch.nan
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    wanted = Wanted.of(prepared, teacher_of(kind="embedder", model=str(folder)))
    setup = Setup((wanted,), 1, None, AttemptLedger())
    rows = texts_of(prepared, "train", np.arange(99))
    expected = next(number for number, texts in enumerate(rows) if "mother" in " ".join(texts))
    with pytest.raises(InputError, match=f"check the teacher 't': it gives NaN, .* for number {expected} of the train"):
        TeacherWorker(setup)(read(work_row(0, wanted.pieces[0]), setup))


@pytest.mark.slow
def test_outputs_on_s3_are_those_of_local_files(tiny_model: Path, tmp_path: Path, moto_server: S3Server) -> None:
    teacher: Teacher = teacher_of(kind="embedder", model=str(tiny_model))
    content = lines(rows_of(0, 200))
    (tmp_path / "rows.jsonl").write_bytes(content)
    bucket = locate(f"s3://{moto_server.make_bucket()}", moto_server.storage_options)
    write_whole(bucket / "rows.jsonl", content)
    here = prepared_set(str(tmp_path / "rows.jsonl"), str(tmp_path / "run"))
    there = prepared_set(f"{bucket.url}/rows.jsonl", f"{bucket.url}/run", moto_server.storage_options)
    cache = Cache.at(str(tmp_path / "cache"))
    found = compute_teacher_outputs([(here, teacher), (there, teacher)], ONE, cache.folder)
    local, remote = (outputs.rows("train", cache) for outputs in found)
    asked = np.arange(len(local))
    np.testing.assert_array_equal(local.vectors(asked), remote.vectors(asked))
    stored = [file.url for file in iter_files(bucket / "run")]
    assert sum("/teachers/" in url for url in stored) == 2 * 3 + 1  # two pieces of three files, and the manifest
    for url in stored:
        assert moto_server.secret.encode() not in locate(url, moto_server.storage_options).fs.cat_file(url)


@pytest.mark.slow
def test_workers_that_die_are_replaced(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(lines(rows_of(0, 30_000)))
    prepared = prepared_set(str(tmp_path / "rows.jsonl"), str(tmp_path / "run"))
    teacher = teacher_of(kind="embedder", model=str(tiny_model))
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while len(killed) < 2 and time.monotonic() < deadline:
            for process in psutil.Process().children(recursive=True):
                if process.pid not in killed and any("TeacherWorker" in part for part in process.cmdline()[:1]):
                    time.sleep(1.0)
                    os.kill(process.pid, 9)
                    killed.append(process.pid)
                    break
            time.sleep(0.1)

    killer = threading.Thread(target=kill)
    killer.start()
    (found,) = compute_teacher_outputs([(prepared, teacher)], TWO)
    killer.join()
    assert len(killed) == 2
    rows = found.rows("train", Cache.at(None))
    assert len(rows) == prepared.manifest.rows("train")
    asked = np.random.default_rng(0).integers(0, len(rows), 64)
    theirs = SentenceTransformer(str(tiny_model), device="cpu")
    expected = np.stack([theirs.encode(row) for row in texts_of(prepared, "train", asked)])
    np.testing.assert_allclose(rows.vectors(asked), expected, atol=1e-3)
