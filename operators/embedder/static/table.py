"""The table of a static embedder's folder, read and written.

Shapes: V ids, D dims, U distinct vectors of a table that shares them.
"""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import tokenizers
import torch
from safetensors import SafetensorError

from operators.embedder.recipe.static_folder import TABLE_KEYS, WEIGHTS, table_key, unknown_id
from operators.errors import InputError


def load_table(folder: Path) -> torch.Tensor:
    """table_VD in float32; mapped, not read, where the file has it so: all processes of a machine then share it."""
    try:
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"cannot load {folder / WEIGHTS}: {error}") from error
    table_UD = tensors[table_key(folder)].to(torch.float32)
    if "mapping" in tensors:
        table_UD = table_UD[tensors["mapping"].long()]
    if "weights" in tensors:
        table_UD = table_UD * tensors["weights"].to(torch.float32)[:, None]
    unknown = unknown_id(folder)
    if unknown is not None and table_UD[unknown].any():
        table_UD = table_UD.clone()  # of a model2vec folder; what `conversion` makes stays mapped
        table_UD[unknown] = 0.0
    return table_UD


def write_sentence_transformers(folder: Path, table_VD: torch.Tensor, tokenizer: tokenizers.Tokenizer) -> None:
    """Fill a folder so that sentence-transformers and `load_recipe` read it alike; vectors are normalised."""
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
