"""distill: a small model learns what teachers say of texts: their vectors, or their scores of queries and documents.

    python -m jobs distill configs/distill/quickstart.yaml

What teachers say is computed once, by Ray Data, and kept beside the prepared sets. The student is any model, or some of
the layers of one. Everything else is as in `train`, with the same folder at the end. docs/distillation.md
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np

from cluster.session import connect
from jobs import train
from jobs.distilling.config import DistillConfig as Config
from jobs.embedding.identity import RECIPES
from jobs.training.data import prepare_sets
from operators.embedder.recipe.fingerprint import mapping_digest
from operators.embedder.recipe.spec import EmbedderSpec, embedder_spec
from operators.errors import InputError
from operators.storage import Location, exists, locate, upload_folder, write_whole
from operators.storage.cache import Cache
from operators.training.config.student import Student

logger = logging.getLogger(__name__)

STUDENT = "student"
_WHOLE = "whole.json"  # written last
_PROJECTION_ROWS = 4096


def run(config: Config) -> int:
    """Make the student where that is asked for, then train it; returns the exit code."""
    if config.student is None:
        return train.run(config)
    return train.run(config.model_copy(update={"model": _student(config).url}))


def _student(config: Config) -> Location:
    """The student's folder in the run's; made where it is not there."""
    spec = embedder_spec(config.model, config.embedder, RECIPES)
    assert config.student is not None, "the config asks for a student"
    determines = {"model": spec.fingerprint, "seed": config.seed, **config.student.model_dump()}
    output = locate(config.output.path, config.output.storage_options)
    folder = output / STUDENT / mapping_digest(determines)[:16]
    if config.output.storage_options and not output.is_local:
        raise InputError(
            "give the keys and the endpoint of output.path in the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, "
            "...), not as storage_options: workers fetch the student from there"
        )
    if not exists(folder / _WHOLE):
        with connect(local_cpus=config.compute.local_cpus):
            import ray

            texts = _texts(config) if config.student.dims is not None else ()
            layers = ray.get(ray.remote(num_cpus=1)(_make).remote(spec, config.student, texts, folder))
        logger.info("student: layers %s of %s", ", ".join(map(str, layers)), config.model)
    return folder


def _make(spec: EmbedderSpec, student: Student, texts: tuple[str, ...], folder: Location) -> tuple[int, ...]:
    from operators.training.model.student import make_student

    with tempfile.TemporaryDirectory(prefix="embedfleet-student-") as made:
        layers = make_student(spec, student, Path(made), texts)
        upload_folder(Path(made), folder)
    write_whole(folder / _WHOLE, b"{}")
    return layers


def _texts(config: Config) -> tuple[str, ...]:
    """Texts of the first set, whose vectors the student's projection is made from."""
    prepared = prepare_sets(config)[0]
    rows = prepared.rows("train", Cache.at(config.prepared.cache_dir))
    table = rows.take(np.arange(min(len(rows), _PROJECTION_ROWS)))
    return tuple(table["query"].to_pylist())
