"""What travels to a cluster: our packages and configs, and the config of this job. Nothing else in the repository does.

A list of what goes, not of what stays: a data folder, a virtual environment or a `.env` beside the code never leaves
the machine, and an unchanged copy has the same hash, so Ray uploads it once.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.environment import ROOT
from cluster.errors import ClusterError

FOLDERS = ("jobs", "operators", "cluster", "configs")
CONFIG_FOLDER = "submitted"
MAX_BYTES = 50_000_000  # Ray keeps packages in the memory of the head node; it refuses 500 MiB and more


@contextmanager
def code_folder(config: Path | None = None, root: Path = ROOT) -> Iterator[Path]:
    """A temporary folder with the code and, as submitted/NAME, the config: a Ray `working_dir`."""
    files = list(_code_files(root))
    _check_size(files, root)
    with tempfile.TemporaryDirectory(prefix="embedfleet-") as folder:
        target = Path(folder)
        for file in files:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / file, target / file)
        if config is not None:
            (target / CONFIG_FOLDER).mkdir()
            shutil.copyfile(config, target / CONFIG_FOLDER / config.name)
        yield target


def _code_files(root: Path) -> Iterator[Path]:
    for folder in FOLDERS:
        for path in (root / folder).rglob("*"):
            file = path.relative_to(root)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in file.parts)
            if path.is_file() and not hidden:
                yield file


def _check_size(files: list[Path], root: Path) -> None:
    sizes = {file: (root / file).stat().st_size for file in files}
    total_bytes = sum(sizes.values())
    if total_bytes > MAX_BYTES:
        largest = max(files, key=lambda file: sizes[file])
        raise ClusterError(
            f"move data out of {', '.join(FOLDERS)}: they go to the cluster with each job, and hold "
            f"{total_bytes / 1e6:.0f} MB (limit {MAX_BYTES / 1e6:.0f} MB)\n"
            f"the largest file is {largest} ({sizes[largest] / 1e6:.0f} MB)"
        )
