"""The `source:` section of a config: where the documents are and what in them is id, text and image."""

from __future__ import annotations

import string
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from operators.storage import holds_secret

Format = Literal["parquet", "jsonl", "csv", "tsv", "text", "image"]

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
    ".jpg": "image",
    ".jpeg": "image",
    ".png": "image",
    ".webp": "image",
    ".gif": "image",
    ".bmp": "image",
    ".tif": "image",
    ".tiff": "image",
    ".avif": "image",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
MAX_ROWS, MAX_BYTES = 16384, 8 << 20  # of a fragment
# Where there are images: a decoded one travels as up to 1.7 MB (E5-V), and is some 100 kB in its file
MAX_IMAGE_ROWS, MAX_IMAGE_BYTES = 512, 64 << 20


class Source(BaseModel):
    """Where documents come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str | tuple[str, ...] = Field(
        description="file, folder, glob or a list of them; local, s3:// or any fsspec URL"
    )
    format: Literal["auto", "parquet", "jsonl", "csv", "tsv", "text", "image"] = Field(
        default="auto",
        description="auto goes by file names (.gz and .zst may follow); text, image = one file is one document",
    )
    id: str | None = Field(
        default=None,
        description="column with the document id (string or integer); null = path#row, and of an image file its path",
    )
    text: str | None = Field(
        default="text",
        description='column with the text, or a template such as "{title}\\n{text}"; null = none, default with image',
    )
    image: str | None = Field(
        default=None,
        description="column with images: their bytes, a struct of bytes and path, a path beside the source file, a "
        "URL or a data: URL; of image files it is called image",
    )
    private_image_hosts: bool = Field(
        default=False,
        description="fetch images that rows name from addresses of this machine and of private networks too; the "
        "source's own host may always be asked",
    )
    duplicates: Literal["error", "keep_first", "keep_all"] = Field(
        default="error",
        description="a document id that comes twice: stop before anything is embedded, keep the first and reject the "
        "others, or embed them all",
    )
    rows_per_fragment: int | None = Field(
        default=None,
        ge=1,
        description="rows after which a fragment (unit of retry, output file) ends; null = as many as a worker embeds "
        "in half a minute, decided once per output, and at most 16384 (512 with image)",
    )
    bytes_per_fragment: int | None = Field(
        default=None,
        ge=1024,
        description="bytes of text and images after which a fragment ends, also the size of byte ranges; null = as "
        "rows_per_fragment, and at most 8388608 (67108864 with image); where one of the two is set, null = at most",
    )
    pack_below_bytes: int | None = Field(
        default=None,
        ge=0,
        description="files smaller than this share fragments; null = 33554432 for image files, 65536 for files of "
        "text and where the first listing holds 256 files or more, else 0 (every file its own fragments), decided "
        "once per output",
    )
    storage_options: dict[str, Any] = Field(
        default_factory=dict,
        repr=False,
        description="fsspec options of the source (endpoint_url, anon, ...), never stored",
    )

    @model_validator(mode="before")
    @classmethod
    def _image_defaults(cls, values: Any) -> Any:
        is_of_images = isinstance(values, dict) and values.get("image") is not None
        return {"text": None, **values} if is_of_images else values

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
    def _a_column_or_a_template(cls, text: str | None) -> str | None:
        for field in (template_fields(text) or (text,)) if text is not None else ():
            if not field or not field.strip():
                raise ValueError(f'expected a column name or a template such as "{{title}}\\n{{text}}", got {text!r}')
        return text

    @model_validator(mode="after")
    def _has_content(self) -> Source:
        if self.text is None and self.image is None:
            raise ValueError("give text or image, the column with what is embedded: both are null")
        if self.image is not None and not self.image.strip():
            raise ValueError(f"expected a column name in image, got {self.image!r}")
        return self

    @property
    def checks_ids(self) -> bool:
        """Whether a document's id may stand in one row alone."""
        return self.id is not None and self.duplicates != "keep_all"

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths as a tuple, whether one or many were given."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def max_rows(self) -> int:
        """Rows after which a fragment ends."""
        return self.rows_per_fragment or (MAX_ROWS if self.image is None else MAX_IMAGE_ROWS)

    @property
    def max_bytes(self) -> int:
        """Bytes of text and images after which a fragment ends; also the size of byte ranges."""
        return self.bytes_per_fragment or (MAX_BYTES if self.image is None else MAX_IMAGE_BYTES)

    @property
    def is_cut_by_config(self) -> bool:
        """Whether the config says how large a fragment is."""
        return self.rows_per_fragment is not None or self.bytes_per_fragment is not None

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that the text is made of, each once, in order; none where only images are embedded."""
        if self.text is None:
            return ()
        return tuple(dict.fromkeys(template_fields(self.text))) or (self.text,)

    @property
    def content_columns(self) -> tuple[str, ...]:
        """The columns that are embedded: of the text, and the image's."""
        return (*self.text_columns, *((self.image,) if self.image else ()))

    def described(self, path: str) -> tuple[Format, str | None] | None:
        """The format and compression of a file of the source; None for one that it leaves out.

        Files of text are left out where images are embedded, and image files where they are not.
        """
        found = format_of(path, self.format)
        left_out = "text" if self.image is not None else "image"
        return None if found is not None and self.format == "auto" and found[0] == left_out else found

    def reading(self, keep: tuple[str, ...]) -> str:
        """A stable text of every option that changes what a unit's fragments contain (part of their keys)."""
        content = self.text if self.image is None else (self.text, self.image)
        return repr((self.format, self.id, content, self.duplicates, self.max_rows, self.max_bytes, keep))


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
    name, dot, ending = path.lower().rpartition(".")
    compression = COMPRESSIONS.get(dot + ending)
    if compression is not None:
        name, dot, ending = name.rpartition(".")
    if declared != "auto":
        return declared, compression  # type: ignore[return-value]  # pydantic checked the literal
    kind = _EXTENSIONS.get(dot + ending)
    return None if kind is None else (kind, compression)
