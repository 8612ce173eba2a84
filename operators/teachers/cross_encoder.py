"""A cross-encoder as a teacher: transformers' sequence classification over a query and a document in one input.

Each text is tokenized once, however many pairs it is in, and cut as transformers' `longest_first` does: of a pair that
is too long the longer text loses tokens, until both are equal. Logits are taken as they are, without the sigmoid that
sentence-transformers puts after one label; of several labels the log-odds of one are the score, so that a row's scores
do not depend on what softmax leaves open.

Shapes: M different pairs, B of a batch, L padded length, C labels.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import tokenizers
import torch
import transformers
from numpy.typing import NDArray

from operators.embedder.model.device import compute_dtype, prepare_process
from operators.embedder.model.forward import default_batch_tokens
from operators.embedder.model.loading import load_model
from operators.embedder.tokens.backend import load_fast
from operators.embedder.tokens.batching import Batch
from operators.embedder.tokens.truncating import kept_after
from operators.errors import InputError
from operators.teachers.inputs import TeacherInputs
from operators.teachers.outputs import Outputs
from operators.teachers.pairs import list_array, pairs_of, score_pairs
from operators.teachers.spec import PairSpec, recipe_of, scorer_folder


class PairReader:
    """Rows to the token ids of their pairs."""

    def __init__(self, spec: PairSpec) -> None:
        folder = scorer_folder(spec, weights=False)
        self._backend, tokenizer = load_fast(folder, spec.teacher.trust_remote_code)
        self._has_types = "token_type_ids" in tokenizer.model_input_names
        self._ids, self._types = _around(self._backend, spec.teacher.checkpoint)
        assert spec.teacher.max_tokens is not None, "a spec has it set"
        self._room = spec.teacher.max_tokens - sum(map(len, self._ids))
        if self._room < 2:
            raise InputError(f"max_tokens {spec.teacher.max_tokens} of {spec.teacher.name!r} leaves no room for texts")

    def __call__(self, rows: pa.Table) -> TeacherInputs:
        """The inputs of R rows: different pairs."""
        pairs = pairs_of(rows)
        query_ids, query_totals = kept_after(self._backend, pairs.queries.texts, "", self._room)
        document_ids, document_totals = kept_after(self._backend, pairs.documents.texts, "", self._room)
        kept_M2 = longest_first(
            np.array(query_totals, np.int64)[pairs.query_M],
            np.array(document_totals, np.int64)[pairs.document_M],
            self._room,
        )
        before, between, after = self._ids
        ids, types = [], []
        for query, document, (num_query, num_document) in zip(
            pairs.query_M, pairs.document_M, kept_M2.tolist(), strict=True
        ):
            own_query, own_document = query_ids[query][:num_query], document_ids[document][:num_document]
            ids.append([*before, *own_query, *between, *own_document, *after])
            if self._has_types:
                types.append(self._types_of(num_query, num_document))
        return TeacherInputs(list_array(ids), pairs.places_RK, type_ids=list_array(types) if self._has_types else None)

    def _types_of(self, num_query: int, num_document: int) -> list[int]:
        (before, query), (between, document), after = self._types[0:2], self._types[2:4], self._types[4]
        return [*before, *query * num_query, *between, *document * num_document, *after]


def _around(backend: tokenizers.Tokenizer, checkpoint: str) -> tuple[tuple[list[int], ...], tuple[list[int], ...]]:
    """The ids before, between and after two texts, and the types of: before, query, between, document, after."""
    pair = backend.encode("a", "a")
    texts = [[i for i, text in enumerate(pair.sequence_ids) if text == number] for number in (0, 1)]
    if not all(texts):
        raise InputError(f"the tokenizer of {checkpoint} does not read two texts as a pair: it cannot be used")
    (query, query_end), (document, document_end) = ((own[0], own[-1] + 1) for own in texts)
    cuts = [slice(0, query), slice(query_end, document), slice(document_end, len(pair.ids))]
    ids = tuple(list(pair.ids[cut]) for cut in cuts)
    types = pair.type_ids
    return ids, (types[cuts[0]], [types[query]], types[cuts[1]], [types[document]], types[cuts[2]])


def longest_first(first_M: NDArray[np.int64], second_M: NDArray[np.int64], room: int) -> NDArray[np.int64]:
    """kept_M2: how many tokens of two texts of so many are kept, of `room`; the longer loses its own until both are
    equal, and has the odd one (the second, where both are as long)."""
    shorter_M, longer_M = np.minimum(first_M, second_M), np.maximum(first_M, second_M)
    kept_shorter_M = np.where(shorter_M + longer_M <= room, shorter_M, np.minimum(shorter_M, room // 2))
    kept_longer_M = np.minimum(longer_M, room - kept_shorter_M)
    is_first_longer_M = first_M > second_M
    return np.stack(
        [
            np.where(is_first_longer_M, kept_longer_M, kept_shorter_M),
            np.where(is_first_longer_M, kept_shorter_M, kept_longer_M),
        ],
        axis=1,
    )


class CrossEncoder:
    """Inputs to scores; raises InputError where the checkpoint is no classifier of sequences."""

    def __init__(self, spec: PairSpec, threads: int | None) -> None:
        teacher = spec.teacher
        self._device = prepare_process(teacher.device, threads)
        self._label = spec.label
        self._batch_tokens = teacher.batch_tokens or default_batch_tokens(self._device)
        folder = scorer_folder(spec, weights=True)
        model = load_model(
            folder,
            compute_dtype(teacher.compute_dtype, self._device),
            recipe_of(teacher),
            transformers.AutoModelForSequenceClassification,
        )
        if model.config.pad_token_id is None:
            raise InputError(f"set pad_token_id in {folder}/config.json: a classifier finds a text's end by it")
        self._model = model.to(self._device)
        self._has_types = getattr(model.config, "type_vocab_size", 0) > 1

    @torch.inference_mode()
    def __call__(self, inputs: TeacherInputs) -> Outputs:
        """The scores of the rows."""
        return score_pairs(inputs, self._batch_tokens, self._scores)

    def _scores(self, batch: Batch, types_T: NDArray[np.int64] | None) -> torch.Tensor:
        mask_BL = batch.mask()
        more = {}
        if types_T is not None and self._has_types:
            types_BL = np.zeros(mask_BL.shape, np.int64)
            types_BL[mask_BL] = types_T
            more["token_type_ids"] = torch.from_numpy(types_BL).to(self._device)
        logits_BC: torch.Tensor = self._model(
            input_ids=torch.from_numpy(batch.pad(self._model.config.pad_token_id)).to(self._device),
            attention_mask=torch.from_numpy(mask_BL).to(self._device, torch.int64),
            **more,
        ).logits.float()
        if self._label is None:
            return logits_BC[:, 0]
        others_BC = logits_BC.clone()
        others_BC[:, self._label] = -torch.inf
        return logits_BC[:, self._label] - torch.logsumexp(others_BC, dim=1)
