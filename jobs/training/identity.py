"""Which run a folder is of: the fingerprint of all that determines the trained weights, and the claim on the folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.embedding.identity import RECIPES
from jobs.training.config import TrainConfig
from operators.corpus.listing import list_source
from operators.embedder.recipe.fingerprint import mapping_digest
from operators.embedder.recipe.spec import EmbedderSpec
from operators.errors import InputError
from operators.storage import Location, create_exclusive, delete, read_bytes, redact
from operators.teachers.spec import teacher_spec
from operators.training.config.sets import TrainingSet

RUN_FILE = "run.json"


def run_fingerprint(config: TrainConfig, spec: EmbedderSpec) -> str:
    """A hash of all that determines the trained weights: model, data, loss and how it is optimised."""
    facts = config.model_dump(
        mode="json", include={"embedder", "tuning", "optimization", "epochs", "steps", "seed", "objective"}
    )
    facts |= {"model": spec.fingerprint, "batch": config.batch.size}
    rows = {one.name: one.fingerprint(list_source(one.source()), config.seed) for one in config.all_sets}
    facts["sets"] = [
        {
            **_set_facts(one, rows[one.name]),
            "teachers": [
                teacher_spec(teacher, one, rows[one.name], RECIPES).fingerprint for teacher in config.asked(one)
            ],
            "objective": config.objective_of(one).model_dump(mode="json"),
        }
        for one in config.sets
    ]
    if (generation := config.generation) is not None:
        facts["generation"] = generation.model_dump(mode="json", exclude={"sets"})
        facts["generation"]["sets"] = [_set_facts(one, rows[one.name]) for one in generation.sets]
    return mapping_digest(facts)


def _set_facts(training_set: TrainingSet, rows: str) -> dict[str, object]:
    return {
        "rows": rows,
        **training_set.model_dump(mode="json", include={"name", "query", "document", "symmetric", "weight"}),
        "in_batch": training_set.has_in_batch_negatives,
    }


def public_config(config: TrainConfig) -> dict[str, object]:
    """The config as it may be stored and shown: storage options out, what looks like a secret masked."""
    values = config.model_dump(mode="json", exclude_defaults=True)
    tasks = (values.get("evaluation") or {}).get("tasks", [])
    sets = [*values["sets"], *(values.get("generation") or {}).get("sets", [])]
    for section in (values["output"], values.get("prepared", {}), *sets, *tasks):
        section.pop("storage_options", None)
    redacted: dict[str, object] = redact(values)
    return redacted


@contextmanager
def claimed_run(output: Location, fingerprint: str) -> Iterator[None]:
    """Make the folder this run's, unless its sets are refused: the config may be mended for the same folder.

    Raises InputError where it is another's, or not for writing.
    """
    is_new = create_exclusive(output / RUN_FILE, json.dumps({"fingerprint": fingerprint}).encode())
    if not is_new:
        _refuse_another(output, fingerprint)
    try:
        yield
    except InputError:
        if is_new:
            delete(output / RUN_FILE)
        raise


def _refuse_another(output: Location, fingerprint: str) -> None:
    """Raise InputError where the folder is that of another run."""
    try:
        found = json.loads(read_bytes(output / RUN_FILE))["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"give output.path another folder: {output / RUN_FILE} does not read: {error}") from None
    if found != fingerprint:
        raise InputError(
            f"give output.path another folder: {output} is that of a run with another model, data or settings "
            f"({str(found)[:12]}, this is {fingerprint[:12]})"
        )
