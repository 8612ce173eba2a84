"""An embeddings dataset: where its parts lie, and which model it belongs to.

OUT/dataset.json               the identity: created once, by whichever run comes first; never changed
OUT/snapshots/00000001.parquet  one row a fragment (operators.store.snapshots)
OUT/data/<key>.parquet          the vectors, dense, sparse or both (operators.store.fragments)
OUT/rejected/<key>.parquet      the rows that got no vector, with reasons
OUT/ids/<key>.parquet           hashes of the document ids (operators.store.id_hashes)
"""

from __future__ import annotations

import base64
import dataclasses
import json
from dataclasses import dataclass

import pyarrow as pa

from operators.embedder.quantization import OutputDtype
from operators.embedder.recipe.keywords import Similarity
from operators.errors import InputError
from operators.storage import Location, create_exclusive, exists, read_bytes

LAYOUT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Identity:
    """What all fragments of a dataset have in common; two runs that differ in it cannot share an output."""

    fingerprint: str  # of everything that determines the vectors
    model: str
    dim: int  # components of a vector, before binary packing; 0: sparse vectors alone
    dtype: OutputDtype
    normalized: bool
    scale: float | None  # int8 only: vector = code * scale, one scale for the whole dataset
    keep_schema: str  # Arrow schema of the kept columns, base64 of its IPC form
    pack_below_bytes: int
    layout: int = LAYOUT_VERSION
    sparse_dim: int = 0  # ids that a sparse vector can have; 0: there are no sparse vectors
    # Where a fragment ends, decided once; 0: begun before outputs had such sizes, so as the config says
    fragment_rows: int = 0
    fragment_bytes: int = 0
    similarity: Similarity = "cosine"  # of the model, for an index with metric: auto

    @property
    def keep(self) -> pa.Schema:
        """The kept columns and their types."""
        return decode_schema(self.keep_schema)

    @property
    def cut(self) -> tuple[int, int, int]:
        """How its source is cut into fragments."""
        return self.pack_below_bytes, self.fragment_rows, self.fragment_bytes


def encode_schema(schema: pa.Schema) -> str:
    """An Arrow schema as text."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def decode_schema(text: str) -> pa.Schema:
    """The schema that `encode_schema` wrote."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def read_identity(dataset: Location) -> Identity | None:
    """The identity of the dataset at this place, or None where there is none yet.

    Raises InputError for a file that this version cannot read.
    """
    location = dataset / "dataset.json"
    if not exists(location):
        return None
    try:
        stored = dict(json.loads(read_bytes(location)))
        known = {field.name for field in dataclasses.fields(Identity)}
        identity = Identity(**{name: value for name, value in stored.items() if name in known})
    except (ValueError, TypeError) as error:
        raise InputError(f"choose another output.path: {location.url} is no embeddings dataset ({error})") from error
    if identity.layout != LAYOUT_VERSION:
        raise InputError(
            f"choose another output.path: {dataset.url} has layout {identity.layout}; this version writes layout "
            f"{LAYOUT_VERSION}"
        )
    return identity


def claim_identity(dataset: Location, wanted: Identity) -> Identity:
    """Create the dataset's identity, or take the one that is there if it agrees.

    Scale, packing and the size of fragments are decided once: an existing dataset's own are returned. Raises InputError
    where the output belongs to another model or other settings.
    """
    text = json.dumps(dataclasses.asdict(wanted), indent=1, sort_keys=True)
    if create_exclusive(dataset / "dataset.json", text.encode()):
        return wanted
    present = read_identity(dataset)
    assert present is not None, "create_exclusive lost, so the file is there"
    check_identity(dataset, present, wanted)
    return present


def check_identity(dataset: Location, present: Identity, wanted: Identity) -> None:
    """Raise InputError where a dataset was made by another model or with other settings than are wanted now."""
    for name in ("fingerprint", "dim", "sparse_dim", "dtype", "normalized", "keep_schema"):
        here, now = getattr(present, name), getattr(wanted, name)
        if here != now:
            if name == "keep_schema":
                here, now = _names(here), _names(now)
            raise InputError(
                f"choose another output.path: {dataset.url} holds vectors of {present.model} with {name} {here}, "
                f"this run ({wanted.model}) has {now}"
            )


def _names(encoded: str) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in decode_schema(encoded)) or "no kept columns"
