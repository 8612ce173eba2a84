"""Models on object storage: the same vectors as from the folder, fetched once, and anew when they were written anew."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import torch

from operators.embedder.factory import load_embedder
from operators.embedder.recipe import remote_folder
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import EmbedderSpec, embedder_spec
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.errors import InputError
from operators.storage import locate, upload_folder
from operators.training.config.tuning import Tuning
from operators.training.model.encoder import Encoder
from operators.training.model.export import export
from tests.checkpoints import tiny_bert
from tests.s3_servers import S3Server

RECIPES = Path("configs/models")


@pytest.fixture
def bucket(moto_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    for name, value in moto_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    return f"s3://{moto_server.make_bucket()}"


def spec_of(model: str) -> EmbedderSpec:
    return embedder_spec(model, EmbedderConfig(), RECIPES)


def vectors_of(spec: EmbedderSpec) -> np.ndarray:
    texts = pa.array(["time people year", "hand"])
    return np.asarray(load_embedder(spec)(Tokenizer(spec)(texts).input_ids).values_ND)


@pytest.mark.parametrize("is_trained", [False, True])
def test_it_is_the_model_of_the_folder(bucket: str, tmp_path: Path, is_trained: bool) -> None:
    folder = tiny_bert(tmp_path / "tiny")
    if is_trained:  # with a recipe of its own
        encoder = Encoder(spec_of(str(folder)), Tuning(precision="float32"), torch.device("cpu"))
        folder = tmp_path / "trained"
        export(encoder, folder)
    upload_folder(folder, locate(f"{bucket}/model"))
    there, here = spec_of(f"{bucket}/model"), spec_of(str(folder))
    assert there.fingerprint == here.fingerprint
    assert there.recipe.checkpoint == f"{bucket}/model"  # which every worker fetches for itself
    np.testing.assert_array_equal(vectors_of(there), vectors_of(here))


def test_files_are_fetched_once_until_they_are_written_anew(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    download = remote_folder.download

    def counted(location: object, file: Path) -> None:
        fetched.append(str(file))
        download(location, file)  # type: ignore[arg-type]

    monkeypatch.setattr(remote_folder, "download", counted)
    upload_folder(tiny_bert(tmp_path / "one"), locate(f"{bucket}/model"))
    first = vectors_of(spec_of(f"{bucket}/model"))
    assert sorted(fetched) == sorted(set(fetched))
    fetched.clear()
    np.testing.assert_array_equal(vectors_of(spec_of(f"{bucket}/model")), first)
    assert fetched == []
    upload_folder(tiny_bert(tmp_path / "other", seed=5), locate(f"{bucket}/model"))
    assert np.abs(vectors_of(spec_of(f"{bucket}/model")) - first).max() > 1e-3


def test_a_place_without_files_is_refused(bucket: str) -> None:
    with pytest.raises(InputError, match="check the path of the checkpoint: there is no file below"):
        spec_of(f"{bucket}/nothing")
