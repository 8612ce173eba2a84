"""A language model as a teacher: asked of a query and a document, it says Yes or No, and the log-odds are the score.

One forward a pair (pointwise, as Qwen3-Reranker, arXiv 2506.05176, and monoT5, arXiv 2003.06713, do it), of which two
logits are made at the last token alone, without the rest of the vocabulary. Padding is on the right, where a causal
model does not see it. A prompt that is too long loses the end of its document; a query keeps at most half of what the
prompt leaves.

Shapes: M different pairs, B of a batch, L padded length, D width of a state.
"""

from __future__ import annotations

import itertools
import re

import numpy as np
import pyarrow as pa
import tokenizers
import torch
import transformers
from numpy.typing import NDArray

from operators.embedder.model.device import compute_dtype, prepare_process
from operators.embedder.model.forward import default_batch_tokens
from operators.embedder.model.loading import load_model
from operators.embedder.selftest import PROBE_TOKENS, tokens_that_see
from operators.embedder.tokens.backend import load_fast, special_ids
from operators.embedder.tokens.batching import Batch
from operators.embedder.tokens.truncating import kept_between
from operators.errors import InputError
from operators.teachers.config import DOCUMENT, QUERY, TASK, JudgeTeacher
from operators.teachers.inputs import TeacherInputs
from operators.teachers.outputs import Outputs
from operators.teachers.pairs import list_array, pairs_of, score_pairs
from operators.teachers.spec import PairSpec, recipe_of, scorer_folder


class JudgeReader:
    """Rows to the token ids of their prompts."""

    def __init__(self, spec: PairSpec) -> None:
        self._backend = load_fast(scorer_folder(spec, weights=False), spec.teacher.trust_remote_code)[0]
        self._first = special_ids(self._backend)[0]
        teacher = spec.teacher
        assert isinstance(teacher, JudgeTeacher), "a judge's spec"
        assert teacher.max_tokens is not None, "a spec has it set"
        self._before, self._after = teacher.prompt.split(DOCUMENT)
        self._keep = teacher.max_tokens - len(self._first)
        self._task = spec.task
        room = self._keep - len(_ids(self._backend, filled(self._before + self._after, "", spec.task)))
        if room < 2:
            raise InputError(f"max_tokens {teacher.max_tokens} of {teacher.name!r} leaves no room beside its prompt")
        self._query_tokens = room // 2

    def __call__(self, rows: pa.Table) -> TeacherInputs:
        """The inputs of R rows: a prompt for each different pair."""
        pairs = pairs_of(rows)
        ids: list[list[int]] = []
        document_M = pa.array(pairs.document_M)
        for query, group in itertools.groupby(range(len(pairs.query_M)), key=lambda pair: pairs.query_M[pair]):
            own = list(group)
            text = self._cut(pairs.queries.texts[int(query)].as_py())
            documents = pairs.documents.texts.take(document_M[own[0] : own[-1] + 1])
            before, after = filled(self._before, text, self._task), filled(self._after, text, self._task)
            ids += [
                [*self._first, *kept] for kept in kept_between(self._backend, documents, before, after, self._keep)[0]
            ]
        return TeacherInputs(list_array(ids), pairs.places_RK)

    def _cut(self, query: str) -> str:
        offsets = self._backend.encode(query, add_special_tokens=False).offsets
        return query if len(offsets) <= self._query_tokens else query[: offsets[self._query_tokens - 1][1]]


def filled(piece: str, query: str, task: str | None) -> str:
    """A piece of a prompt with query and task in place; nothing in them is taken for a place."""
    texts = {QUERY: query, TASK: task or ""}
    return re.sub("|".join(map(re.escape, texts)), lambda place: texts[place[0]], piece)


def _ids(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    return list(backend.encode(text, add_special_tokens=False).ids)


class Judge:
    """Inputs to scores; raises InputError where the checkpoint is no causal language model, or an answer no token."""

    def __init__(self, spec: PairSpec, threads: int | None) -> None:
        teacher = spec.teacher
        assert isinstance(teacher, JudgeTeacher), "a judge's spec"
        self._device = prepare_process(teacher.device, threads)
        self._batch_tokens = teacher.batch_tokens or default_batch_tokens(self._device)
        folder = scorer_folder(spec, weights=True)
        backend = load_fast(folder, teacher.trust_remote_code)[0]
        dtype = compute_dtype(teacher.compute_dtype, self._device)
        model = load_model(folder, dtype, recipe_of(teacher), transformers.AutoModelForCausalLM)
        probe = [*special_ids(backend)[0], *_ids(backend, teacher.prompt)][:PROBE_TOKENS]
        with torch.inference_mode():
            sees_after = tokens_that_see(model.base_model, torch.tensor([probe]))[0]
        if sees_after:
            raise InputError(f"give a judge that reads from left to right: {teacher.checkpoint} is bidirectional")
        self._answers = _AnswerHead(model.get_output_embeddings(), answer_ids(backend, teacher, spec.task))
        model.set_output_embeddings(self._answers)
        self._model = model.to(self._device)

    @torch.inference_mode()
    def __call__(self, inputs: TeacherInputs) -> Outputs:
        """The scores of the rows."""
        return score_pairs(inputs, self._batch_tokens, self._scores)

    def _scores(self, batch: Batch, _: NDArray[np.int64] | None) -> torch.Tensor:
        ids_BL = torch.from_numpy(batch.pad(0)).to(self._device)
        self._answers.last_B = torch.from_numpy(batch.lengths_B - 1).to(self._device)
        logits_B12: torch.Tensor = self._model(input_ids=ids_BL).logits.float()
        return logits_B12[:, 0, 0] - logits_B12[:, 0, 1]


def answer_ids(backend: tokenizers.Tokenizer, teacher: JudgeTeacher, task: str | None) -> list[int]:
    """The tokens of the answers where they follow the prompt; raises InputError where one is not a single token."""
    end = teacher.prompt[max(teacher.prompt.find(place) + len(place) for place in (QUERY, DOCUMENT)) :]
    end = filled(end, "", task)
    before, found = _ids(backend, end), []
    for answer in teacher.answers:
        ids = _ids(backend, end + answer)
        if len(ids) != len(before) + 1 or ids[:-1] != before:
            raise InputError(
                f"change answers of the teacher {teacher.name!r}, or the end of its prompt: after {end!r} the answer "
                f"{answer!r} is not one token of its own"
            )
        found.append(ids[-1])
    if found[0] == found[1]:
        raise InputError(f"give two answers to the teacher {teacher.name!r} that differ, not {teacher.answers}")
    return found


class _AnswerHead(torch.nn.Module):
    """In place of a model's output embeddings: logits_B12 of two tokens at each row's last place.

    Inside the model, so that whatever it does to its logits (a soft cap, a scale) is done to these.
    """

    def __init__(self, head: torch.nn.Linear, ids: list[int]) -> None:
        super().__init__()
        self._weight = torch.nn.Parameter(head.weight[ids].detach().clone())
        self._bias = None if head.bias is None else torch.nn.Parameter(head.bias[ids].detach().clone())
        self.last_B = torch.zeros(0, dtype=torch.int64)

    def forward(self, states_BLD: torch.Tensor) -> torch.Tensor:
        rows_B = torch.arange(len(states_BLD), device=states_BLD.device)
        return torch.nn.functional.linear(states_BLD[rows_B, self.last_B], self._weight, self._bias)[:, None]
