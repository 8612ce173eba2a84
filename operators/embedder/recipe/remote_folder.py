"""A checkpoint's folder on object storage as a folder of this machine: s3:// and any other fsspec URL.

Files are fetched once, into a folder named after their versions, so that a checkpoint that is written anew is fetched
anew. Keys and endpoints come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...), as every worker has it.
"""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from operators.embedder.recipe.fingerprint import mapping_digest
from operators.errors import InputError
from operators.storage import Location, download, iter_files, locate
from operators.storage.cache import Cache


def is_url(checkpoint: str) -> bool:
    """Whether a checkpoint lies on a storage."""
    return "://" in checkpoint


def mirrored(url: str, patterns: list[str], excluded: list[str]) -> Path:
    """The folder with those of the files that match; raises InputError where there is none."""
    location = locate(url)
    files = list(iter_files(location))
    versions = {file.url.removeprefix(location.url).lstrip("/"): [file.size, file.version] for file in files}
    if not versions:
        raise InputError(f"check the path of the checkpoint: there is no file below {location}")
    folder = Cache.at(None).scratch / "models" / mapping_digest({"url": location.url, "files": versions})[:32]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in versions:
        wanted = any(fnmatch(name, pattern) for pattern in patterns)
        if wanted and not any(fnmatch(name, pattern) for pattern in excluded):
            _fetch(location / name, folder / name)
    return folder


def _fetch(location: Location, file: Path) -> None:
    if not file.exists():  # it appears only when it is complete
        download(location, file)
