"""Language models as teachers, against plain transformers code on one prompt after another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError

from operators.errors import InputError
from operators.teachers.choice import load_reader
from tests.checkpoints import tiny_bert, tiny_decoder
from tests.operators.teachers.rows import ROWS, said, spec_of, table, teacher_of, text

QUERY_FIRST = "<|im|>judge: {task}\nquery: {query}\ndocument: {document}\nis it so?"
DOCUMENT_FIRST = "document: {document}\nquery: {query}\nis it so?"
SETTINGS = {"query": {"task": "find the {document} of a company"}}  # what looks like a place in it is text
AUTO = transformers.AutoModelForCausalLM


def alone(folder: Path, prompt: str, query: str, document: str, answers: tuple[str, str] = ("Y", "N")) -> float:
    """The log-odds by plain code: the whole vocabulary's logits at the last of one prompt's tokens."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    model = AUTO.from_pretrained(folder).eval()
    before, after = prompt.split("{document}")
    filled = before.replace("{query}", query) + document + after.replace("{query}", query)
    with torch.inference_mode():
        logits_V = model(**tokenizer(filled, return_tensors="pt", return_token_type_ids=False)).logits[0, -1]
    shares_V = logits_V.double().log_softmax(dim=0)
    yes, no = (tokenizer.encode(answer, add_special_tokens=False)[0] for answer in answers)
    return float(shares_V[yes] - shares_V[no])


def judge(folder: Path, prompt: str, **fields: Any) -> Any:
    return spec_of(
        teacher_of(kind="judge", checkpoint=str(folder), prompt=prompt, answers=("Y", "N"), **fields), **SETTINGS
    )


@pytest.mark.parametrize("kind", ["qwen2", "mistral", "opt", "gemma3"])
@pytest.mark.parametrize("prompt", [QUERY_FIRST, DOCUMENT_FIRST])
def test_scores_are_the_log_odds_of_the_answers(kind: str, prompt: str, tmp_path: Path) -> None:
    capped = {"final_logit_softcapping": 1.0} if kind == "gemma3" else {}  # after the output embeddings
    folder = tiny_decoder(tmp_path / kind, kind=kind, auto=AUTO, max_tokens=512, **capped)  # type: ignore[arg-type]
    outputs = said(judge(folder, prompt, batch_tokens=1024), ROWS[:8])
    filled = prompt.replace("{task}", "TASK")
    before, _, after = filled.partition("TASK")
    task = SETTINGS["query"]["task"]
    for row, (query, documents) in enumerate(ROWS[:8]):
        for place, document in enumerate(documents):
            if prompt == DOCUMENT_FIRST:
                expected = alone(folder, prompt, query, document)
            else:  # the task has a {document} of its own, so that plain replacing would not do
                whole = before + task + after.replace("{query}", query).replace("{document}", document)
                expected = alone(folder, "{document}", "", whole)
            assert outputs.values[row, place] == pytest.approx(expected, abs=2e-4)


def test_a_long_prompt_loses_the_end_of_its_document_and_keeps_the_question(tmp_path: Path) -> None:
    folder = tiny_decoder(tmp_path / "qwen2", kind="qwen2", auto=AUTO, max_tokens=512)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    rows = [("the book", ["one", " ".join(text(i, 90) for i in range(300)), "word " * 3])]
    spec = judge(folder, DOCUMENT_FIRST, max_tokens=100)
    inputs = load_reader(spec)(table(rows))
    ids = inputs.input_ids[int(inputs.places_RI[0, 1])].as_py()
    read = tokenizer.decode(ids)
    assert 97 <= len(ids) <= 100
    assert read.endswith("\nquery: the book\nis it so?")
    document = read.removeprefix("<s>document: ").removesuffix("\nquery: the book\nis it so?")
    assert rows[0][1][1].startswith(document)
    assert len(document) > 100
    assert said(spec, rows).values[0, 1] == pytest.approx(alone(folder, DOCUMENT_FIRST, "the book", document), abs=2e-4)


def test_a_long_query_leaves_half_to_the_document(tmp_path: Path) -> None:
    folder = tiny_decoder(tmp_path / "qwen2", kind="qwen2", auto=AUTO, max_tokens=512)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    rows = [("time " * 400, ["house " * 400] * 3)]
    inputs = load_reader(judge(folder, DOCUMENT_FIRST, max_tokens=100))(table(rows))
    assert len(inputs.input_ids) == 1  # the three pairs are one
    read = tokenizer.decode(inputs.input_ids[0].as_py())
    assert read.endswith("is it so?")
    assert abs(read.count("time") - read.count("house")) <= 2


def test_what_cannot_be_a_judge_is_refused(tmp_path: Path) -> None:
    folder = tiny_decoder(tmp_path / "qwen2", kind="qwen2", auto=AUTO, max_tokens=512)
    with pytest.raises(ValidationError, match=r"expected \{query\} and \{document\}, each once"):
        teacher_of(kind="judge", checkpoint=str(folder), prompt="{query}")
    base = {"kind": "judge", "checkpoint": str(folder), "prompt": DOCUMENT_FIRST}
    with pytest.raises(InputError, match="the answer 'perhaps so' is not one token of its own"):
        said(spec_of(teacher_of(**base, answers=("Y", "perhaps so"))), ROWS)
    with pytest.raises(InputError, match="give two answers to the teacher 't' that differ"):
        said(spec_of(teacher_of(**base, answers=("Y", "Y"))), ROWS)
    with pytest.raises(InputError, match=r"set query.task of the set 'set': the judge's prompt has \{task\}"):
        spec_of(teacher_of(**{**base, "prompt": QUERY_FIRST}))
    with pytest.raises(InputError, match="max_tokens 10 of 't' leaves no room beside its prompt"):
        said(spec_of(teacher_of(**base, max_tokens=10, answers=("Y", "N"))), ROWS)
    bert = tiny_bert(tmp_path / "bert", auto=transformers.AutoModelForMaskedLM)
    with pytest.raises(InputError, match="give a judge that reads from left to right: .* is bidirectional"):
        said(spec_of(teacher_of(**{**base, "checkpoint": str(bert)})), ROWS)


def test_the_fingerprint_is_of_the_prompt_and_the_answers(tmp_path: Path) -> None:
    folder = tiny_decoder(tmp_path / "qwen2", kind="qwen2", auto=AUTO, max_tokens=512)
    base = {"kind": "judge", "checkpoint": str(folder), "prompt": QUERY_FIRST}
    different = [
        spec_of(teacher_of(**base), **SETTINGS),
        spec_of(teacher_of(**base), query={"task": "another"}),
        spec_of(teacher_of(**base, answers=("Y", "N")), **SETTINGS),
        spec_of(teacher_of(**base, max_tokens=64), **SETTINGS),
        spec_of(teacher_of(**base, compute_dtype="bfloat16"), **SETTINGS),
    ]
    assert len({spec.fingerprint for spec in different}) == len(different)
