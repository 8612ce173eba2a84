"""Tiny random checkpoints that see, in the layouts of the hub, and drawn images."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from PIL import Image, ImageDraw
from tokenizers import processors
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.checkpoints import byte_level_tokenizer, save_tokenizer

SIDE, PATCH = 32, 8
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
}
CLIP_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GRIDS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
IMAGE_PROMPT = "<image>\nSummary above image in one word: "
BOTH_PROMPT = "<image>\n{text}\nSummary above image and sentence in one word: "
TEXT_PROMPT = "{text}\nSummary above sentence in one word: "


def tiny_clip(folder: Path, side: int = SIDE, seed: int = 0) -> Path:
    """A CLIP with its own tokenizer, whose end token has the highest id, as OpenAI's checkpoints have it."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=24).save_pretrained(folder)
    config = transformers.CLIPConfig(
        text_config={
            **CLIP_TEXT,
            "vocab_size": len(vocab),
            "max_position_embeddings": 24,
            "eos_token_id": 2,  # what those checkpoints say, and transformers then looks for the highest id
        },
        vision_config=VISION,
        projection_dim=24,
    )
    _save(folder, transformers.CLIPModel(config), seed)
    size = {"height": side, "width": side}
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=size).save_pretrained(folder)
    return folder


def tiny_siglip(folder: Path, seed: int = 0) -> Path:
    """A SigLIP whose tokenizer puts `</s>` last and pads with `<pad>`."""
    tokenizer = byte_level_tokenizer(specials=("</s>", "<pad>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    config = transformers.SiglipConfig(
        text_config={**CLIP_TEXT, "vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 16},
        vision_config=VISION,
    )
    _save(folder, transformers.SiglipModel(config), seed)
    save_tokenizer(folder, tokenizer, {"pad_token": "<pad>", "eos_token": "</s>"}, 16)
    SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def tiny_llava(folder: Path, kind: Literal["llava", "llava_next"] = "llava", seed: int = 0) -> Path:
    """A LLaVA (or LLaVA-NeXT, which cuts images into tiles) around a Llama, saved with its language model's head."""
    tokenizer = byte_level_tokenizer(specials=("<image>",))
    text: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
    }
    vision = {"model_type": "clip_vision_model", **VISION}
    common = {"vision_config": vision, "text_config": text, "image_token_index": 2}
    size = {"shortest_edge": SIDE}
    crop = {"height": SIDE, "width": SIDE}
    model: torch.nn.Module
    if kind == "llava":
        model = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(**common))
        image_processor = LlavaImageProcessorPil(size=size, crop_size=crop)
        processor_class = transformers.LlavaProcessor
    else:
        config = transformers.LlavaNextConfig(**common, image_grid_pinpoints=GRIDS)
        model = transformers.LlavaNextForConditionalGeneration(config)
        image_processor = LlavaNextImageProcessorPil(size=size, crop_size=crop, image_grid_pinpoints=GRIDS)
        processor_class = transformers.LlavaNextProcessor
    _save(folder, model, seed)
    save_tokenizer(folder, tokenizer, {"pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, 512)
    processor_class(
        image_processor,
        transformers.AutoTokenizer.from_pretrained(folder),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    image_processor.save_pretrained(folder)
    return folder


def recipe_file(path: Path, checkpoint: Path, **fields: Any) -> Path:
    """A recipe of a tiny checkpoint as YAML (which JSON is); `fields` go before the family's own."""
    model_type = json.loads((checkpoint / "config.json").read_text())["model_type"]
    own: dict[str, dict[str, Any]] = {
        "clip": {"kind": "two_towers", "pooling": "own", "max_tokens": 24},
        "siglip": {"kind": "two_towers", "pooling": "own", "max_tokens": 16, "pad_token": "<pad>"},
    }
    llava = {
        "kind": "vision_llm",
        "pooling": "last",
        "max_tokens": 256,
        "prompts": {"document": TEXT_PROMPT, "query": TEXT_PROMPT},
        "image_prompt": IMAGE_PROMPT,
        "image_text_prompt": BOTH_PROMPT,
    }
    path.write_text(
        json.dumps({"checkpoint": str(checkpoint), "normalize": True, **own.get(model_type, llava), **fields})
    )
    return path


def drawn(number: int, width: int = 60, height: int = 40) -> Image.Image:
    """A picture of a disc and a bar, another for each number."""
    image = Image.new("RGB", (width, height), (number * 37 % 256, number * 91 % 256, number * 53 % 256))
    draw = ImageDraw.Draw(image)
    left, top = number * 7 % (width // 2), number * 5 % (height // 2)
    draw.ellipse((left, top, left + width // 3, top + height // 2), fill=(250, 20 * number % 256, 30))
    draw.line((0, height - 1 - top, width, top), fill=(10, 200, 11 * number % 256), width=3)
    return image


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _save(folder: Path, model: Any, seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
