from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.shipping import MAX_BYTES, code_folder


def test_shipping_takes_code_and_config_and_nothing_else(tmp_path: Path) -> None:
    for name in (
        "jobs/embed.py",
        "configs/models/mine.yaml",
        "jobs/__pycache__/embed.pyc",
        "jobs/.env",
        ".env",
        "out/data.parquet",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    config = tmp_path / "elsewhere.yaml"
    config.write_text("a: 1")
    with code_folder(config, root=tmp_path) as folder:
        sent = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert sent == {
        "jobs/embed.py": "jobs/embed.py",
        "configs/models/mine.yaml": "configs/models/mine.yaml",
        "submitted/elsewhere.yaml": "a: 1",
    }
    assert not folder.exists()


def test_shipping_refuses_data_among_the_code_and_names_it(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    with (tmp_path / "configs/corpus.parquet").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ClusterError, match=r"^move data out(.|\n)*configs/corpus.parquet"), code_folder(root=tmp_path):
        pass
