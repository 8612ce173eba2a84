"""A static embedder on disk: a tokenizer and a table with one vector for each of its ids.

Three layouts: sentence-transformers (modules.json with StaticEmbedding), model2vec (config.json with its model_type),
and what `conversion` makes of word vectors. The last two leave unknown words out of the mean, the first counts them.
Nothing here imports torch but `load_table`; the driver asks for the rest.
Shapes: V ids, D dims, U distinct vectors of a table that shares them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from operators.embedder.recipe import checkpoint, fingerprint
from operators.errors import InputError

if TYPE_CHECKING:
    import torch

WEIGHTS = "model.safetensors"
TABLE_KEYS = ("embedding.weight", "embeddings")  # of sentence-transformers and of model2vec
MODEL2VEC_TYPE, OWN_TYPE = "model2vec", "word_vectors"
# Part of every fingerprint: raise it when a change of the static engine changes the vectors
STATIC_VERSION = 1
UNBOUNDED_TOKENS = 1_000_000  # a mean of vectors has no limit; recipes need one


def is_static(folder: Path) -> bool:
    """Whether a checkpoint folder holds a static embedder."""
    kinds = _module_kinds(folder)
    return kinds[:1] == ["StaticEmbedding"] or (not kinds and _model_type(folder) == MODEL2VEC_TYPE)


def recipe_fields(folder: Path, prompts: dict[str, str]) -> dict[str, Any]:
    """The fields of the recipe of a static embedder's folder, all but `checkpoint`."""
    kinds = _module_kinds(folder)
    if kinds[1:] not in ([], ["Normalize"]):
        raise InputError(
            f"{folder} cannot be embedded with: after StaticEmbedding, modules.json may have Normalize alone, "
            f"not {', '.join(kinds[1:])}"
        )
    if kinds:
        normalize = kinds[-1] == "Normalize"
    else:
        normalize = bool(checkpoint.read_json(folder / "config.json").get("normalize", False))
    return {
        "kind": "static",
        "pooling": "mean",
        "normalize": normalize,
        "max_tokens": UNBOUNDED_TOKENS,
        "prompts": prompts,
    }


def width(folder: Path) -> int:
    """How many dims a table has, from the first bytes of its file."""
    return int(_header(folder)[_table_key(folder)]["shape"][1])


def load_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer, without the special tokens that it puts around texts for transformers."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{folder} is no static embedder: it has no tokenizer.json")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"cannot load the tokenizer {path}: {error}") from error
    backend.post_processor = None
    backend.no_truncation()
    backend.no_padding()
    return backend


def unknown_id(folder: Path) -> int | None:
    """The id of unknown words where the layout leaves them out of the mean."""
    if (folder / "modules.json").is_file() or _model_type(folder) not in (MODEL2VEC_TYPE, OWN_TYPE):
        return None
    model = checkpoint.read_json(folder / "tokenizer.json").get("model", {})
    if isinstance(model.get("unk_id"), int):  # Unigram
        return int(model["unk_id"])
    vocab = model.get("vocab")
    return vocab.get(model.get("unk_token")) if isinstance(vocab, dict) else None


def load_table(folder: Path) -> torch.Tensor:
    """table_VD in float32; mapped, not read, where the file has it so: all processes of a machine then share it."""
    import safetensors.torch
    import torch

    try:
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"cannot load {folder / WEIGHTS}: {error}") from error
    table_UD = tensors[_table_key(folder)].to(torch.float32)
    if "mapping" in tensors:
        table_UD = table_UD[tensors["mapping"].long()]
    if "weights" in tensors:
        table_UD = table_UD * tensors["weights"].to(torch.float32)[:, None]
    unknown = unknown_id(folder)
    if unknown is not None and table_UD[unknown].any():
        table_UD = table_UD.clone()  # of a model2vec folder; what `conversion` makes stays mapped
        table_UD[unknown] = 0.0
    return table_UD


def digest(folder: Path) -> str:
    """The digest of the files that determine what is done with a text's ids."""
    named = [path for name in ("config.json", "modules.json") if (path := folder / name).is_file()]
    return fingerprint.files_digest([*checkpoint.weight_files(folder), *named])


def write_sentence_transformers(folder: Path, table_VD: torch.Tensor, tokenizer: tokenizers.Tokenizer) -> None:
    """Fill a folder so that sentence-transformers and `load_recipe` read it alike; vectors are normalised."""
    import safetensors.torch

    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({TABLE_KEYS[0]: table_VD.contiguous()}, folder / WEIGHTS, metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate([("", "StaticEmbedding"), ("1_Normalize", "Normalize")])
    ]
    (folder / "1_Normalize").mkdir(exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(modules, indent=2), encoding="utf-8")
    (folder / "config_sentence_transformers.json").write_text('{"similarity_fn_name": "cosine"}', encoding="utf-8")


def _table_key(folder: Path) -> str:
    header = _header(folder)
    key = next((key for key in TABLE_KEYS if key in header), None)
    if key is None or len(header[key]["shape"]) != 2:
        raise InputError(f"{folder / WEIGHTS} has no table of vectors: none of {', '.join(TABLE_KEYS)} is there")
    return key


def _header(folder: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    (path,) = checkpoint.weight_files(folder)
    try:
        with safe_open(path, framework="np") as file:
            return {key: {"shape": file.get_slice(key).get_shape()} for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot load {path}: {error}") from error


def _module_kinds(folder: Path) -> list[str]:
    path = folder / "modules.json"
    if not path.is_file():
        return []
    return [str(module["type"]).rsplit(".", 1)[-1] for module in checkpoint.read_json(path)]


def _model_type(folder: Path) -> str | None:
    path = folder / "config.json"
    config = checkpoint.read_json(path) if path.is_file() else {}
    return config.get("model_type") if isinstance(config, dict) else None
