"""The `source:` section of a config: where the documents are and what in them is id and text."""

from __future__ import annotations

import string
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from operators.storage import holds_secret

Format = Literal["parquet", "jsonl", "csv", "tsv", "text"]

# What each file name ends with; a compressed JSONL, CSV or text file cannot be split and is streamed as one unit.
_EXTENSIONS: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".rst": "text",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


class Source(BaseModel):
    """Where documents come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str | tuple[str, ...] = Field(
        description="file, folder, glob or a list of them; local, s3:// or any fsspec URL"
    )
    format: Literal["auto", "parquet", "jsonl", "csv", "tsv", "text"] = Field(
        default="auto", description="auto goes by file names (.gz and .zst may follow); text = one file is one document"
    )
    id: str | None = Field(default=None, description="column with the document id (string or integer); null = path#row")
    text: str = Field(default="text", description='column with the text, or a template such as "{title}\\n{text}"')
    duplicates: Literal["error", "keep_first", "keep_all"] = Field(
        default="error",
        description="a document id that comes twice: stop before anything is written, keep the first and reject the "
        "others, or embed them all",
    )
    rows_per_fragment: int = Field(
        default=16384, ge=1, description="rows after which a fragment (unit of retry, output file) ends"
    )
    bytes_per_fragment: int = Field(
        default=8 << 20, ge=1024, description="bytes of text after which a fragment ends; also the size of byte ranges"
    )
    pack_below_bytes: int | None = Field(
        default=None,
        ge=0,
        description="files smaller than this share fragments; null = 65536 for files of text and where the first "
        "listing holds 256 files or more, else 0 (every file its own fragments), decided once per output",
    )
    storage_options: dict[str, Any] = Field(
        default_factory=dict,
        repr=False,
        description="fsspec options of the source (endpoint_url, anon, ...), never stored",
    )

    @field_validator("path")
    @classmethod
    def _whole_and_open(cls, path: str | tuple[str, ...]) -> str | tuple[str, ...]:
        paths = (path,) if isinstance(path, str) else path
        if not paths or not all(paths):
            raise ValueError("expected a path, a glob or a list of them, got an empty one")
        if any(map(holds_secret, paths)):  # it would stand in every row, and a new one would make the file another file
            raise ValueError("put passwords into storage_options, and read a signed URL's file by its own path (s3://)")
        return path

    @field_validator("text")
    @classmethod
    def _a_column_or_a_template(cls, text: str) -> str:
        for field in template_fields(text) or (text,):
            if not field or not field.strip():
                raise ValueError(f'expected a column name or a template such as "{{title}}\\n{{text}}", got {text!r}')
        return text

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths as a tuple, whether one or many were given."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that the text is made of, each once, in order."""
        return tuple(dict.fromkeys(template_fields(self.text))) or (self.text,)

    def reading(self, keep: tuple[str, ...]) -> str:
        """A stable text of every option that changes what a unit's fragments contain (part of their keys)."""
        return repr(
            (self.format, self.id, self.text, self.duplicates, self.rows_per_fragment, self.bytes_per_fragment, keep)
        )


def template_fields(text: str) -> tuple[str, ...]:
    """The column names in a template; empty where `text` is a plain column name.

    Raises ValueError for a template with unbalanced braces, a format spec or an attribute access.
    """
    if "{" not in text and "}" not in text:
        return ()
    fields = []
    try:
        pieces = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"the text template {text!r} does not parse ({error}); write {{{{ for a brace") from None
    for _, name, spec, conversion in pieces:
        if name is None:
            continue
        if spec or conversion:
            raise ValueError(f"the text template {text!r} may hold plain {{column}} names only")
        fields.append(name)
    if not fields:
        raise ValueError(f"the text template {text!r} names no column")
    return tuple(fields)


def fill_template(template: str, values: dict[str, str]) -> str:
    """Put column values into a template; values are inserted as they are, never interpreted."""
    return "".join(
        literal + (values[name] if name is not None else "")
        for literal, name, _, _ in string.Formatter().parse(template)
    )


def format_of(path: str, declared: str) -> tuple[Format, str | None] | None:
    """The format and compression ("gzip", "zstd" or None) of a file, or None where its name tells neither."""
    name = path.lower()
    compression = None
    for ending, codec in COMPRESSIONS.items():
        if name.endswith(ending):
            name, compression = name[: -len(ending)], codec
    if declared != "auto":
        return declared, compression  # type: ignore[return-value]  # pydantic checked the literal
    for ending, kind in _EXTENSIONS.items():
        if name.endswith(ending):
            return kind, compression
    return None
