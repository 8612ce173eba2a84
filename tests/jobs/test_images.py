"""Images from end to end: files and Parquet bytes are embedded, verified, indexed, and found by a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from PIL import Image

from tests.checkpoints import tiny_bert
from tests.jobs.running import rejected_of, run_job, snapshot_of, vectors_of, write_config, write_jsonl
from tests.jobs.test_index import index_config
from tests.vision_checkpoints import drawn, encoded, recipe_file, tiny_clip, tiny_llava

pytestmark = pytest.mark.usefixtures("local_ray")


def clip_recipe(folder: Path) -> Path:
    return recipe_file(folder / "clip.yaml", tiny_clip(folder / "model"))


def image_files(folder: Path, count: int) -> dict[str, Image.Image]:
    images = {f"{folder}/{number:02}.jpg": drawn(number, 48 + number, 64) for number in range(count)}
    folder.mkdir()
    for path, image in images.items():
        Path(path).write_bytes(encoded(image, "JPEG"))
    return images


def test_a_text_finds_the_images_that_the_model_puts_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = clip_recipe(tmp_path)
    images = image_files(tmp_path / "photos", 12)
    (tmp_path / "photos" / "broken.jpg").write_bytes(encoded(drawn(1), "JPEG")[:300])
    (tmp_path / "photos" / "empty.png").write_bytes(b"")
    source = {"path": f"{tmp_path}/photos/*", "image": "image", "id": None, "rows_per_fragment": 5}
    config = write_config(tmp_path, recipe, source=source, gates={"max_rejected_fraction": 0.5})
    assert run_job("plan", config) == 0
    assert run_job("embed", config) == 0
    assert rejected_of(tmp_path) == {
        f"{tmp_path}/photos/broken.jpg": "undecodable_image",
        f"{tmp_path}/photos/empty.png": "empty_image",
    }
    assert sum(record.rows for record in snapshot_of(tmp_path).records) == 14
    assert run_job("verify", config) == 0
    assert run_job("index", index_config(tmp_path)) == 0
    capsys.readouterr()
    assert run_job("search", tmp_path / "index", "query=a red bicycle", "k=12") == 0
    found = [line.split()[2] for line in capsys.readouterr().out.splitlines()]

    model = transformers.CLIPModel.from_pretrained(tmp_path / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "model", backend="pil")
    paths = sorted(images)
    with torch.inference_mode():
        pixels = processor(images=[Image.open(path) for path in paths], return_tensors="pt")
        image_features = torch.nn.functional.normalize(model.get_image_features(**pixels).pooler_output)
        text = tokenizer(["a red bicycle"], return_tensors="pt")
        text_features = torch.nn.functional.normalize(model.get_text_features(**text).pooler_output)
    scores = (image_features @ text_features[0]).numpy()
    assert found == [paths[number] for number in np.argsort(-scores)]
    vectors = np.stack(vectors_of(tmp_path)["embedding"].to_numpy(zero_copy_only=False))
    assert np.abs(vectors - image_features.numpy()).max() <= 1e-4


@pytest.mark.slow
def test_parquet_bytes_and_texts_of_one_corpus_share_a_space(tmp_path: Path) -> None:
    rows = [
        {"id": f"i{n}", "picture": {"bytes": encoded(drawn(n)), "path": f"{n}.png"}, "words": None} for n in range(6)
    ]
    rows += [{"id": f"t{n}", "picture": None, "words": f"time and water {n}"} for n in range(3)]
    rows += [{"id": "none", "picture": None, "words": None}]
    rows += [{"id": "cut", "picture": {"bytes": encoded(drawn(1))[:60], "path": None}, "words": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    source = {"path": f"{tmp_path}/a.parquet", "image": "picture", "text": "words"}
    config = write_config(
        tmp_path,
        recipe_file(tmp_path / "llava.yaml", tiny_llava(tmp_path / "model")),
        source=source,
        output={"keep": ["words"], "dtype": "int8"},
        gates={"max_rejected_fraction": 0.5},
    )
    assert run_job("embed", config) == 0
    assert rejected_of(tmp_path) == {"none": "null_image", "cut": "undecodable_image"}
    table = vectors_of(tmp_path)
    assert table["doc_id"].to_pylist() == [*(f"i{n}" for n in range(6)), *(f"t{n}" for n in range(3))]
    assert table["words"].to_pylist() == [*[None] * 6, *(f"time and water {n}" for n in range(3))]
    assert "pixels" not in table.column_names
    assert run_job("verify", config, "verify.min_cosine=0.99") == 0
    assert run_job("embed", config) == 0
    assert snapshot_of(tmp_path).number == 1


@pytest.mark.slow
def test_images_that_rows_only_name_are_fetched_from_beside_them(tmp_path: Path) -> None:
    images = image_files(tmp_path / "photos", 4)
    lines = [{"id": Path(path).stem, "file": f"photos/{Path(path).name}"} for path in images]
    write_jsonl(tmp_path / "docs.jsonl", [*lines, {"id": "gone", "file": "photos/gone.jpg"}])
    config = write_config(
        tmp_path, clip_recipe(tmp_path), source={"image": "file"}, gates={"max_rejected_fraction": 0.5}
    )
    assert run_job("embed", config) == 0
    assert rejected_of(tmp_path) == {"gone": "missing_image"}
    assert vectors_of(tmp_path)["doc_id"].to_pylist() == ["00", "01", "02", "03"]
    assert run_job("verify", config) == 0


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"chunking": {"tokens": 8}}, "leave out chunking.tokens"),
        ({"source": {"rows_per_fragment": 1_000_000}}, "set source.rows_per_fragment to 349525 or less"),
    ],
)
def test_what_images_rule_out_is_refused(
    tmp_path: Path, changed: dict[str, dict[str, object]], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image_files(tmp_path / "photos", 1)
    source = {"path": f"{tmp_path}/photos", "image": "image", "id": None, **changed.pop("source", {})}
    assert run_job("embed", write_config(tmp_path, clip_recipe(tmp_path), source=source, **changed)) == 2
    assert fault in capsys.readouterr().err


def test_a_model_of_texts_takes_no_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image_files(tmp_path / "photos", 1)
    source = {"path": f"{tmp_path}/photos", "image": "image", "id": None}
    assert run_job("embed", write_config(tmp_path, tiny_bert(tmp_path / "bert"), source=source)) == 2
    assert "take a model that sees" in capsys.readouterr().err
    assert not (tmp_path / "vectors" / "dataset.json").exists()
