"""A config from its YAML file and the overrides of the command line, checked by its class before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml
from pydantic import BaseModel

from jobs.command_line.config_keys import TextKey, key_of, kinds_at, section_of, text_key
from operators.errors import InputError
from operators.storage import redact

Config = TypeVar("Config", bound=BaseModel)


def load_config(model: type[Config], path: Path, overrides: Iterable[str]) -> Config:
    """The checked config of a YAML file with overrides on top; InputError names key, value and what was expected."""
    return check_config(model, read_config(path), overrides)


def read_config(path: Path) -> dict[str, Any]:
    """What a config file holds, unchecked; raises InputError for one that is no mapping of keys."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"check the config's path: there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"check the config's path: {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)  # the text there may be a secret
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark is not None else "not a text of characters"
        raise InputError(f"mend the YAML of {path}: {where}") from None
    values = {} if content is None else content
    if not isinstance(values, dict):
        raise InputError(
            f"write {path} as a mapping of keys, such as source, model and output; it holds a {type(values).__name__}"
        )
    return values


def check_config(model: type[Config], values: dict[str, Any], overrides: Iterable[str]) -> Config:
    """The checked config of these values with overrides on top; raises InputError as `load_config` does."""
    for override in overrides:
        _apply(model, values, override)
    try:
        return model.model_validate(values)
    except pydantic.ValidationError as error:
        raise InputError("\n".join(_explain(fault, model) for fault in _own_faults(error.errors()))) from None


def _apply(model: type[BaseModel], values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(f"write overrides as dotted.key=value; one of {len(override)} characters has no key or no =")
    *path, last = key.split(".")
    at: dict[str, Any] | list[Any] = values
    for name in path:
        inner = _inner(at, name, key)
        if not isinstance(inner, (dict, list)):
            raise InputError(f"override of {key}: {name!r} is no section, it holds one value")
        at = inner
    value = _value(text_key(model, key.split(".")), text, key)
    if isinstance(at, list):
        at[_number(at, last, key)] = value
    else:
        at[last] = value


def _value(key: TextKey | None, text: str, name: str) -> Any:
    """The text as it stands where the key holds text, a YAML list of such where it holds a list, else YAML.

    Only `null` is no text, where a key may be that.
    """
    if key is not None and key.is_nullable and text == "null":
        return None
    if key is not None and (not key.is_list or (key.is_plain and not (text[:1] == "[" and text[-1:] == "]"))):
        return text
    try:
        # the base loader knows no types: a list of texts may hold 2024, 0012 and no
        value = yaml.safe_load(text) if key is None else yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError:  # its text, and so the error's, may be a secret
        if key is not None and key.is_plain:
            return text
        raise InputError(f"override of {name}: the value is no YAML; quote it, as in {name}='\"...\"'") from None
    return text if key is not None and key.is_plain and not isinstance(value, list) else value


def _inner(at: dict[str, Any] | list[Any], name: str, key: str) -> Any:
    """What a section has under a name, or a list at a place; a section that is not there yet is begun."""
    if isinstance(at, list):
        return at[_number(at, name, key)]
    if at.get(name) is None:
        at[name] = {}
    return at[name]


def _number(at: list[Any], name: str, key: str) -> int:
    if not name.isdecimal() or int(name) >= len(at):
        raise InputError(f"override of {key}: {name!r} is no place in a list of {len(at)}: they count from 0")
    return int(name)


def _own_faults(faults: Sequence[Any]) -> list[Any]:
    """Those that are no consequence of others: a list is also called too short when its items are wrong."""
    inside = [fault["loc"][: length + 1] for fault in faults for length in range(len(fault["loc"]) - 1)]
    return [fault for fault in faults if fault["type"] != "too_short" or fault["loc"] not in inside]


def _explain(fault: Any, model: type[BaseModel]) -> str:
    key = key_of(model, fault["loc"])
    # A misspelt section may hold credentials: what looks like a secret, or lies in storage options, is not printed.
    value = redact({str(fault["loc"][-1] if fault["loc"] else ""): fault["input"]})
    shown = "(not shown)" if "storage" in key or "***" in str(value) else repr(fault["input"])
    if fault["type"] == "extra_forbidden":
        names = ", ".join(section_of(model, fault["loc"][:-1]).model_fields)
        return f"{key}: unknown key (value {shown}); expected one of: {names}"
    if fault["type"] == "missing":
        return f"{key}: this key is required"
    if fault["type"] in ("union_tag_not_found", "union_tag_invalid"):
        kind, kinds = kinds_at(model, fault["loc"])
        given = repr(fault["input"].get(kind)) if isinstance(fault["input"], dict) else shown
        return f"{key}.{kind}: expected one of: {', '.join(kinds)}, got {given}"
    return f"{key}: {fault['msg']}, got {shown}"
