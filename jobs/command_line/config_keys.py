"""What a config class says of itself: every key for --help, and the keys that a misspelt one may have meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

Sections = tuple[type[BaseModel], ...]  # what a key may hold: one kind of section, or one of several


@dataclass(frozen=True, slots=True)
class TextKey:
    """A key that holds text (`is_plain`), a list of texts (`is_list`) or either, and maybe nothing at all."""

    is_nullable: bool
    is_list: bool
    is_plain: bool


def help_lines(config: type[BaseModel]) -> Iterator[str]:
    """Every key with type, default and meaning; a section that comes again is said to be as the first one."""
    yield from _keys(config, "", {})


def section_of(config: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel]:
    """The section at the place of an error; where a section is one of several kinds, the place names the kind."""
    return _sections_at(config, path)[0]


def key_of(config: type[BaseModel], path: Sequence[int | str]) -> str:
    """The place of an error as it is written in a config: without the kinds of its sections."""
    names = [name for end, name in enumerate(path) if not _of_kind(_sections_at(config, path[:end]), name)]
    return ".".join(str(name) for name in names)


def kinds_at(config: type[BaseModel], path: Sequence[int | str]) -> tuple[str | None, list[str]]:
    """The key that says of which kind a section is, and its values."""
    sections = _sections_at(config, path)
    kind = _discriminator(sections)
    return kind, [] if kind is None else [str(_kind(section, kind)) for section in sections]


def text_key(config: type[BaseModel], path: Sequence[str]) -> TextKey | None:
    """What a key takes that holds text, or a list of texts; None for every other key, and for one that is not there."""
    annotations = [config]
    for name in path:
        annotations = [inner for one in annotations for inner in _inside(one, name)]
    members = {member for one in annotations for member in _members(one)}
    lists = {one for one in members if get_origin(one) in (tuple, list) and _is_text(get_args(one)[0])}
    if not members - {NoneType} or not all(_is_text(one) or one in lists or one is NoneType for one in members):
        return None
    return TextKey(is_nullable=NoneType in members, is_list=bool(lists), is_plain=any(_is_text(one) for one in members))


def _inside(annotation: Any, name: str) -> Iterator[Any]:
    """The types of what a value of this type holds under a name, or at a place of a list."""
    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            if name in member.model_fields:
                yield member.model_fields[name].annotation
        elif get_origin(member) is dict:
            yield get_args(member)[1]
        elif get_origin(member) in (tuple, list) and name.isdecimal():
            yield get_args(member)[0]


def _members(annotation: Any) -> Iterator[Any]:
    """The types that a value may have one of."""
    if get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for argument in get_args(annotation):
            yield from _members(argument)
    else:
        yield annotation


def _is_text(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return all(isinstance(choice, str) for choice in get_args(annotation))
    return annotation is str


def _sections_at(config: type[BaseModel], path: Sequence[int | str]) -> Sections:
    sections: Sections = (config,)
    for name in path:
        if isinstance(name, int):  # of a list, whose items are all of one section
            continue
        inner = [_sections(one.model_fields[name].annotation) for one in sections if name in one.model_fields]
        sections = _of_kind(sections, name) or next((found for found in inner if found), sections)
    return sections


def _of_kind(sections: Sections, name: int | str) -> Sections:
    """The one of several kinds of section that is named so."""
    kind = _discriminator(sections)
    return () if kind is None else tuple(section for section in sections if _kind(section, kind) == name)


def _keys(
    config: type[BaseModel], prefix: str, told: dict[Sections, str], indent: str = "  ", but: str | None = None
) -> Iterator[str]:
    for name, field in config.model_fields.items():
        sections, key = _sections(field.annotation), prefix + name
        if name == but:
            continue
        if not sections:
            yield f"{indent}{key}  ({_type_name(field.annotation)}, {_default(field)})"
            if field.description:
                yield f"{indent}    {field.description}"
            continue
        meaning = field.description or _first_line(sections[0])
        if sections in told:
            yield f"{indent}{key}:  {meaning}; keys as {'above' if told[sections] == key else f'of {told[sections]}'}"
            continue
        told[sections] = key
        yield f"{indent}{key}:  {meaning}"
        yield from _section_keys(sections, f"{key}.", told, indent)


def _section_keys(sections: Sections, prefix: str, told: dict[Sections, str], indent: str) -> Iterator[str]:
    kind = _discriminator(sections)
    if kind is None:
        yield from _keys(sections[0], prefix, told, indent)
        return
    yield f"{indent}{prefix}{kind}  ({' | '.join(str(_kind(section, kind)) for section in sections)}, required)"
    for section in sections:
        yield f"{indent}{prefix}{kind}={_kind(section, kind)}:  {_first_line(section)}"
        yield from _keys(section, prefix, told, indent + "  ", but=kind)


def _sections(annotation: Any) -> Sections:
    """The config classes that a key of this type holds, or holds a list of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    if get_origin(annotation) is Annotated:
        return _sections(get_args(annotation)[0])
    return tuple(section for argument in get_args(annotation) for section in _sections(argument))


def _discriminator(sections: Sections) -> str | None:
    """The key by whose value several kinds of section are told apart: each has one value of its own for it."""
    if len(sections) < 2:
        return None
    shared = [name for name in sections[0].model_fields if all(name in one.model_fields for one in sections)]
    return next((name for name in shared if all(_kind(one, name) is not None for one in sections)), None)


def _kind(section: type[BaseModel], discriminator: str) -> str | None:
    annotation = section.model_fields[discriminator].annotation
    return str(get_args(annotation)[0]) if get_origin(annotation) is Literal else None


def _first_line(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined and field.default_factory is None:
        return "required"
    default = field.get_default(call_default_factory=True)
    return "default null" if default is None else f"default {default!r}"


def _type_name(annotation: Any) -> str:
    if annotation is NoneType:
        return "null"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(str(choice) for choice in arguments)
    if origin in (Union, UnionType):
        return " | ".join(_type_name(argument) for argument in arguments)
    if origin is tuple:
        return f"[{', '.join('...' if a is Ellipsis else _type_name(a) for a in arguments)}]"
    return getattr(annotation, "__name__", str(annotation))
