"""Overrides of the command line: keys of text take what follows the first = as it stands, all others take YAML."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from jobs.command_line.config_file import check_config
from jobs.embedding.config import EmbedConfig
from jobs.searching.config import ExplainConfig, SearchConfig
from operators.errors import InputError


def _embed(*overrides: str) -> EmbedConfig:
    values: dict[str, Any] = {"source": {"path": "a.jsonl"}, "model": "minilm", "output": {"path": "out"}}
    return check_config(EmbedConfig, values, overrides)


@pytest.mark.parametrize(
    "query",
    ["document about topic #3", "2024", "[draft] x", "a: b", "'quoted'", "no", "1e3", "{x", "x=y", " two ", "- a", "~"],
)
def test_a_query_is_what_follows_the_first_equals_sign(query: str) -> None:
    assert check_config(SearchConfig, {"index": "i"}, [f"query={query}"]).query == query


@given(text=st.text(min_size=1).filter(lambda text: text != "null"))
@settings(max_examples=300, deadline=None)
def test_any_text_reaches_its_key_as_it_stands(text: str) -> None:
    assert check_config(SearchConfig, {"index": "i"}, [f"query={text}"]).query == text
    assert check_config(ExplainConfig, {"index": "i"}, [f"doc_id={text}"]).doc_id == text


def test_an_id_keeps_its_leading_zeros() -> None:
    assert check_config(ExplainConfig, {"index": "i"}, ["doc_id=0012345"]).doc_id == "0012345"


def test_a_number_of_a_config_file_is_no_id_since_yaml_may_have_changed_it() -> None:
    with pytest.raises(InputError, match="doc_id: .*string.*5349"):
        check_config(ExplainConfig, {"index": "i", "doc_id": 0o12345}, [])


def test_null_takes_a_text_away_where_there_may_be_none() -> None:
    config = _embed("source.image=picture", "source.text=null")
    assert config.source.text is None
    assert config.source.image == "picture"


def test_keys_inside_sections_mappings_and_lists_are_told_apart() -> None:
    values: dict[str, Any] = {
        "source": {"path": ["a", "b"]},
        "model": "m",
        "output": {"path": "o"},
        "embedder": {"dims": 8},
    }
    config = check_config(
        EmbedConfig, values, ["source.path.1=2024", "embedder.prompt=query: #1", "gates.max_rejected_fraction=0.5"]
    )
    assert config.source.path == ("a", "2024")
    assert config.embedder.prompt == "query: #1"
    assert config.gates.max_rejected_fraction == 0.5


def test_a_list_of_texts_is_a_yaml_list_whose_items_keep_their_form() -> None:
    assert _embed("output.keep=[2024, 0012, no, 'a, b']").output.keep == ("2024", "0012", "no", "a, b")
    assert _embed("source.path=[a.jsonl, b.jsonl]").source.path == ("a.jsonl", "b.jsonl")
    assert _embed("source.path=[draft] #3.jsonl").source.path == "[draft] #3.jsonl"
    with pytest.raises(InputError, match="output.keep"):
        _embed("output.keep=year")


def test_other_keys_are_yaml_as_before() -> None:
    assert _embed("compute.workers=[1, 2]").compute.workers == (1, 2)
    assert _embed("source.storage_options={anon: true}").source.storage_options == {"anon": True}
    with pytest.raises(InputError, match="is no YAML"):
        _embed("compute.workers=[1, 2")
