"""Students of tiny teachers of each family: their states are those of the teacher's layers, run one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pydantic
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sklearn.decomposition import TruncatedSVD

from operators.embedder.engine import Embedder
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import EmbedderSpec, embedder_spec
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.errors import InputError
from operators.training.model.student import Student, make_student, principal_directions, spread_layers
from tests.checkpoints import WORDS, minilm_folder, tiny_bert, tiny_decoder, tiny_encoder

TEXTS = [" ".join(WORDS[(7 * i + j) % len(WORDS)] for j in range(1 + 5 * i % 23)) for i in range(60)]


def spec_of(folder: Path | str) -> EmbedderSpec:
    return embedder_spec(str(folder), EmbedderConfig(), Path("configs/models"))


def embed(folder: Path, texts: list[str]) -> Any:
    spec = spec_of(folder)
    return Embedder(spec, device="cpu")(Tokenizer(spec)(pa.array(texts)).input_ids).values_ND


def skipped(folder: Path, layers: list[int], texts: list[str]) -> Any:
    """Vectors of the teacher whose other layers hand on what they get, by plain transformers code."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    stack = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 6)
    for number, layer in enumerate(stack):
        if number not in layers:
            in_tuple = model.config.model_type == "mpnet"
            layer.forward = lambda states, *rest, in_tuple=in_tuple, **named: (states,) if in_tuple else states
    tokenizer = Tokenizer(spec_of(folder))
    vectors = []
    with torch.inference_mode():
        for ids in tokenizer(pa.array(texts)).input_ids.to_pylist():
            states_LD = model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
            vectors.append(torch.nn.functional.normalize(states_LD.mean(dim=0), dim=0).numpy())
    return np.array(vectors)


def teacher_of(kind: str, folder: Path) -> Path:
    """A teacher of six layers, of which those of Gemma 3, Qwen 2 and ModernBERT are of two kinds."""
    if kind == "bert":
        return tiny_bert(folder, layers=6)
    if kind in ("roberta", "xlm-roberta", "mpnet", "modernbert"):
        return tiny_encoder(folder, kind=kind, layers=6)  # type: ignore[arg-type]  # one of its kinds
    fields: dict[str, Any] = {
        "gemma3": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 3},
        "qwen2": {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 3},
    }.get(kind, {})
    return tiny_decoder(folder, kind=kind, layers=6, **fields)  # type: ignore[arg-type]  # one of its kinds


@pytest.mark.parametrize(
    "kind",
    ["bert", "roberta", "xlm-roberta", "mpnet", "modernbert", "mistral", "llama", "qwen2", "qwen3", "gemma3", "opt"],
)
def test_a_student_has_the_states_of_the_layers_it_keeps(kind: str, tmp_path: Path) -> None:
    teacher = teacher_of(kind, tmp_path / "teacher")
    kept = make_student(spec_of(teacher), Student(layers=(0, 3, 4)), tmp_path / "student")
    assert kept == (0, 3, 4)
    vectors_ND = embed(tmp_path / "student", TEXTS[:8])
    np.testing.assert_allclose(vectors_ND, skipped(teacher, [0, 3, 4], TEXTS[:8]), atol=2e-5)
    assert np.abs(vectors_ND - embed(teacher, TEXTS[:8])).max() > 0.01
    config = transformers.AutoConfig.from_pretrained(tmp_path / "student")
    assert config.num_hidden_layers == 3
    assert len(getattr(config, "layer_types", None) or range(3)) == 3


def test_layers_are_spread_as_distilbert_has_them() -> None:
    assert spread_layers(12, 6) == (0, 2, 4, 7, 9, 11)
    assert spread_layers(6, 3) == (0, 3, 5)
    assert spread_layers(6, 6) == (0, 1, 2, 3, 4, 5)
    assert spread_layers(6, 1) == (0,)


def test_a_student_is_what_sentence_transformers_loads(tmp_path: Path) -> None:
    teacher = tiny_bert(tmp_path / "teacher", layers=6, prompts={"query": "for the "}, pooling="cls")
    make_student(spec_of(teacher), Student(num_layers=2), tmp_path / "student")
    theirs = SentenceTransformer(str(tmp_path / "student"), device="cpu")
    np.testing.assert_allclose(embed(tmp_path / "student", TEXTS), theirs.encode(TEXTS), atol=1e-5)
    assert theirs.prompts["query"] == "for the "


def test_the_projection_keeps_cosines_as_a_truncated_svd_does(tmp_path: Path) -> None:
    teacher = tiny_bert(tmp_path / "teacher", layers=6)
    everything = Student(num_layers=6, dims=8)
    make_student(spec_of(teacher), everything, tmp_path / "student", TEXTS)
    wide_ND, narrow_NP = embed(teacher, TEXTS), embed(tmp_path / "student", TEXTS)
    svd_NP = TruncatedSVD(8, algorithm="arpack", random_state=0).fit(wide_ND).transform(wide_ND)
    svd_NP /= np.linalg.norm(svd_NP, axis=1, keepdims=True)
    np.testing.assert_allclose(narrow_NP @ narrow_NP.T, svd_NP @ svd_NP.T, atol=1e-4)
    theirs = SentenceTransformer(str(tmp_path / "student"), device="cpu")
    np.testing.assert_allclose(narrow_NP, theirs.encode(TEXTS), atol=1e-5)


def test_directions_are_orthonormal() -> None:
    vectors_ND = np.random.default_rng(0).normal(size=(50, 12)).astype(np.float32)
    directions_PD = principal_directions(vectors_ND, 5)
    np.testing.assert_allclose(directions_PD @ directions_PD.T, np.eye(5), atol=1e-6)


def test_what_cannot_be_a_student_is_refused(tmp_path: Path) -> None:
    bert = spec_of(tiny_bert(tmp_path / "bert", layers=6))
    for wrong in ({}, {"layers": [0], "num_layers": 1}, {"layers": [3, 0]}, {"layers": []}):
        with pytest.raises(pydantic.ValidationError, match="layers"):
            Student.model_validate(wrong)
    with pytest.raises(InputError, match=r"set student.layers within 0 and 5: .* has 6 layers"):
        make_student(bert, Student(layers=(0, 6)), tmp_path / "a")
    with pytest.raises(InputError, match=r"set student.layers within 0 and 5"):
        make_student(bert, Student(num_layers=7), tmp_path / "a")
    with pytest.raises(InputError, match=r"student.dims 8: expected fewer than the 32 .* \(3 are there\)"):
        make_student(bert, Student(num_layers=3, dims=8), tmp_path / "a", TEXTS[:3])
    modernbert = spec_of(tiny_encoder(tmp_path / "modernbert", kind="modernbert", layers=6))
    with pytest.raises(InputError, match="choose other layers, the first among them"):  # it alone has no norm before it
        make_student(modernbert, Student(layers=(3, 5)), tmp_path / "b")


def test_three_layers_of_minilm_are_a_model(tmp_path: Path) -> None:
    spec = spec_of(minilm_folder())
    assert make_student(spec, Student(num_layers=3), tmp_path / "student") == (0, 3, 5)
    vectors_ND = embed(tmp_path / "student", TEXTS[:8])
    np.testing.assert_allclose(vectors_ND, skipped(minilm_folder(), [0, 3, 5], TEXTS[:8]), atol=1e-5)
    theirs = SentenceTransformer(str(tmp_path / "student"), device="cpu")
    np.testing.assert_allclose(vectors_ND, theirs.encode(TEXTS[:8]), atol=1e-5)
