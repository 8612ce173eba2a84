"""distill-static: a transformer into a table of token vectors, which embeds hundreds of times faster and less well.

    python -m jobs distill-static configs/distill_static/quickstart.yaml

The folder that it makes is a model for every other job, and for sentence-transformers. It runs in one process, without
Ray: a vocabulary is as much work as a few thousand texts.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from jobs.distilling.static_config import DistillStaticConfig as Config
from jobs.embedding.identity import RECIPES
from operators.embedder.recipe.spec import embedder_spec
from operators.errors import InputError

_FACTS = "distilled.json"


def run(config: Config) -> int:
    """Distil, unless the folder holds just that; returns the exit code."""
    spec = embedder_spec(config.model, config.embedder, RECIPES)
    folder = Path(config.output.path).expanduser()
    determines = config.model_dump(include={"dims", "sif_a", "exclude"})
    facts = {"model": config.model, "fingerprint": spec.fingerprint, **determines}
    if _is_there(folder, facts):
        print(f"nothing to do: {folder} holds this already")
        return 0
    from operators.embedder.static_distillation import distill_static  # torch: seconds

    started = time.monotonic()
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    done = distill_static(spec, part, config.dims, config.sif_a, config.exclude, config.threads)
    (part / _FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    part.rename(folder)
    print(
        f"{done.num_tokens:,} tokens of {config.model} in {time.monotonic() - started:.0f} s: {done.dim} dims hold "
        f"{done.explained_variance:.1%} of the variance; {done.num_zero:,} special and unused tokens are left out\n"
        f"  next        model: {folder}"
    )
    return 0


def _is_there(folder: Path, facts: dict[str, object]) -> bool:
    """Whether the folder holds what these facts say; raises InputError where it holds anything else."""
    if not folder.exists():
        return False
    known = folder / _FACTS
    if known.is_file() and json.loads(known.read_text(encoding="utf-8")) == facts:
        return True
    raise InputError(f"set output.path to another folder, or remove {folder}: it holds something else")
