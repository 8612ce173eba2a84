"""A document that kills the process of every worker that embeds it ends in rejected/, and nothing else is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from tests.checkpoints import save_model, save_tokenizer, sentence_transformers_layout, wordpiece_tokenizer
from tests.jobs.running import documents, rejected_of, start_job, vectors_of, write_config, write_jsonl

pytestmark = pytest.mark.timeout(900)

# The code of a checkpoint that dies as a broken CUDA kernel would: at once, without a Python exception.
_MODELING = """
import os
from transformers import BertConfig, BertModel

class FragileConfig(BertConfig):
    model_type = "fragile"

class FragileModel(BertModel):
    config_class = FragileConfig

    def forward(self, input_ids, **kwargs):
        if (input_ids == self.config.deadly_id).any():
            os._exit(1)
        return super().forward(input_ids=input_ids, **kwargs)
"""


def fragile_checkpoint(folder: Path, word: str) -> Path:
    """A tiny BERT with code of its own that ends the process when it reads `word`."""
    tokenizer = wordpiece_tokenizer()
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    save_model(folder, config, 0)
    save_tokenizer(folder, tokenizer, {"pad_token": "[PAD]", "unk_token": "[UNK]"}, 64)
    sentence_transformers_layout(folder, 32, "mean", True, 64, None)
    (folder / "modeling_fragile.py").write_text(_MODELING)
    stored = json.loads((folder / "config.json").read_text())
    stored |= {
        "model_type": "fragile",
        "architectures": ["FragileModel"],
        "deadly_id": tokenizer.token_to_id(word),
        "auto_map": {
            "AutoConfig": "modeling_fragile.FragileConfig",
            "AutoModel": "modeling_fragile.FragileModel",
        },
    }
    (folder / "config.json").write_text(json.dumps(stored))
    return folder


@pytest.mark.slow
def test_a_deadly_document_is_found_and_rejected(tmp_path: Path) -> None:
    model = fragile_checkpoint(tmp_path / "model", "government")
    rows = documents(300)
    rows[123]["text"] = "the government of the people"
    write_jsonl(tmp_path / "docs.jsonl", rows)
    config = write_config(
        tmp_path,
        model,
        source={"rows_per_fragment": 200},
        embedder={"trust_remote_code": True},
        gates={"max_rejected_fraction": 1.0},
    )
    process = start_job("embed", config)
    output, _ = process.communicate(timeout=800)
    assert process.returncode == 0, output
    assert rejected_of(tmp_path) == {"doc-123": "kills_worker"}
    assert vectors_of(tmp_path).num_rows == 299
    report = json.loads((tmp_path / "vectors" / "report.json").read_text())
    # Two deaths of the whole fragment, 200 -> 13 -> 1 row, and the row alone once more.
    assert report["counts"]["deaths"] <= 6
