"""The texts that every embedder is tried on before it embeds, and what is checked of their tokens."""

from __future__ import annotations

import pyarrow as pa

from operators.embedder.recipe.spec import EmbedderSpec
from operators.embedder.tokens import token_rows
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.errors import InputError

# Lengths far apart, so that together the short ones are mostly padding; and sorting them by length is a permutation
# that is not its own inverse, so that rows put back the wrong way round are seen
TEXTS = (
    "Rain.",
    "A recipe for bread: flour, water, salt, and time. " * 12,
    "The harbour freezes over in most winters, and the ferries stop until the end of March.",
)


def texts() -> pa.StringArray:
    """The known texts."""
    return pa.array(TEXTS, pa.string())


def check_tokens(tokenizer: Tokenizer, spec: EmbedderSpec) -> None:
    """Raise InputError unless what stands after a text survives in every reading, also where the text is too long."""
    long = TEXTS[1] * (1 + tokenizer.max_text_tokens // 50)
    rows = tokenizer(pa.array([*TEXTS, long])).input_ids
    num_readings = len(tokenizer.readings)
    for index, ids in enumerate(token_rows.split(rows, num_readings).to_pylist()):
        if len(ids) > spec.recipe.max_tokens:
            raise InputError(f"{spec.model}: self-test: a text has {len(ids)} tokens, more than max_tokens")
        if tokenizer.end_id is not None and ids[-1] != tokenizer.end_id:
            raise InputError(f"{spec.model}: self-test: a text does not end with the recipe's end_token")
        tail = tokenizer.readings[index % num_readings].tail
        if ids[len(ids) - len(tail) :] != tail:
            raise InputError(f"{spec.model}: self-test: a prompt's text after {{text}} is lost or torn apart")


def check_prompts(tokenizer: Tokenizer, spec: EmbedderSpec) -> None:
    """Raise InputError where a prompt cannot be told from the text by its number of tokens, but has to be left out."""
    recipe = spec.recipe
    pooled = {recipe.pool_over, recipe.sparse.pool_over if recipe.sparse is not None else "all"}
    if pooled == {"all"} or recipe.count_prompt == "alone":
        return
    for reading in tokenizer.readings:
        for text in TEXTS:
            found, expected = tokenizer.prompt_tokens(reading, text), reading.layout.prefix
            if found != expected:
                raise InputError(
                    f"{spec.model}: self-test: the prompt {reading.template.prefix!r} has {expected} tokens alone and "
                    f"{found} before a text, so it cannot be left out of pooling: end it with a blank or a line end, "
                    "or set join: apart"
                )
