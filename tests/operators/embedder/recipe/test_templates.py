"""Templates: what stands around a text, the task and examples in it, and texts put as the prompts expect them."""

from __future__ import annotations

import pytest

from operators.embedder.recipe.templates import Template, filled, prepared, render_examples
from operators.errors import InputError


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("", Template("", "")),
        ("query: ", Template("query: ", "")),
        ("a {x} b {text}", Template("a {x} b ", "")),
        ('say "{text}" in a word', Template('say "', '" in a word')),
        ("Say {text}\nagain {text}.", Template("Say ", ".", "\nagain ")),
    ],
)
def test_pieces(template: str, expected: Template) -> None:
    assert Template.parse(template) == expected
    assert expected.copies == 1 + template.count("{text}") // 2


def test_three_copies_are_refused() -> None:
    with pytest.raises(InputError, match="at most twice, not 3 times"):
        Template.parse("{text}{text}{text}")


def test_task_and_examples_are_filled_but_nothing_inside_of_them() -> None:
    found = filled("{examples}Do {task}: {text} ({task})", "this {text}", "see {task}; ")
    assert found == Template("see {task}; Do this {text}: ", " (this {text})")
    with pytest.raises(InputError, match=r"set embedder.task, or task in the recipe"):
        filled("{task}: {text}", None, "")


def test_examples_are_written_one_after_another() -> None:
    examples = [{"query": "q1", "response": "{query}"}, {"query": "q2", "response": "r2", "task": "other"}]
    assert render_examples("{task}|{query}|{response}\n", examples, "main") == "main|q1|{query}\nother|q2|r2\n"
    assert render_examples(None, [], None) == ""


@pytest.mark.parametrize("fields", [{"query": "q"}, {"query": "q", "response": "r", "topic": "t"}])
def test_examples_of_other_keys_are_refused(fields: dict[str, str]) -> None:
    with pytest.raises(InputError, match="an example has the keys"):
        render_examples("{query}{response}", [fields], None)


def test_examples_without_a_form_are_refused() -> None:
    with pytest.raises(InputError, match="set example in the recipe"):
        render_examples(None, [{"text": "x"}], None)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("It rains", "It rains."),
        ("It rains.", "It rains."),
        ("Does it rain?", "Does it rain."),
        ('He said "no"', "He said 'no'"),
        ("", ""),
        ("So!", "So!."),  # as the reference does
    ],
)
def test_sentence_style(text: str, sentence: str) -> None:
    assert prepared(text, "sentence") == sentence
    assert prepared(text, "as_is") == text
