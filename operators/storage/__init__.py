"""Files and folders wherever fsspec reaches, with the few guarantees that the rest is built on.

- `write_whole` replaces a file at once: nobody ever reads half of it.
- `create_exclusive` makes a file only if there is none: of several writers exactly one wins.
- Listings are never served from a cache, and stream.
- Passing faults are tried again; others say what to do, and no text holds a secret.
"""

from operators.storage.faults import StorageError, holds_secret, redact
from operators.storage.files import (
    create_exclusive,
    delete,
    delete_all,
    delete_folder,
    exists,
    open_input,
    read_bytes,
    size_of,
    write_whole,
)
from operators.storage.listing import FileInfo, file_info, iter_files, list_folder
from operators.storage.location import Location, locate
from operators.storage.transfer import download, move, sha256_of, stored_sha256, upload, upload_folder

__all__ = [
    "FileInfo",
    "Location",
    "StorageError",
    "create_exclusive",
    "delete",
    "delete_all",
    "delete_folder",
    "download",
    "exists",
    "file_info",
    "holds_secret",
    "iter_files",
    "list_folder",
    "locate",
    "move",
    "open_input",
    "read_bytes",
    "redact",
    "sha256_of",
    "size_of",
    "stored_sha256",
    "upload",
    "upload_folder",
    "write_whole",
]
