"""Were a task's texts seen in training? Exact matches, and runs of words that a training text shares with a task's.

Texts are compared as their words alone: letters and digits, without case, accents' spelling (NFKC) and punctuation.
A text that shares a run of n words with a training text overlaps (13 in GPT-3, arXiv 2005.14165, appendix C); shorter
texts can only match as a whole. The tasks' texts are in memory, with some 100 bytes a run; training files stream by.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from operators.evaluation.beir import RetrievalSet, read_corpus
from operators.evaluation.classification import LabelledTexts
from operators.evaluation.clustering import Clusters
from operators.evaluation.reranking import Candidates
from operators.evaluation.scoring import TaskData, TextPairs
from operators.evaluation.tables import rows
from operators.storage import Location

_WORD = re.compile(r"\w+")
_EXAMPLES = 5
_SHOWN = 160  # characters of an example


@dataclass(frozen=True, slots=True)
class Example:
    """A text of a task and where it was seen."""

    text: str
    seen_in: str  # file and row
    training_text: str
    exact: bool


@dataclass(frozen=True, slots=True)
class Contamination:
    """How many of a task's texts were seen in training."""

    task: str
    texts: int  # different ones
    exact: int
    overlapping: int  # share a run of words, exact matches not counted
    too_short: int  # for a run of so many words
    examples: tuple[Example, ...]

    @property
    def share(self) -> float:
        """Of the texts that were seen, exactly or in part."""
        return (self.exact + self.overlapping) / self.texts if self.texts else 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """A text of a task that a training text holds, by the text's number among all tasks' texts."""

    number: int
    exact: bool
    row: int
    training_text: str


class Probe:
    """The texts of all tasks, ready to be looked for."""

    def __init__(self, texts_by_task: Mapping[str, Sequence[str]], num_words: int) -> None:
        self.num_words = num_words
        self.texts: list[str] = []
        self.spans: dict[str, range] = {}  # task -> numbers of its texts
        self._whole: dict[bytes, list[int]] = {}
        self._runs: dict[bytes, list[int]] = {}
        self.too_short: dict[str, int] = {}
        for task, texts in texts_by_task.items():
            unique = dict.fromkeys(texts)
            self.spans[task] = range(len(self.texts), len(self.texts) + len(unique))
            self.too_short[task] = sum(self._add(text) for text in unique)

    def find(self, text: str) -> Iterator[tuple[int, bool]]:
        """(number, exact) of every text of a task that a training text holds."""
        words = words_of(text)
        exact = self._whole.get(_digest(words), [])
        yield from ((number, True) for number in exact)
        overlapping = {number for run in _runs(words, self.num_words) for number in self._runs.get(run, ())}
        yield from ((number, False) for number in sorted(overlapping.difference(exact)))

    def _add(self, text: str) -> bool:
        """Whether the text is too short for a run."""
        number, words = len(self.texts), words_of(text)
        self.texts.append(text)
        if words:
            self._whole.setdefault(_digest(words), []).append(number)
        for run in set(_runs(words, self.num_words)):
            self._runs.setdefault(run, []).append(number)
        return len(words) < self.num_words


def task_texts(data: TaskData) -> list[str]:
    """The texts of a task that a model must not have learned from: all that are scored, and relevant documents."""
    if isinstance(data, RetrievalSet):
        relevant = {doc for judged in data.qrels.values() for doc, grade in judged.items() if grade > 0}
        blocks = (zip(b.ids.to_pylist(), b.texts.to_pylist(), strict=True) for b in read_corpus(data.corpus))
        return [*data.queries, *(text for block in blocks for doc, text in block if doc in relevant and text)]
    if isinstance(data, Candidates):
        return [*data.queries, *(text for docs in data.documents for _, text, grade in docs if grade)]
    if isinstance(data, TextPairs):
        return [*data.one, *data.other]
    assert isinstance(data, LabelledTexts | Clusters), "every kind of task is listed"
    return list(data.texts)


def search_file(file: Location, probe: Probe) -> list[Seen]:
    """The first training text of a file that holds each text of a task, an exact one where there is one."""
    found: dict[int, Seen] = {}
    for number, row in rows(file):
        for text in _texts(row.values()):
            for seen, exact in probe.find(text):
                before = found.get(seen)
                if before is None or (exact and not before.exact):
                    found[seen] = Seen(seen, exact, number, text[:_SHOWN])
    return list(found.values())


def contamination(probe: Probe, seen_by_file: Mapping[str, Sequence[Seen]]) -> tuple[Contamination, ...]:
    """What all files together hold, task by task."""
    best: dict[int, tuple[str, Seen]] = {}
    for file, all_seen in seen_by_file.items():
        for seen in all_seen:
            before = best.get(seen.number)
            if before is None or (seen.exact and not before[1].exact):
                best[seen.number] = (file, seen)
    found = []
    for task, span in probe.spans.items():
        hits = [best[number] for number in span if number in best]
        exact = sum(seen.exact for _, seen in hits)
        shown = sorted(hits, key=lambda hit: not hit[1].exact)[:_EXAMPLES]
        examples = tuple(
            Example(probe.texts[s.number][:_SHOWN], f"{file}, row {s.row}", s.training_text, s.exact)
            for file, s in shown
        )
        found.append(Contamination(task, len(span), exact, len(hits) - exact, probe.too_short[task], examples))
    return tuple(found)


def words_of(text: str) -> list[str]:
    """The words of a text in one spelling."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _texts(values: Iterable[Any]) -> Iterator[str]:
    """All strings of a row, those in lists (several negatives) too."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from _texts(value)


def _runs(words: Sequence[str], length: int) -> Iterator[bytes]:
    for start in range(len(words) - length + 1):
        yield _digest(words[start : start + length])


def _digest(words: Sequence[str]) -> bytes:
    return hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()
