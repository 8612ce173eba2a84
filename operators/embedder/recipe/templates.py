"""Prompts as templates: what is read of a text, before anything is tokenized.

    "query: "                               text put before the input; the same as "query: {text}"
    "This sentence : \\"{text}\\" means"      text before and after it
    "Say: {text} Again: {text}"             the input twice (echo embeddings)

`{task}` and `{examples}` are filled once per run, on the driver; only `{text}` differs from row to row. Other braces
are ordinary characters. A role with several templates has several readings of each text, whose vectors are averaged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from operators.errors import InputError

TEXT, TASK, EXAMPLES = "{text}", "{task}", "{examples}"
FIELD = re.compile(r"\{(\w+)\}")  # of `example`
TextStyle = Literal["as_is", "lowercase", "sentence"]


@dataclass(frozen=True, slots=True)
class Template:
    """The pieces around a text: prefix, text, suffix; with two copies: prefix, text, between, text, suffix."""

    prefix: str
    suffix: str
    between: str | None = None

    @property
    def copies(self) -> int:
        """How often the text is read."""
        return 1 if self.between is None else 2

    @staticmethod
    def parse(template: str) -> Template:
        """The pieces of a template; raises InputError for one with more than two copies of the text."""
        pieces = template.split(TEXT)
        if len(pieces) == 1:
            return Template(template, "")
        if len(pieces) == 2:
            return Template(pieces[0], pieces[1])
        if len(pieces) == 3:
            return Template(pieces[0], pieces[2], pieces[1])
        raise InputError(f"a prompt has {TEXT} at most twice, not {len(pieces) - 1} times: {template!r}")


def as_tuple(prompt: str | Sequence[str]) -> tuple[str, ...]:
    """The templates of a role, of which there may be one or several."""
    return (prompt,) if isinstance(prompt, str) else tuple(prompt)


def filled(template: str, task: str | None, examples: str) -> Template:
    """A template with its task and examples (ready text) in place; raises InputError where it needs a task."""
    if TASK in template and task is None:
        raise InputError(f"set embedder.task, or task in the recipe: the prompt is {template!r}")
    parsed = Template.parse(template)  # first, so that nothing in an example is taken for a placeholder

    def fill(piece: str) -> str:
        return piece.replace(TASK, task or "").replace(EXAMPLES, examples)

    return Template(fill(parsed.prefix), fill(parsed.suffix), None if parsed.between is None else fill(parsed.between))


def render_examples(example: str | None, examples: Iterable[Mapping[str, str]], task: str | None) -> str:
    """In-context examples one after another, each as `example` says; an example without a task has the recipe's."""
    rendered = []
    for fields in examples:
        if example is None:
            raise InputError("set example in the recipe: it says how each of the examples is written")
        known = {**({"task": task} if task is not None else {}), **fields}
        wanted = set(FIELD.findall(example))
        if not set(fields) <= wanted <= set(known):
            raise InputError(f"an example has the keys {sorted(fields)}, and is to be written as {example!r}")
        pieces = FIELD.split(example)  # text, key, text, key ... text
        pieces[1::2] = [known[key] for key in pieces[1::2]]
        rendered.append("".join(pieces))
    return "".join(rendered)


def prepared(text: str, style: TextStyle) -> str:
    """A text as the recipe's prompts expect it.

    `sentence` is what the code of PromptBERT, PromptEOL and those after them does before it fills a template: a full
    stop where no punctuation ends the text, single quotes for double ones, and a full stop for a last question mark.
    """
    if style == "as_is" or not text:
        return text
    if style == "lowercase":
        return text.lower()
    if text[-1] not in ".?\"'":
        text += "."
    text = text.replace('"', "'")
    return text[:-1] + "." if text[-1] == "?" else text
