"""Sources with images: every form a column has, files of their own, and rows that lack them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import pytest

from operators.corpus.image_fetching import ImageAccess, fetch
from operators.corpus.images import place_of
from operators.corpus.inspect import inspect_source
from operators.corpus.listing import list_source
from operators.corpus.reading import read_fragments
from operators.corpus.source import Source
from operators.corpus.units import choose_pack_below, plan_units
from operators.errors import InputError
from operators.work.fragment import FragmentBatch
from tests.vision_checkpoints import drawn, encoded

PICTURES = [encoded(drawn(number)) for number in range(4)]


def fragments(source: Source) -> list[FragmentBatch]:
    pack_below_bytes, files = choose_pack_below(list_source(source), source)
    units = plan_units(files, source, (), pack_below_bytes, {})
    return [batch for unit in units for batch in read_fragments(unit, source, pa.schema([]))]


def rows_of(source: Source) -> list[dict[str, Any]]:
    return [row for batch in fragments(source) for row in batch.table.to_pylist()]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_bytes_of_a_parquet_column_come_as_they_are(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"id": ["a", "b"], "image": pa.array(PICTURES[:2], pa.binary()).cast(kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    source = Source(path=str(tmp_path), id="id", image="image")
    assert [(row["doc_id"], row["text"], row["image"]["bytes"]) for row in rows_of(source)] == [
        ("a", None, PICTURES[0]),
        ("b", None, PICTURES[1]),
    ]


def test_structs_of_hugging_face_datasets_have_bytes_or_a_path(tmp_path: Path) -> None:
    images = [{"bytes": PICTURES[0], "path": "a.png"}, {"bytes": None, "path": "sub/b.png"}, None]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(images, kind)}), tmp_path / "a.parquet")
    batch = fragments(Source(path=str(tmp_path), image="image"))[0]
    assert batch.table["image"].to_pylist() == [
        {"bytes": PICTURES[0], "path": None},
        {"bytes": None, "path": str(tmp_path / "sub" / "b.png")},
    ]
    assert batch.rejected["reason"].to_pylist() == ["null_image"]


@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv"])
def test_paths_and_urls_are_taken_from_the_files_folder(tmp_path: Path, form: str) -> None:
    named = ["pictures/a.png", "../b.png", "https://example.org/c.png", str(tmp_path / "d.png")]
    folder = tmp_path / "in"
    folder.mkdir()
    if form == "jsonl":
        (folder / "a.jsonl").write_text("".join(json.dumps({"url": name}) + "\n" for name in named))
    else:
        (folder / f"a.{form}").write_text("url\n" + "\n".join(named) + "\n")
    found = [row["image"]["path"] for row in rows_of(Source(path=str(folder), image="url"))]
    assert found == [str(folder / "pictures/a.png"), str(tmp_path / "b.png"), *named[2:]]


def test_data_urls_hold_the_image_itself(tmp_path: Path) -> None:
    good = "data:image/png;base64," + base64.b64encode(PICTURES[0]).decode()
    lines = [{"image": good}, {"image": "data:image/png;base64,%%"}, {"image": ""}, {"image": 7}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    batch = fragments(Source(path=str(tmp_path), image="image"))[0]
    assert batch.table["image"].to_pylist() == [{"bytes": PICTURES[0], "path": None}]
    assert sorted(batch.rejected["reason"].to_pylist()) == ["null_image", "wrong_type", "wrong_type"]


@pytest.mark.parametrize("path", ["/etc/secret.png", "file:///etc/secret.png", "../../../../etc/secret.png"])
def test_a_file_elsewhere_names_no_file_of_this_machine(path: str) -> None:
    with pytest.raises(ValueError, match=r"machine|leaves"):
        place_of(path, "s3://bucket/folder/rows.parquet")


def test_names_beside_an_object_are_objects() -> None:
    assert place_of("images/a.png", "s3://bucket/folder/rows.parquet") == "s3://bucket/folder/images/a.png"
    assert place_of("../a.png", "s3://bucket/folder/rows.parquet") == "s3://bucket/a.png"


def test_images_beside_an_object_are_fetched_through_the_same_storage() -> None:
    folder = fsspec.filesystem("memory")
    folder.pipe("/corpus/in/rows.jsonl", b'{"image": "pictures/a.png"}\n')
    folder.pipe("/corpus/in/pictures/a.png", PICTURES[2])
    row = rows_of(Source(path="memory://corpus/in/rows.jsonl", image="image"))[0]
    assert fetch(row["image"], ImageAccess.of(("memory://corpus/in",), {}, False)) == PICTURES[2]


def test_a_row_needs_a_text_or_an_image_where_both_are_embedded(tmp_path: Path) -> None:
    rows = [
        {"caption": "a dog", "image": PICTURES[0]},
        {"caption": " ", "image": PICTURES[1]},
        {"caption": "words", "image": None},
        {"caption": None, "image": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    batch = fragments(Source(path=str(tmp_path), text="caption", image="image"))[0]
    assert batch.table["text"].to_pylist() == ["a dog", None, "words"]
    assert batch.table["image"].is_valid().to_pylist() == [True, True, False]
    assert batch.rejected.select(["reason", "message"]).to_pylist() == [
        {"reason": "null_image", "message": "the row has neither an image nor a text"}
    ]


def test_image_files_are_documents_named_by_their_path_and_share_fragments(tmp_path: Path) -> None:
    for number, picture in enumerate(PICTURES):
        (tmp_path / f"{number}.png").write_bytes(picture)
    (tmp_path / "notes.md").write_text("no image")
    found = fragments(Source(path=f"{tmp_path}/*", image="image"))
    assert len(found) == 1
    assert found[0].table["doc_id"].to_pylist() == [str(tmp_path / f"{number}.png") for number in range(4)]
    assert [image["bytes"] for image in found[0].table["image"].to_pylist()] == PICTURES


def test_fragments_end_after_their_bytes_of_images(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x" * 700] * 10}), tmp_path / "a.parquet")
    found = fragments(Source(path=str(tmp_path), image="image", bytes_per_fragment=2048))
    assert [batch.counts.rows for batch in found] == [3, 3, 3, 1]
    found = fragments(Source(path=str(tmp_path), image="image", rows_per_fragment=4))
    assert [batch.counts.rows for batch in found] == [4, 4, 2]


def test_a_source_of_images_has_defaults_of_its_own() -> None:
    source = Source(path="a", image="image")
    assert (source.text, source.max_rows, source.max_bytes) == (None, 512, 64 << 20)
    assert Source(path="a", image="image", text="caption", rows_per_fragment=9).max_rows == 9
    with pytest.raises(pydantic.ValidationError, match="both are null"):
        Source(path="a", text=None)


def test_image_files_without_the_key_are_told_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(PICTURES[0])
    with pytest.raises(InputError, match="set source.image=image to embed the images"):
        list(list_source(Source(path=str(tmp_path))))


def test_a_column_that_holds_no_images_is_refused_before_the_run(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [1, 2], "picture": [b"", b""]}), tmp_path / "a.parquet")
    for column, fault in (("image", "holds int64"), ("photo", "which has image, picture")):
        source = Source(path=str(tmp_path), image=column)
        with pytest.raises(InputError, match=fault):
            inspect_source(list_source(source), source, ())
