"""One rank of a training: from the last checkpoint on, step after step, to the trained model's folder.

Every rank computes the same plan and its own slice of each batch; the first one writes.
"""

from __future__ import annotations

import json
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from jobs.training.checkpoints import best_trained, load_weights, report_checkpoint, restore
from jobs.training.inputs import judged_by, rank_batches, ready_sets, set_reader
from jobs.training.model import peak_bytes, trained_model
from jobs.training.passes import load_encoder, set_passes
from jobs.training.precision import settled_tuning
from jobs.training.record import RunRecorder
from jobs.training.run import TrainRun
from operators.embedder.model.device import prepare_process
from operators.embedder.model.forward import default_batch_tokens
from operators.storage import write_whole
from operators.training.judging.evaluating import RankEmbedder, UnfitEvaluation
from operators.training.model.encoder import Reader
from operators.training.record.curve import Evaluated, StepMetrics
from operators.training.record.outcome import Trained
from operators.training.steps.step import TrainingDiverged, TrainStep, trained_parameters

_DIVERGED = "diverged.jsonl"


class TrainWorker:
    """One rank of a run, ready to go on from the run's last checkpoint."""

    def __init__(self, run: TrainRun, rank: int, world_size: int, threads: int, board: Any) -> None:
        self._run, self._rank, self._world_size, self._board = run, rank, world_size, board
        config = run.config
        prepare_process("auto", threads)
        device = ray.train.torch.get_device()  # on a machine with several GPUs, the one that is ours
        torch.manual_seed(config.seed)  # a classifier begins the same on every rank
        self._tuning = settled_tuning(run, device, rank)
        encoder = load_encoder(run, self._tuning, device)
        readers = [set_reader(run, prepared) for prepared in run.prepared]
        names = [one.name for one in config.sets]
        passes = set_passes(run, encoder, readers[: len(names)])
        self._step = TrainStep(encoder, passes, names, config.optimization, run.num_steps)
        pass_tokens = min(config.batch.pass_tokens or default_batch_tokens(device), config.batch.tokens)
        self._sets = ready_sets(run, readers, "train")
        self._batches = rank_batches(run, self._sets, rank, world_size, pass_tokens)
        self._embedder = RankEmbedder(
            encoder, lambda prompted: Reader({"document": run.prompted_spec(prompted)}), rank, world_size, pass_tokens
        )
        self._judged = judged_by(run, encoder, readers, rank, world_size, pass_tokens)
        self.first_step, self._curve = restore(run, self._step, board)
        self._recorder = RunRecorder(run, board, self.first_step) if rank == 0 else None

    def train(self) -> Trained:
        """Steps, evaluations and checkpoints to the end; then the model's folder."""
        run, done, is_first_rank = self._run, self.first_step, self._rank == 0
        try:
            if not done:
                self._evaluate(0)
            while not self._is_over(done):
                before, done = done, self._train_until(self._next_stop(done), done)
                if self._evaluates_at(done):
                    self._evaluate(done)
                if self._recorder is not None:
                    self._recorder.store(self._curve, before)
                is_over = self._is_over(done)
                report_checkpoint(run, self._step, self._curve, done, is_first_rank, is_over, self._board)
        except TrainingDiverged as error:
            return Trained(self._curve, fault=f"{error}; {self._keep_batch(error)}")
        except UnfitEvaluation as error:
            return Trained(self._curve, fault=str(error))
        return self._finish(done)

    def _train_until(self, stop: int, done: int) -> int:
        """Train up to a step; what is done is in the curve, whatever happens."""
        new: list[StepMetrics] = []
        try:
            for batch in self._batches(done, stop):
                new.append(self._step(batch))
                self._show(new[-1])
        finally:
            self._curve = self._curve.plus(*new)
        return stop

    def _next_stop(self, done: int) -> int:
        """The next step after which there is a checkpoint."""
        run = self._run
        periods = [run.checkpoint_every, *([run.evaluate_every] if run.evaluate_every else [])]
        return min(run.num_steps, *((done // period + 1) * period for period in periods))

    def _evaluates_at(self, done: int) -> bool:
        every = self._run.evaluate_every
        return every is not None and (done % every == 0 or done == self._run.num_steps)

    def _evaluate(self, done: int) -> None:
        if self._judged is not None:
            evaluated = self._judged(self._embedder, done)
            self._curve = self._curve.plus(evaluated)
            self._show(evaluated)

    def _is_over(self, done: int) -> bool:
        """Whether all steps are done, or evaluations have not become better for long enough."""
        patience = self._run.evaluation.patience if self._run.evaluation is not None else None
        best = best_trained(self._curve)
        if patience is not None and best is not None:
            since = sum(one.step > best for one in self._curve.evaluations)
            return since >= patience or done >= self._run.num_steps
        return done >= self._run.num_steps

    def _finish(self, done: int) -> Trained:
        """Write the folder of the best weights, or of the last where nothing judged them."""
        best = best_trained(self._curve)
        kept = done if best is None else best
        run, encoder, parameters = self._run, self._step.encoder, self._step.parameters
        if encoder.is_sharded:
            dist.barrier()  # every rank's part of the last checkpoint is stored
        if self._recorder is None:
            return Trained(self._curve, kept)
        self._recorder.close(finished=True)
        peak = peak_bytes(encoder.device)
        if encoder.is_sharded:
            whole = self._tuning.model_copy(update={"sharding": "none"})
            encoder = load_encoder(run, whole, torch.device("cpu"))
            parameters = trained_parameters(encoder, self._step.passes)
        if kept != done or encoder is not self._step.encoder:
            load_weights(run, parameters, kept)
        model = trained_model(run, encoder)
        return Trained(self._curve, kept, None, model, peak, self._world_size, self._tuning.precision)

    def _keep_batch(self, error: TrainingDiverged) -> str:
        """Write the rows that a run ended on; says where they are."""
        place = self._run.output / _DIVERGED
        if self._rank == 0:
            table = self._sets[error.planned.set_index].rows.take(error.planned.rows_B)
            lines = (json.dumps(row, ensure_ascii=False) for row in table.to_pylist())
            write_whole(place, "\n".join(lines).encode())
        return f"its rows are in {place}"

    def _show(self, record: StepMetrics | Evaluated) -> None:
        if self._recorder is not None:
            self._recorder(record)
