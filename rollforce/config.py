"""Settings: YAML files, dicts and `key=value` overrides become any tree of frozen dataclasses, checked on the way.

    build(Stream, resource("configs/stream/rolling.yaml"), overrides=["window=6"]) -> Stream

A field that may hold one of several dataclasses is a union of them, each with a `kind: Literal["..."]` field that
tells them apart: the union is the registry. Known annotations besides: bool, int, float, str, Path, Literal, Optional
and other unions, tuple, list, dict. OmegaConf stops in this file. Every error is a ConfigError that names the dotted
path, the value, what would have been right, and where the value came from.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from rollforce.errors import ConfigError

T = TypeVar("T")
Source = Mapping[str, Any] | Path | str
_PACKAGE = Path(__file__).resolve().parent
_WORDS = {True: (True, "yes", "on"), False: (False, "no", "off")}  # what YAML takes for true and false


def resource(name: str) -> Path:
    """Return the path of a shipped file or folder, such as "configs/stream/rolling.yaml", in a wheel or in a checkout.
    ConfigError lists what there is beside it."""
    for root in (_PACKAGE, _PACKAGE.parent):
        if (root / name).exists():
            return root / name
    folder = Path(name).parent
    if folder.parts[:1] not in (("assets",), ("configs",)):  # what ships lies there: no list of other folders
        raise ConfigError(f"There is no {name!r}, and none ships with rollforce. Give a path that exists.")
    there = sorted(p.name for root in (_PACKAGE, _PACKAGE.parent) if (root / folder).is_dir()
                   for p in (root / folder).iterdir())
    raise ConfigError(f"{name} is not shipped with rollforce. Use one of those in {folder}: "
                      f"{', '.join(there) or 'nothing'}.")  # fmt: skip


def build(cls: type[T], *sources: Source, overrides: Sequence[str] = ()) -> T:
    """Build one `cls` from sources, later ones winning key by key, then from `dotted.path=value` overrides. A source is
    a dict, the Path of a YAML file, or YAML text. A list or another `kind` replaces what was there: an override of a
    `kind` alone leaves the defaults of the new kind. ConfigError."""
    named = [_read(source) for source in sources]
    data: dict[str, Any] = {}
    for _, content in named:
        data = _merge(data, content)
    for override in sorted(overrides, key=lambda override: not re.match(r"(.+\.)?kind\s*=", override)):
        _apply(data, override)  # a kind first: the other settings are of the new one
    try:
        return typing.cast(T, _convert(_parse(data, "an interpolation cannot be resolved", resolve=True), cls, ()))
    except InvalidValue as wrong:
        raise ConfigError(f"{wrong.text()}{_origin(wrong.path, named, overrides)}") from None


def read_value(value: Any, expected: Any, *path: str) -> Any:
    """Return plain data as the annotation `expected` wants it; text stays as it is, `${...}` too. ConfigError."""
    try:
        return _convert(value, expected, path)
    except InvalidValue as wrong:
        raise ConfigError(wrong.text()) from None


def to_dict(settings: Any) -> Any:
    """Return settings as plain dicts, lists, strings and numbers, `kind` included: the inverse of `build`."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return {name: to_dict(getattr(settings, name)) for name in _field_names(settings)}
    if isinstance(settings, Mapping):
        return {str(key): to_dict(value) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [to_dict(value) for value in settings]
    return str(settings) if isinstance(settings, Path) else settings


def _read(source: Source) -> tuple[str, dict[str, Any]]:
    """Return a source's name for error texts, and its plain content."""
    name = str(source) if isinstance(source, Path) else ""
    plain = source if isinstance(source, str | Path) else to_dict(source)
    content = _parse(plain, f"{name or 'the YAML text'} is not valid YAML")
    if not isinstance(content, dict):
        raise ConfigError(f"{name or 'the YAML text'} must hold `key: value` lines, got {_show(content)}.")
    return name, content


def _merge(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    if "kind" in new and new["kind"] != old.get("kind", new["kind"]):
        return dict(new)
    return {**old, **{key: _merge(old[key], value) if key in old else value for key, value in new.items()}}


def _apply(data: dict[str, Any], override: str) -> None:
    """Set one `dotted.path=value` in place; the value is YAML."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"override {override!r} is not of the form key=value, such as window=6 or ladder=[1,0.75].")
    problem = f"override {override!r}: the value is not valid YAML"
    value = _parse([f"value={text}"], problem)["value"] if text.strip() else ""
    node: Any = data
    for key in keys[:-1]:
        node = node.setdefault(key, {}) if isinstance(node, dict) else _item(node, key, override, data)
    if not isinstance(node, dict):
        _item(node, keys[-1], override, data)  # which checks that there is one
    elif keys[-1] == "kind" and node.get("kind", value) != value:
        node.clear()
    node[keys[-1] if isinstance(node, dict) else int(keys[-1])] = value


def _item(node: Any, key: str, override: str, data: dict[str, Any]) -> Any:
    if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
        return node[int(key)]
    path = override.partition("=")[0]
    near = difflib.get_close_matches(path, list(_paths(data)), n=3, cutoff=0.4)
    raise ConfigError(f"override {override!r}: there is no {path}. Nearest: {', '.join(near) or 'nothing alike'}.")


def _paths(data: Any, prefix: str = "") -> Iterator[str]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield f"{prefix}{key}"
        yield from _paths(value, f"{prefix}{key}.")


def _parse(source: Any, problem: str, resolve: bool = False) -> Any:
    """Return what OmegaConf reads in a file, YAML text, mapping or dot list, as plain data. ConfigError: `problem`."""
    from omegaconf import OmegaConf  # here, because benchmarks do without
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        read = OmegaConf.load if isinstance(source, Path) else OmegaConf.create
        config = OmegaConf.from_dotlist(source) if isinstance(source, list) else read(source)
        return OmegaConf.to_container(config, resolve=resolve)
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror}.") from error
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError(f"{problem}: {' '.join(str(error).split())}") from error


def _origin(path: tuple[str, ...], named: list[tuple[str, dict[str, Any]]], overrides: Sequence[str]) -> str:
    """Say where the value at `path`, or a part of it, was set last: a suffix for an error text."""
    dotted = ".".join(path)
    targets = {override: override.partition("=")[0].strip() for override in overrides}
    guilty = [override for override, target in targets.items()
              if not path or dotted == target or dotted.startswith(f"{target}.") or target.startswith(f"{dotted}.")]
    if guilty:
        return f" (override {', '.join(guilty)})"
    files = [name for name, content in named if name and (not path or dotted in set(_paths(content)))]
    files = files or [name for name, _ in named if name]
    return f" (in {files[-1]})" if files else ""


class InvalidValue(Exception):
    """A value that cannot be used, with its path; `config.build` adds where it came from."""

    def __init__(self, path: tuple[str, ...], problem: str) -> None:
        super().__init__(problem)
        self.path, self.problem = path, problem

    def text(self) -> str:
        """Return the problem with the dotted path before it."""
        return f"{'.'.join(self.path)}: {self.problem}" if self.path else self.problem


def _convert(value: Any, expected: Any, path: tuple[str, ...]) -> Any:
    """Return `value` as the annotation `expected` wants it. InvalidValue if it cannot be."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if expected is Any or expected is object:
        return value
    if origin is typing.Annotated:
        return _convert(value, arguments[0], path)
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
        raise InvalidValue(path, f"must hold settings ({', '.join(_field_names(cls))}), got {_show(value)}.")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in value:
        if key not in fields:
            raise InvalidValue((*path, str(key)), _unknown(str(key), list(fields)))
    hints = typing.get_type_hints(cls, include_extras=True)
    given = {key: _convert(item, hints[key], (*path, key)) for key, item in value.items()}
    for name, field in fields.items():
        if name not in given and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InvalidValue((*path, name), f"is missing; it must be {_name(hints[name])}.")
    try:
        return cls(**given)
    except ValueError as error:
        raise InvalidValue(path, str(error)) from error


def _union(value: Any, members: tuple[Any, ...], path: tuple[str, ...]) -> Any:
    if value is None and types.NoneType in members:
        return None
    kinds = {kind: member for member in members for kind in _kinds(member)}
    if kinds and isinstance(value, dict):
        if "kind" not in value and len({id(member) for member in kinds.values()}) > 1:
            raise InvalidValue((*path, "kind"), f"is missing; it must be one of {', '.join(kinds)}.")
        kind = value.get("kind", next(iter(kinds)))
        if not (isinstance(kind, str) and kind in kinds):
            raise InvalidValue((*path, "kind"), _not_among(kind, tuple(kinds)))
        return _dataclass(kinds[kind], value, path)
    problems = []
    for member in sorted(members, key=lambda member: type(value) is not member):
        if member is not types.NoneType:
            try:
                return _convert(value, member, path)
            except InvalidValue as wrong:
                problems.append(wrong)
    if len(problems) == 1 or any(wrong.path != path for wrong in problems):
        raise max(problems, key=lambda wrong: len(wrong.path))
    raise InvalidValue(path, f"must be {_name(Union[members])}, got {_show(value)}.")  # noqa: UP007


def _kinds(member: Any) -> tuple[str, ...]:
    if not dataclasses.is_dataclass(member) or "kind" not in _field_names(member):
        return ()
    return typing.get_args(typing.get_type_hints(member)["kind"])


def _literal(value: Any, allowed: tuple[Any, ...], path: tuple[str, ...]) -> Any:
    words = _WORDS[value] if isinstance(value, bool) else (value,)
    for choice in allowed:
        if any(word == choice and type(word) is type(choice) for word in words):
            return choice
    raise InvalidValue(path, _not_among(value, allowed))


def _sequence(value: Any, expected: Any, path: tuple[str, ...]) -> Any:
    kind, arguments = typing.get_origin(expected) or expected, typing.get_args(expected)
    if not isinstance(value, list):
        raise InvalidValue(path, f"must be a list, such as [1, 2], got {_show(value)}.")
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise InvalidValue(path, f"must hold {len(arguments)} values, got {len(value)}: {_show(value)}.")
        each: Sequence[Any] = arguments
    else:
        each = [arguments[0] if arguments else Any] * len(value)
    items = [_convert(item, member, (*path, str(i))) for i, (item, member) in enumerate(zip(value, each, strict=True))]
    return items if kind is list else tuple(items)


def _mapping(value: Any, arguments: tuple[Any, ...], path: tuple[str, ...]) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise InvalidValue(path, f"must be a mapping of names to values, got {_show(value)}.")
    return {_scalar(key, arguments[0], path): _convert(item, arguments[1], (*path, str(key)))
            for key, item in value.items()}


def _scalar(value: Any, expected: Any, path: tuple[str, ...]) -> Any:
    if expected is float and type(value) is int:
        return float(value)
    if expected is Path and isinstance(value, str):
        return Path(value)
    if isinstance(expected, type) and type(value) is expected:  # null too
        return value
    hint = f' Write it in quotes: "{value}".' if expected is str and value is not None else ""
    raise InvalidValue(path, f"must be {_name(expected)}, got {_show(value)}.{hint}")


def _field_names(cls: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(cls) if field.init]


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"unknown setting; {f'did you mean {near[0]!r}? It knows' if near else 'it knows'}: {', '.join(known)}."


def _not_among(value: Any, allowed: tuple[Any, ...]) -> str:
    near = difflib.get_close_matches(str(value), [str(choice) for choice in allowed], n=1, cutoff=0.5)
    meant = f"; did you mean {near[0]!r}" if near else ""
    return f"{_show(value)} is not one of {', '.join(map(str, allowed))}{meant}{'?' if near else '.'}"


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


def _show(value: Any) -> str:
    text = "null" if value is None else reprlib.repr(value) if isinstance(value, dict | list) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
