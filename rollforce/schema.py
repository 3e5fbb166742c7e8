"""Plain data becomes frozen dataclasses, checked against their annotations. `config.build` is the way in.

Known annotations: bool, int, float, str, Path, Literal, Optional and other unions, tuple, list, dict, dataclasses, and
unions of dataclasses that a `kind: Literal["..."]` field tells apart.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union


class Wrong(Exception):
    """A value that cannot be used, with its path; `config.build` adds where it came from."""

    def __init__(self, path: tuple[str, ...], problem: str) -> None:
        super().__init__(problem)
        self.path, self.problem = path, problem

    def text(self) -> str:
        return f"{'.'.join(self.path)}: {self.problem}" if self.path else self.problem


def convert(value: Any, expected: Any, path: tuple[str, ...]) -> Any:
    """`value` as the annotation `expected`, or Wrong."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if expected is Any or expected is object:
        return value
    if origin is typing.Annotated:
        return convert(value, arguments[0], path)
    if origin in (Union, types.UnionType):
        return _union(value, arguments, path)
    if origin is Literal:
        return _literal(value, arguments, path)
    if dataclasses.is_dataclass(expected):
        return _dataclass(typing.cast(type, expected), value, path)
    if expected in (tuple, list) or origin in (tuple, list, Sequence):
        return _sequence(value, expected, path)
    if expected is dict or origin in (dict, Mapping):
        return _mapping(value, arguments or (str, Any), path)
    return _scalar(value, expected, path)


def _dataclass(cls: type, value: Any, path: tuple[str, ...]) -> Any:
    if not isinstance(value, dict):
        raise Wrong(path, f"must hold settings ({', '.join(field_names(cls))}), got {show(value)}.")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in value:
        if key not in fields:
            raise Wrong((*path, str(key)), _unknown(str(key), list(fields)))
    hints = typing.get_type_hints(cls, include_extras=True)
    given = {key: convert(item, hints[key], (*path, key)) for key, item in value.items()}
    for name, field in fields.items():
        if name not in given and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise Wrong((*path, name), f"is missing; it must be {_name(hints[name])}.")
    try:
        return cls(**given)
    except ValueError as error:
        raise Wrong(path, str(error)) from error


def _union(value: Any, members: tuple[Any, ...], path: tuple[str, ...]) -> Any:
    if value is None and types.NoneType in members:
        return None
    kinds = {kind: member for member in members for kind in _kinds(member)}
    if kinds and isinstance(value, dict):
        if "kind" not in value and len({id(member) for member in kinds.values()}) > 1:
            raise Wrong((*path, "kind"), f"is missing; it must be one of {', '.join(kinds)}.")
        kind = value.get("kind", next(iter(kinds)))
        if not (isinstance(kind, str) and kind in kinds):
            raise Wrong((*path, "kind"), _not_among(kind, tuple(kinds)))
        return _dataclass(kinds[kind], value, path)
    problems = []
    for member in sorted(members, key=lambda member: type(value) is not member):
        if member is not types.NoneType:
            try:
                return convert(value, member, path)
            except Wrong as wrong:
                problems.append(wrong)
    if len(problems) == 1 or any(wrong.path != path for wrong in problems):
        raise max(problems, key=lambda wrong: len(wrong.path))
    raise Wrong(path, f"must be {_name(Union[members])}, got {show(value)}.")  # noqa: UP007


def _kinds(member: Any) -> tuple[str, ...]:
    if not dataclasses.is_dataclass(member) or "kind" not in field_names(member):
        return ()
    return typing.get_args(typing.get_type_hints(member)["kind"])


def _literal(value: Any, allowed: tuple[Any, ...], path: tuple[str, ...]) -> Any:
    for choice in allowed:
        if value == choice and type(value) is type(choice):
            return value
    raise Wrong(path, _not_among(value, allowed))


def _sequence(value: Any, expected: Any, path: tuple[str, ...]) -> Any:
    kind, arguments = typing.get_origin(expected) or expected, typing.get_args(expected)
    if not isinstance(value, list):
        raise Wrong(path, f"must be a list, such as [1, 2], got {show(value)}.")
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise Wrong(path, f"must hold {len(arguments)} values, got {len(value)}: {show(value)}.")
        each: Sequence[Any] = arguments
    else:
        each = [arguments[0] if arguments else Any] * len(value)
    items = [convert(item, member, (*path, str(i))) for i, (item, member) in enumerate(zip(value, each, strict=True))]
    return items if kind is list else tuple(items)


def _mapping(value: Any, arguments: tuple[Any, ...], path: tuple[str, ...]) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise Wrong(path, f"must be a mapping of names to values, got {show(value)}.")
    return {_scalar(key, arguments[0], path): convert(item, arguments[1], (*path, str(key)))
            for key, item in value.items()}


def _scalar(value: Any, expected: Any, path: tuple[str, ...]) -> Any:
    if expected is float and type(value) is int:
        return float(value)
    if expected is Path and isinstance(value, str):
        return Path(value)
    if expected is types.NoneType and value is None:
        return None
    if isinstance(expected, type) and type(value) is expected:
        return value
    hint = f' Write it in quotes: "{value}".' if expected is str and value is not None else ""
    raise Wrong(path, f"must be {_name(expected)}, got {show(value)}.{hint}")


def field_names(cls: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(cls) if field.init]


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"unknown setting; {f'did you mean {near[0]!r}? It knows' if near else 'it knows'}: {', '.join(known)}."


def _not_among(value: Any, allowed: tuple[Any, ...]) -> str:
    near = difflib.get_close_matches(str(value), [str(choice) for choice in allowed], n=1, cutoff=0.5)
    meant = f"; did you mean {near[0]!r}" if near else ""
    return f"{show(value)} is not one of {', '.join(map(str, allowed))}{meant}{'?' if near else '.'}"


def _name(expected: Any) -> str:
    plain = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path",
             types.NoneType: "null"}
    if expected in plain:
        return plain[expected]
    if typing.get_origin(expected) in (Union, types.UnionType):
        return " or ".join(_name(member) for member in typing.get_args(expected))
    if typing.get_origin(expected) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(expected)))}"
    if typing.get_origin(expected) in (tuple, list) or expected in (tuple, list):
        return "a list"
    return getattr(expected, "__name__", str(expected))


def show(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
