"""Word vectors as embedders, against the papers' formulas written out here."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from numpy.typing import NDArray

from operators.embedder.factory import load_embedder
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import EmbedderSpec, embedder_spec
from operators.embedder.recipe.word_vectors.conversion import converted_folder
from operators.embedder.static.engine import StaticEmbedder
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.embedder.vectors import Vectors
from operators.errors import InputError
from tests.checkpoints import WORDS
from tests.operators.embedder.references import Record, compare
from tests.static_embedders import DIM, word_table, write_recipe, write_vectors

RECIPES = Path(__file__).parents[4] / "configs" / "models"
# some words unknown, some twice, in upper case, with marks
TEXTS = [
    "The year of the water, which WAS good!",
    "company",
    "zebra Fact zebra",
    " ".join(WORDS[::-1]) * 3,
    "story-book story",
    "people\tpeople\npeople world",
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "embedfleet" / "word_vectors"


def spec_of(folder: Path, form: str = "glove", normalize: bool = True, **settings: Any) -> EmbedderSpec:
    vectors = write_vectors(folder / "vectors", form)
    recipe = write_recipe(folder, vectors, normalize, format=form, **settings)
    return embedder_spec(recipe, EmbedderConfig(), RECIPES)


def embed(spec: EmbedderSpec, texts: list[str]) -> Vectors:
    return load_embedder(spec)(Tokenizer(spec)(pa.array(texts, pa.string())).input_ids)


def known_words(text: str) -> list[str]:
    """Lower-case words and marks that have a vector."""
    return [word for word in re.findall(r"\w+|[^\w\s]", text.lower()) if word in WORDS]


def mean(text: str, weights: dict[str, float]) -> NDArray[np.float64]:
    """The mean of the known words' weighted vectors, in float64."""
    table = dict(zip(WORDS, word_table().astype(np.float64), strict=True))
    return np.mean([weights[word] * table[word] for word in known_words(text)], axis=0)


ALIKE = dict.fromkeys(WORDS, 1.0)


@pytest.mark.parametrize("form", ["glove", "word2vec", "word2vec_binary"])
def test_mean_of_known_words(tmp_path: Path, form: str) -> None:
    vectors = embed(spec_of(tmp_path, form, normalize=False), TEXTS)
    np.testing.assert_allclose(vectors.values_ND, [mean(text, ALIKE) for text in TEXTS], atol=1e-6)
    assert vectors.finite_N.all()
    unknown = 3 + 2 + 2 + 1  # `,` `good` `!`; zebra twice; `linethe` twice; `-`
    assert (vectors.padding_tokens, vectors.unknown_tokens) == (0, unknown)
    known = sum(len(known_words(text)) for text in TEXTS)
    assert vectors.flops == known * DIM


@pytest.mark.parametrize(
    ("name", "form", "words"), [("glove-6b-300", "glove", str.lower), ("word2vec-googlenews", "word2vec_binary", str)]
)
def test_published_vectors(tmp_path: Path, name: str, form: str, words: Any, record_property: Record) -> None:
    """The repository's recipes with other vectors: SIF's weights by rank, words in lower case or their own."""
    fields = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    fields["checkpoint"] = str(write_vectors(tmp_path / "vectors", form))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    spec = embedder_spec(str(tmp_path / "recipe.yaml"), EmbedderConfig(), RECIPES)
    table = dict(zip(WORDS, word_table().astype(np.float64), strict=True))
    total = sum(1 / (rank + 1) for rank in range(1, len(WORDS) + 1))
    texts, expected = [text.replace("Fact", "fact") for text in TEXTS], []
    for text in texts:
        known = [word for word in re.findall(r"\w+", words(text)) if word in table]
        sum_D = sum(1e-3 / (1e-3 + 1 / (WORDS.index(word) + 2) / total) * table[word] for word in known)
        expected.append(sum_D / np.linalg.norm(sum_D))
    compare(record_property, name, "SIF's formula in float64, each text alone", embed(spec, texts).values_ND, expected)


def test_sif_by_rank(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, normalize=False, weighting="sif", sif_a=1e-2)
    total = sum(1 / (rank + 1) for rank in range(1, len(WORDS) + 1))
    weights = {word: 1e-2 / (1e-2 + 1 / (rank + 1) / total) for rank, word in enumerate(WORDS, 1)}
    np.testing.assert_allclose(embed(spec, TEXTS).values_ND, [mean(text, weights) for text in TEXTS], atol=1e-6)


def test_sif_and_idf_by_counts(tmp_path: Path) -> None:
    counts = {word: 1000 // (i + 1) for i, word in enumerate(WORDS[:-2])}  # the last two never come
    (tmp_path / "counts.txt").write_text("".join(f"{w} {n}\n" for w, n in counts.items()) + "zebra\t7\n")
    total = sum(counts.values()) + 7
    expected = {
        "sif": {word: 1e-3 / (1e-3 + counts.get(word, 0) / total) for word in WORDS},
        "idf": {word: math.log(1234 / max(1, counts.get(word, 0))) for word in WORDS},
    }
    for weighting, weights in expected.items():
        settings = {"weighting": weighting, "frequencies": str(tmp_path / "counts.txt"), "num_documents": 1234}
        values_ND = embed(spec_of(tmp_path, normalize=False, **settings), TEXTS).values_ND
        np.testing.assert_allclose(values_ND, [mean(text, weights) for text in TEXTS], rtol=1e-5, atol=1e-6)


def test_the_component_is_that_of_its_texts_and_of_no_batch(tmp_path: Path) -> None:
    texts = [" ".join(WORDS[(5 * i + j) % len(WORDS)] for j in range(1 + i % 9)) for i in range(60)]
    (tmp_path / "texts.txt").write_text("\n".join([*texts, "zebra"]) + "\n")
    spec = spec_of(tmp_path, weighting="sif", remove_component_of=str(tmp_path / "texts.txt"))
    total = sum(1 / (rank + 1) for rank in range(1, len(WORDS) + 1))
    weights = {word: 1e-3 / (1e-3 + 1 / (rank + 1) / total) for rank, word in enumerate(WORDS, 1)}
    component_D = np.linalg.svd(np.stack([mean(text, weights) for text in texts]), full_matrices=False)[2][0]
    raw_ND = np.stack([mean(text, weights) for text in TEXTS])
    left_ND = raw_ND - np.outer(raw_ND @ component_D, component_D)
    expected_ND = left_ND / np.linalg.norm(left_ND, axis=1, keepdims=True)
    np.testing.assert_allclose(embed(spec, TEXTS).values_ND, expected_ND, atol=1e-5)
    alone_ND = np.concatenate([embed(spec, [text]).values_ND for text in TEXTS])
    np.testing.assert_array_equal(alone_ND, embed(spec, TEXTS).values_ND)


def test_the_order_of_words_does_not_matter(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, weighting="sif")
    rng = np.random.default_rng(0)
    texts = [" ".join(WORDS[i % len(WORDS)] for i in range(n)) for n in (2, 30, 200)]
    shuffled = [" ".join(rng.permutation(text.split())) for text in texts]
    assert shuffled != texts
    np.testing.assert_allclose(embed(spec, shuffled).values_ND, embed(spec, texts).values_ND, atol=1e-6)


def test_a_text_without_a_known_word_has_no_vector(tmp_path: Path) -> None:
    vectors = embed(spec_of(tmp_path), ["zebra okapi", "", "fact", "!"])
    assert vectors.finite_N.tolist() == [False, False, True, False]
    assert not vectors.values_ND[[0, 1, 3]].any()
    assert vectors.unknown_tokens == 3


def test_what_a_word_is_stands_in_the_recipe(tmp_path: Path) -> None:
    table_VD = word_table(("New_York", "##", "x"))
    vectors = write_vectors(tmp_path / "vectors", "word2vec_binary", ("New_York", "##", "x"), table_VD)
    settings = {"format": "word2vec_binary", "lowercase": False, "words": r"[\w#]+"}
    recipe = write_recipe(tmp_path, vectors, False, **settings, replace={r"(?<=\d)\d|\d(?=\d)": "#", "X": "x"})
    values_ND = embed(embedder_spec(recipe, EmbedderConfig(), RECIPES), ["New_York, 42", "new_york X 7"]).values_ND
    np.testing.assert_allclose(values_ND, [table_VD[:2].mean(axis=0), table_VD[2]], atol=1e-6)


def test_slices_and_sizes(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    ids, embedder = Tokenizer(spec)(pa.array(TEXTS)).input_ids, load_embedder(spec)
    whole_ND = embedder(ids).values_ND
    np.testing.assert_array_equal(embedder(ids.slice(2, 3)).values_ND, whole_ND[2:5])
    assert embedder(ids.slice(0, 0)).values_ND.shape == (0, DIM)
    cut = embedder_spec(spec.model, EmbedderConfig(dims=3), RECIPES)
    expected_ND = whole_ND[:, :3] / np.linalg.norm(whole_ND[:, :3], axis=1, keepdims=True)
    np.testing.assert_allclose(embed(cut, TEXTS).values_ND, expected_ND, atol=1e-6)
    assert cut.fingerprint != spec.fingerprint


def test_a_file_is_converted_once_and_its_content_is_the_fingerprint(tmp_path: Path, cache: Path) -> None:
    spec = spec_of(tmp_path)
    (folder,) = [path for path in cache.iterdir() if path.is_dir()]
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert spec_of(tmp_path).fingerprint == spec.fingerprint
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert spec_of(tmp_path, weighting="sif").fingerprint != spec.fingerprint
    write_vectors(tmp_path / "vectors", "glove", WORDS, word_table() * 2)
    with pytest.raises(InputError, match="is not the one that the run was planned with"):
        load_embedder(spec)


def test_many_processes_convert_once(tmp_path: Path, cache: Path) -> None:
    recipe = write_recipe(tmp_path, write_vectors(tmp_path / "vectors", "glove"))
    code = (
        "import logging; logging.basicConfig(level=logging.INFO)\n"
        "from pathlib import Path\nfrom operators.embedder.recipe.recipe import EmbedderConfig\n"
        "from operators.embedder.recipe.spec import embedder_spec\n"
        f"print(embedder_spec({recipe!r}, EmbedderConfig(), Path('.')).fingerprint)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = [process.communicate(timeout=60) for process in processes]
    assert len({out for out, _ in answers}) == 1
    assert sum(err.count("converting") for _, err in answers) == 1


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    vectors = write_vectors(tmp_path / "vectors", "glove", (*WORDS, WORDS[3]))
    recipe = write_recipe(tmp_path, vectors)
    with pytest.raises(InputError, match=f"has the word '{WORDS[3]}' twice: set word_vectors.duplicates to first"):
        embedder_spec(recipe, EmbedderConfig(), RECIPES)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
    recipe = write_recipe(tmp_path, vectors, duplicates="first", normalize=False)
    spec = embedder_spec(recipe, EmbedderConfig(), RECIPES)
    np.testing.assert_array_equal(embed(spec, [WORDS[3]]).values_ND[0], word_table((*WORDS, WORDS[3]))[3])


@pytest.mark.parametrize(
    ("settings", "config", "message"),
    [
        ({"weighting": "idf"}, {}, "weighting idf needs frequencies"),
        ({"words": "("}, {}, "words is no regular expression"),
        ({"frequencies": "nowhere.txt", "weighting": "sif"}, {}, "there is no file nowhere.txt"),
        ({"weighting": "sif", "frequencies": "FILE:time x"}, {}, "counts line 1 is no `word count`"),
        ({"weighting": "sif", "frequencies": "FILE:time 2\ntime 3"}, {}, "counts line 2 has a word that was there"),
        ({"weighting": "sif", "frequencies": "FILE:zebra 2"}, {}, "has none of the words of the vectors"),
        (
            {"weighting": "idf", "num_documents": 5, "frequencies": "FILE:time 9"},
            {},
            "5 is less than the 9 doc",
        ),
        ({"remove_component_of": "FILE:zebra"}, {}, "remove_component_of has no text with a known word"),
        ({}, {"compute_dtype": "bfloat16"}, "leave out embedder.compute_dtype bfloat16"),
        ({}, {"dims": 9}, "embedder.dims 9 is more than the 8 dimensions"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, settings: Any, config: Any, message: str) -> None:
    for key, value in settings.items():
        if isinstance(value, str) and value.startswith("FILE:"):
            (tmp_path / "counts").write_text(value.removeprefix("FILE:") + "\n")
            settings = {**settings, key: str(tmp_path / "counts")}
    recipe = write_recipe(tmp_path, write_vectors(tmp_path / "vectors", "glove"), **settings)
    with pytest.raises(InputError, match=message):
        embedder_spec(recipe, EmbedderConfig(**config), RECIPES)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for recipe in ("glove-6b-300", "word2vec-googlenews"):
        with pytest.raises(InputError, match="the recipe's vectors: there is no file .*; download it"):
            embedder_spec(recipe, EmbedderConfig(), RECIPES)


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    assert spec.recipe.word_vectors is not None
    folder = converted_folder(spec.recipe.checkpoint, spec.recipe.word_vectors)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(512 + 4 * DIM)
        file.write(np.full(DIM, np.nan, np.float32).tobytes())
    with pytest.raises(InputError, match="self-test: the table has NaN, infinity or nothing but zeros"):
        StaticEmbedder(spec)


def test_the_glove_recipe_splits_as_its_authors(tmp_path: Path) -> None:
    from operators.embedder.recipe.files import load_recipe
    from operators.embedder.recipe.word_vectors.conversion import word_tokenizer

    settings = load_recipe("glove-6b-300", RECIPES).word_vectors
    assert settings is not None
    expected = ["do", "n't", "stop", ",", "it", "'s", "o", "'", "clock", "we", "'ll", "ca", "n't", "isn"]
    tokenizer = word_tokenizer(expected, settings)
    assert tokenizer.encode("Don't stop, it's o'clock; we'll can't isn").tokens[:5] == expected[:5]
    assert "[UNK]" not in tokenizer.encode("Don't stop, it's o'clock we'll can't isn").tokens
