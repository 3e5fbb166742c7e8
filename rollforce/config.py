"""Settings: YAML files, dicts and `key=value` overrides become any tree of frozen dataclasses, checked on the way.

    build(Stream, resource("configs/stream/rolling.yaml"), overrides=["window=6"]) -> Stream

A field that may hold one of several dataclasses is a union of them, each with a `kind: Literal["..."]` field that
tells them apart: the union is the registry. OmegaConf stops in this file. Every error is a ConfigError that names
the dotted path, the value, what would have been right, and where the value came from.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rollforce.errors import ConfigError
from rollforce.schema import Wrong, convert, field_names, show

T = TypeVar("T")
Source = Mapping[str, Any] | Path | str
_PACKAGE = Path(__file__).resolve().parent


def resource(name: str) -> Path:
    """The path of a shipped file or folder, such as "configs/stream/rolling.yaml": in a wheel or in a checkout."""
    for root in (_PACKAGE, _PACKAGE.parent):
        if (root / name).exists():
            return root / name
    folder = Path(name).parent
    there = sorted(p.name for root in (_PACKAGE, _PACKAGE.parent) if (root / folder).is_dir()
                   for p in (root / folder).iterdir())
    raise ConfigError(f"{name} is not shipped with rollforce. In {folder}: {', '.join(there) or 'nothing'}.")


def build(cls: type[T], *sources: Source, overrides: Sequence[str] = ()) -> T:
    """One `cls` from sources, later ones winning key by key, then from `dotted.path=value` overrides.

    A source is a dict, the Path of a YAML file, or YAML text. A list replaces a list; a mapping whose `kind` changes
    replaces the mapping. Raises ConfigError.
    """
    named = [_read(source) for source in sources]
    data: dict[str, Any] = {}
    for _, content in named:
        data = _merge(data, content)
    for override in overrides:
        _apply(data, override)
    try:
        return typing.cast(T, convert(_resolve(data), cls, ()))
    except Wrong as wrong:
        raise ConfigError(f"{wrong.text()}{_origin(wrong.path, named, overrides)}") from None


def to_dict(settings: Any) -> Any:
    """The inverse of `build`: plain dicts, lists, strings and numbers, `kind` included."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return {name: to_dict(getattr(settings, name)) for name in field_names(settings)}
    if isinstance(settings, Mapping):
        return {str(key): to_dict(value) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [to_dict(value) for value in settings]
    return str(settings) if isinstance(settings, Path) else settings


def _read(source: Source) -> tuple[str, dict[str, Any]]:
    """A source's name for error texts, and its plain content."""
    name = str(source) if isinstance(source, Path) else ""
    try:
        if isinstance(source, Path):
            config = OmegaConf.load(source)
        else:
            config = OmegaConf.create(source if isinstance(source, str) else to_dict(source))
        content = _plain(config)
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror}.") from error
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{name or 'the YAML text'} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{name or 'the YAML text'} must hold `key: value` lines, got {show(content)}.")
    return name, content


def _plain(config: Any, resolve: bool = False) -> Any:
    return OmegaConf.to_container(config, resolve=resolve)


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
    try:
        value = _plain(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    except (YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {reason}") from error
    node: Any = data
    for key in keys[:-1]:
        node = node.setdefault(key, {}) if isinstance(node, dict) else _item(node, key, override, data)
    if isinstance(node, dict):
        node[keys[-1]] = value
    else:
        _item(node, keys[-1], override, data)
        node[int(keys[-1])] = value


def _item(node: Any, key: str, override: str, data: dict[str, Any]) -> Any:
    if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
        return node[int(key)]
    path = override.partition("=")[0]
    near = difflib.get_close_matches(path, list(_paths(data)), n=3, cutoff=0.4)
    raise ConfigError(f"override {override!r}: there is no {path}. Nearest: {', '.join(near) or 'nothing alike'}.")


def _paths(data: Any, prefix: str = "") -> Iterator[str]:
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(data, dict):
        items = data.items()
    elif isinstance(data, list):
        items = enumerate(data)
    for key, value in items:
        yield f"{prefix}{key}"
        yield from _paths(value, f"{prefix}{key}.")


def _resolve(data: dict[str, Any]) -> dict[str, Any]:
    try:
        return typing.cast(dict[str, Any], _plain(OmegaConf.create(data), resolve=True))
    except OmegaConfBaseException as error:
        raise ConfigError(f"an interpolation cannot be resolved: {' '.join(str(error).split())}") from error


def _origin(path: tuple[str, ...], named: list[tuple[str, dict[str, Any]]], overrides: Sequence[str]) -> str:
    """Where the value at `path`, or a part of it, was set last: a suffix for an error text."""
    dotted = ".".join(path)
    targets = {override: override.partition("=")[0].strip() for override in overrides}
    guilty = [override for override, target in targets.items()
              if not path or dotted == target or dotted.startswith(f"{target}.") or target.startswith(f"{dotted}.")]
    if guilty:
        return f" (override {', '.join(guilty)})"
    files = [name for name, content in named if name and (not path or dotted in set(_paths(content)))]
    files = files or [name for name, _ in named if name]
    return f" (in {files[-1]})" if files else ""
