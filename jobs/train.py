"""train: pairs, triples, scored pairs, lists or texts in, a fine-tuned embedder out.

    python -m jobs train configs/train/quickstart.yaml

Run it again after a crash: it goes on from the last checkpoint in its folder; a finished run starts no Ray. Leaves
model/ (for `embed`, and for SentenceTransformer), report.json, report.html and checkpoints/. docs/training.md
"""

from __future__ import annotations

import os
from datetime import UTC, datetime

from cluster.session import connect
from jobs.training.config import TrainConfig as Config
from jobs.training.data import batch_plan, prepare_sets
from jobs.training.identity import claimed_run, run_fingerprint
from jobs.training.outcome import is_finished, write_outcome
from jobs.training.run import TrainRun, check_batches, number_of_steps, start_spec, teachers_said
from operators.evaluation.extra import check_installed
from operators.storage import locate


def run(config: Config) -> int:
    """Prepare the sets, train, write the model and the report; returns the exit code."""
    started = datetime.now(UTC)
    if config.evaluation is not None or config.measured:
        check_installed()
    spec = start_spec(config)
    fingerprint = run_fingerprint(config, spec)
    output = locate(config.output.path, config.output.storage_options)
    if is_finished(output, fingerprint):
        print(f"nothing to do: {output} holds the model of this run; no worker was started")
        return 0
    with connect(local_cpus=config.compute.local_cpus) as session:
        # torch and Ray Train are seconds that a finished run need not wait for
        from jobs.training.fit import fit, most_workers

        with claimed_run(output, fingerprint):
            sets = prepare_sets(config)
            plan = batch_plan(config, sets[: len(config.sets)])
            check_batches(config, sets, plan, most_workers(config.compute, session))
        said = teachers_said(config, sets)
        steps = number_of_steps(config, plan)
        training = TrainRun(config, spec, sets, said, fingerprint, steps, output, os.getcwd())
        trained = fit(training, session)
    write_outcome(training, plan, trained, started)
    return 0
