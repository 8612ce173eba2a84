"""Choosing an index: by size, memory and recall, with a reason."""

from __future__ import annotations

import pytest

from operators.errors import InputError
from operators.index.library import Kernel, best_kernel, faiss, kernel
from operators.index.spec import IndexSpec, choose_metric, choose_spec, footprint, make_index


@pytest.mark.parametrize(
    ("vectors", "target", "budget", "factory"),
    [
        (1_000, 0.95, None, "Flat"),
        (49_999, 0.99, None, "Flat"),
        (49_999, 0.95, 400, "IVF1024,SQ8"),
        (200_000, 0.95, None, "IVF2048,SQ8"),
        (1_000_000, 0.98, None, "IVF4096,SQfp16"),
        (1_000_000, 0.999, None, "IVF4096,Flat"),
        (1_000_000, 0.95, 60, "IVF4096,PQ96x4fs,Refine(SQ8)"),
        (1_000_000, 0.98, 60, "IVF4096,PQ96x4fs,Refine(SQfp16)"),
        (50_000_000, 0.95, None, "IVF65536_HNSW32,SQ8"),
        (1_000_000_000, 0.95, None, "IVF262144_HNSW32,PQ96x4fs,Refine(SQ8)"),
    ],
)
def test_auto_takes_the_smallest_index_that_reaches_the_recall(
    vectors: int, target: float, budget: float | None, factory: str
) -> None:
    spec = choose_spec(vectors, 384, "cosine", target, budget)
    assert spec.factory == factory
    assert f"{vectors:,}" in spec.why
    if vectors <= 1_000_000:
        make_index(spec)


def test_auto_says_what_to_change_where_nothing_fits() -> None:
    with pytest.raises(InputError, match="raise bytes_per_vector to 56"):
        choose_spec(1_000_000, 384, "cosine", 0.9, 20)
    with pytest.raises(InputError, match=r"lower recall_target to 0\.985"):
        choose_spec(1_000_000, 384, "cosine", 0.999, 100)


def test_the_metric_follows_the_form_of_the_vectors() -> None:
    assert choose_metric("auto", "binary") == "hamming"
    assert choose_metric("auto", "int8") == "cosine"
    assert choose_metric("auto", "float32", "dot") == choose_metric("auto", "int8", "dot") == "ip"
    assert choose_metric("auto", "float32", "euclidean") == "l2"
    assert choose_metric("auto", "binary", "dot") == "hamming"
    assert choose_metric("cosine", "float32", "dot") == "cosine"
    with pytest.raises(InputError, match="set metric: .* compares vectors by manhattan"):
        choose_metric("auto", "float32", "manhattan")
    with pytest.raises(InputError, match="set metric: hamming"):
        choose_metric("cosine", "binary")


@pytest.mark.parametrize(
    "factory", ["Flat", "SQ8", "IVF16,Flat", "IVF16,SQ8", "IVF16,PQ8", "HNSW16", "HNSW16,SQ8", "IVF16,PQ16x4fs,RFlat"]
)
def test_the_footprint_is_what_faiss_writes(factory: str) -> None:
    """Bytes a vector, from the growth of the serialized index."""
    import numpy as np

    spec = IndexSpec(factory, "l2", 32, "")
    index = make_index(spec)
    vectors = np.random.default_rng(0).standard_normal((9000, 32)).astype(np.float32)
    index.train(vectors)
    index.add(vectors[:1000])
    before = len(faiss.serialize_index(index))
    index.add(vectors[1000:])
    grown = (len(faiss.serialize_index(index)) - before) / 8000
    predicted = footprint(index, spec)
    assert predicted.hot + predicted.cold == pytest.approx(grown, rel=0.12)


def test_the_kernel_is_named_for_every_kind_of_cpu() -> None:
    avx512 = frozenset({"avx2", "fma", "avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"})
    assert best_kernel(avx512) == "SkylakeX"
    assert best_kernel(frozenset({"avx2", "fma", "sse4_2"})) == "Haswell"
    assert best_kernel(frozenset()) == ""
    assert Kernel("Prescott", "SkylakeX").is_slow
    assert Kernel("Haswell", "SkylakeX").is_slow
    assert not Kernel("SkylakeX", "SkylakeX").is_slow
    assert not Kernel("Zen", "Haswell").is_slow
    assert not Kernel("", "SkylakeX").is_slow, "another library than OpenBLAS"


def test_faiss_runs_on_the_best_kernel_unless_the_user_named_one() -> None:
    import os
    import subprocess
    import sys

    from tests.jobs.running import ROOT

    code = "from operators.index.library import kernel; k = kernel(); print(k.name, k.wanted, k.is_slow)"
    env = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}

    def run(variables: dict[str, str]) -> tuple[list[str], str]:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True, check=True
        )
        return done.stdout.split(), done.stderr

    (name, wanted, slow), warned = run(env)
    if wanted not in ("SkylakeX", "Haswell"):
        pytest.skip("no x86 CPU with AVX2")
    assert (name, slow, warned) == (wanted, "False", "")
    (name, _, slow), warned = run({**env, "OPENBLAS_CORETYPE": "Prescott"})
    assert (name, slow) == ("Prescott", "True")
    assert kernel().wanted == wanted
    (_, _, slow), warned = run({**env, "OPENBLAS_CORETYPE": "SapphireRapids"})
    assert slow == "True", "a name that this OpenBLAS does not know falls back to SSE3"
    assert "set OPENBLAS_CORETYPE" in warned
