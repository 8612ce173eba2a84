"""What both kinds of embedders that see begin with: the process, what prepares images, and the model."""

from __future__ import annotations

from typing import Any

import torch

from operators.embedder.model.loading import DTYPES, load_model
from operators.embedder.recipe.spec import EmbedderSpec, verified_folder
from operators.embedder.starting import Device, prepare_process
from operators.embedder.vision.reading import ImageReader


def prepare(spec: EmbedderSpec, device: Device, threads: int | None) -> tuple[torch.device, ImageReader, Any]:
    """The device, the reader of images and texts, and the model on the device."""
    found = prepare_process(device, threads)
    reader = ImageReader(spec)
    model = load_model(verified_folder(spec, weights=True), DTYPES[spec.recipe.compute_dtype], spec.recipe)
    return found, reader, model.to(found)
